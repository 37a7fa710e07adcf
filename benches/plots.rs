//! Draws the output of the benchmarks: their lines `@ figure series x value` become one SVG per figure.
//!
//! ```text
//! cargo bench -p benches --bench growth | cargo run -p benches --bin plots
//! cargo run -p benches --bin plots -- saved.txt another.txt
//! ```
//!
//! The files go to `plots/` at the root, because cargo publishes nothing from the folder of another crate. Other lines are
//! printed unchanged, so that a pipe still shows the tables. Text uses the fonts of the viewer.

#[path = "plotting/draw.rs"]
mod draw;
#[path = "plotting/figures.rs"]
mod figures;
#[path = "plotting/scale.rs"]
mod scale;

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs::{self, File},
    io::{BufRead, BufReader, stdin},
    path::Path,
};

use figures::FIGURES;

type Fallible<T> = Result<T, Box<dyn Error>>;

/// The points of one figure, in the order in which they were printed.
#[derive(Debug, Default)]
struct Data {
    series: Vec<String>,
    places: Vec<String>,
    /// The value of a series at a position; the last one that was printed.
    values: BTreeMap<(usize, usize), f64>,
}

impl Data {
    fn add(&mut self, series: &str, place: &str, value: f64) {
        let at = (index(&mut self.series, series), index(&mut self.places, place));
        self.values.insert(at, value);
    }
}

/// The index of the value in the list; a new value is appended.
fn index(list: &mut Vec<String>, name: &str) -> usize {
    list.iter().position(|other| other == name).unwrap_or_else(|| {
        list.push(name.to_owned());
        list.len() - 1
    })
}

fn main() -> Fallible<()> {
    let mut all = BTreeMap::new();
    let files: Vec<_> = env::args().skip(1).collect();
    if files.is_empty() {
        read(stdin().lock(), &mut all)?;
    }
    for file in files {
        read(BufReader::new(File::open(&file).map_err(|error| format!("{file}: {error}"))?), &mut all)?;
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plots");
    fs::create_dir_all(&dir)?;
    for (name, data) in &all {
        let Some(figure) = FIGURES.iter().find(|figure| figure.name == name) else {
            return Err(format!("unknown figure {name:?}: add it to plotting/figures.rs").into());
        };
        let file = dir.join(format!("{}.svg", figure.file()));
        draw::draw(figure, data, &file)?;
        println!("{}", file.display());
    }
    if all.is_empty() { Err("the input has no line of a figure".into()) } else { Ok(()) }
}

fn read(lines: impl BufRead, all: &mut BTreeMap<String, Data>) -> Fallible<()> {
    for line in lines.lines() {
        let line = line?;
        let Some(point) = line.strip_prefix("@\t") else {
            println!("{line}");
            continue;
        };
        let [figure, series, place, value] = point.split('\t').collect::<Vec<_>>()[..] else {
            return Err(format!("not a point of a figure: {line:?}").into());
        };
        all.entry(figure.to_owned()).or_default().add(series, place, value.parse()?);
    }
    Ok(())
}
