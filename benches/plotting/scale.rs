//! Maps values to positions on an axis, and chooses the tick marks.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

/// The scale of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From zero.
    Linear,
    /// From zero, in millions.
    Millions,
    /// Only the range of the values.
    Near,
    /// By powers of ten.
    Log,
}

impl Scale {
    /// The position of a value. On a logarithmic axis, smaller values are raised to the smallest one that it can show.
    pub(crate) fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear | Self::Near => value,
            Self::Millions => value / 1e6,
            Self::Log => value.max(1e-6).log10(),
        }
    }

    /// The label of this position.
    pub(crate) fn label(self, place: f64) -> String {
        number(if self == Self::Log { 10_f64.powf(place) } else { place })
    }

    /// An axis with room for all these positions.
    pub(crate) fn axis(self, places: impl Iterator<Item = f64>) -> Axis {
        let (least, most) =
            places.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), place| (a.min(place), b.max(place)));
        if self == Self::Log {
            let ends = (least + 1e-9).floor()..(most - 1e-9).ceil().max((least + 1e-9).floor() + 1.0);
            return Axis { marks: decades(&ends), ends };
        }
        let (least, most) = match self {
            Self::Near => {
                let margin = ((most - least) / 10.0).max(0.01);
                (least.min(1.0) - margin, most.max(1.0) + margin)
            }
            Self::Linear | Self::Millions | Self::Log => (0.0, if most > 0.0 { most * 1.08 } else { 1.0 }),
        };
        Axis { ends: least..most, marks: steps(least, most) }
    }
}

/// An axis between these two ends, with tick marks at these positions only.
pub(crate) struct Axis {
    pub(crate) ends: Range<f64>,
    pub(crate) marks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let part = (value - self.ends.start) / (self.ends.end - self.ends.start);
        from + (part * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.ends.clone()
    }
}

/// Every power of ten; also two and five times each where there are few.
fn decades(ends: &Range<f64>) -> Vec<f64> {
    let digits: &[f64] = if ends.end - ends.start > 3.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let exponents = ends.start as i32..=ends.end as i32;
    let marks = exponents.flat_map(|exponent| digits.iter().map(move |digit| f64::from(exponent) + digit.log10()));
    marks.filter(|mark| *mark <= ends.end + 1e-9).collect()
}

/// About six round numbers.
fn steps(least: f64, most: f64) -> Vec<f64> {
    let rough = (most - least) / 6.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let first = (least / step - 1e-9).ceil() as i64;
    (first..).map(|n| n as f64 * step).take_while(|mark| *mark <= most).collect()
}

/// With commas between thousands, and only the significant digits.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        0.1.. => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::from(sign);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let part = part.trim_end_matches('0');
    if part.is_empty() { grouped } else { format!("{grouped}.{part}") }
}
