//! Draws bar charts and line charts.

use std::path::Path;

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    Data, Fallible,
    figures::{Figure, Kind},
    scale::{Axis, Scale, number},
};

const WIDTH: i32 = 960;
const HEIGHT_OF_LINES: i32 = 420;
const BAR: i32 = 15;
const GAP: i32 = 14;
const LEGEND: i32 = 20;
const MARGIN: i32 = 16;

/// The approximate width of a character relative to its height; the viewer chooses the font.
const CHARACTER: f64 = 0.56;

/// Colours that colour-blind readers can tell apart.
const COLOURS: [RGBColor; 9] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(110, 110, 110),
    RGBColor(160, 130, 60),
    RGBColor(0, 0, 0),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(crate) fn draw(figure: &Figure, data: &Data, file: &Path) -> Fallible<()> {
    let legend = legend_places(&data.series);
    let head = 34 + legend.last().map_or(0, |(_, line)| (line + 1) * LEGEND);
    let body = match figure.kind {
        Kind::Bars => {
            let bars = data.values.len() as i32;
            bars * BAR + data.places.len() as i32 * GAP + 60
        }
        Kind::Lines { .. } => HEIGHT_OF_LINES,
    };
    let size = (WIDTH as u32, (head + body + MARGIN) as u32);
    let root = SVGBackend::new(file, size).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(figure.title, (MARGIN, 10), ("sans-serif", 19)))?;
    for ((name, (x, line)), colour) in data.series.iter().zip(legend).zip(COLOURS.iter().cycle()) {
        let y = 38 + line * LEGEND;
        root.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], colour.filled()))?;
        root.draw(&Text::new(name.clone(), (x + 18, y - 1), ("sans-serif", 14)))?;
    }
    let (_, body) = root.split_vertically(head);
    match figure.kind {
        Kind::Bars => bars(figure, data, &body)?,
        Kind::Lines { places, across, up } => lines(figure, data, &body, places, across, up)?,
    }
    root.present()?;
    Ok(())
}

fn width(text: &str, height: f64) -> i32 {
    (text.chars().count() as f64 * height * CHARACTER) as i32
}

/// The position of each name in the legend: its distance from the left, and its line.
fn legend_places(names: &[String]) -> Vec<(i32, i32)> {
    let (mut x, mut line) = (MARGIN, 0);
    let place = |name: &String| {
        let needs = 18 + width(name, 14.0) + 20;
        if x > MARGIN && x + needs > WIDTH - MARGIN {
            (x, line) = (MARGIN, line + 1);
        }
        let place = (x, line);
        x += needs;
        place
    };
    names.iter().map(place).collect()
}

/// Each row is a bar, or the gap after a group of bars.
fn bars(figure: &Figure, data: &Data, area: &Area<'_>) -> Fallible<()> {
    let (mut rows, mut centres) = (Vec::new(), Vec::new());
    let mut y = f64::from(GAP) / 2.0;
    for place in 0..data.places.len() {
        let top = y;
        for series in 0..data.series.len() {
            if let Some(value) = data.values.get(&(series, place)) {
                rows.push((y, series, *value));
                y += f64::from(BAR);
            }
        }
        centres.push(f64::midpoint(top, y));
        y += f64::from(GAP);
    }
    let names = data.places.iter().map(|name| width(name, 14.0)).max().unwrap_or(0);
    let mut across = Scale::Linear.axis(rows.iter().map(|(_, _, value)| *value));
    // A difference can be negative. The number after the longest bar needs room.
    let least = rows.iter().map(|(_, _, value)| *value).fold(0.0, f64::min);
    across.ends = least..across.ends.end * 1.06;
    let mut chart = ChartBuilder::on(area)
        .margin_left(MARGIN)
        .margin_right(MARGIN)
        .y_label_area_size(names + 12)
        .x_label_area_size(48)
        .build_cartesian_2d(across, Axis { ends: y..0.0, marks: centres.clone() })?;
    let name = |y: &f64| {
        let place = centres.iter().position(|centre| (centre - y).abs() < 0.5);
        place.map_or_else(String::new, |place| data.places[place].clone())
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .max_light_lines(0)
        .bold_line_style(BLACK.mix(0.15))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 14))
        .x_label_formatter(&|x| number(*x))
        .y_label_formatter(&name)
        .x_desc(figure.values)
        .draw()?;
    let behind = Pos::new(HPos::Left, VPos::Center);
    for (y, series, value) in rows {
        let (bar, middle) = ([(0.0, y + 1.0), (value, y + f64::from(BAR) - 1.0)], y + f64::from(BAR) / 2.0);
        chart.draw_series([Rectangle::new(bar, COLOURS[series % COLOURS.len()].filled())])?;
        let style = ("sans-serif", 12).into_text_style(area).pos(behind);
        let at = EmptyElement::at((value.max(0.0), middle)) + Text::new(number(value), (4, 0), style);
        chart.draw_series([at])?;
    }
    Ok(())
}

fn lines(figure: &Figure, data: &Data, area: &Area<'_>, places: &str, across: Scale, up: Scale) -> Fallible<()> {
    let mut xs = Vec::new();
    for place in &data.places {
        let x: f64 = place.parse().map_err(|_| format!("{}: {place:?} is not a number", figure.name))?;
        xs.push(across.place(x));
    }
    let x_axis = across.axis(xs.iter().copied());
    let y_axis = up.axis(data.values.values().map(|value| up.place(*value)));
    let marks = y_axis.marks.iter().map(|mark| width(&up.label(*mark), 14.0)).max().unwrap_or(0);
    let mut chart = ChartBuilder::on(area)
        .margin_left(MARGIN)
        .margin_right(40)
        .margin_top(8)
        .y_label_area_size(marks + 36)
        .x_label_area_size(48)
        .build_cartesian_2d(x_axis, y_axis)?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(BLACK.mix(0.15))
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 14))
        .x_label_formatter(&|x| across.label(*x))
        .y_label_formatter(&|y| up.label(*y))
        .x_desc(places)
        .y_desc(figure.values)
        .draw()?;
    for series in 0..data.series.len() {
        let colour = COLOURS[series % COLOURS.len()];
        let mut points: Vec<_> = (0..xs.len())
            .filter_map(|place| data.values.get(&(series, place)).map(|value| (xs[place], up.place(*value))))
            .collect();
        points.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 4, colour.filled())))?;
    }
    Ok(())
}
