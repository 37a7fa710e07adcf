//! How long the drain of many sessions takes, and how many of them it ends within its budget of 2 s.
//!
//! This benchmark does not use criterion, because one run takes up to 2 s and the number of delivered ends matters as
//! much as the time. Each run is a separate process, so that no run inherits a warm allocator or fragmented memory. A
//! bare loop that does the same work runs after each run of the drain that it is compared with; a ratio compares two
//! neighbouring runs. Prints a table with the minimum, the median and the maximum of each figure:
//!
//! ```text
//! cargo bench -p benches --features registries --bench drain                        # all, three runs of each: about two minutes
//! cargo bench -p benches --features registries --bench drain -- --runs 5 10ms hung  # five runs of the scenarios whose names match
//! ```
//!
//! The `sqlite` scenarios write to a real file in the system's temporary directory (`TMPDIR`).
//!
//! Without `--bench`, as in `cargo test --benches`, all of them run once with a thousandth of the sessions.

mod measure;
mod plot_data;
#[path = "drain/rows.rs"]
mod rows;
#[path = "drain/scenarios.rs"]
mod scenarios;

use std::{env, process::Command, time::Duration};

use measure::{Fallible, Spread, describe, memory};

/// The default budget of a drain, for the bare loops, which have none.
const BUDGET: Duration = Duration::from_secs(2);

/// The figures of one run, in the order of the table.
type Figures = Vec<(&'static str, f64)>;

/// A scenario, its number of sessions, and the bare loops that it is compared with, each with the figure of the ratio.
type Scenario = (&'static str, usize, &'static [(&'static str, &'static str)]);

const SCENARIOS: [Scenario; 17] = [
    ("memory/end-hook", 1_000_000, &[]),
    ("memory/both-hooks", 1_000_000, &[]),
    ("10ms/1,000", 1_000, &[]),
    ("10ms/10,000", 10_000, &[]),
    ("10ms/50,000", 50_000, &[]),
    // The bare loop runs for as long as the drain took.
    ("10ms/1,000,000", 1_000_000, &[("10ms/bare-spawn", "ended")]),
    ("no-op/drain", 1_000_000, &[("no-op/bare-boxed", "elapsed s"), ("no-op/bare-await", "elapsed s")]),
    ("hung/first-10,000-noted", 20_000, &[]),
    ("hung/first-10,000-called", 20_000, &[]),
    ("hung/100,000", 100_000, &[]),
    ("hung/1,000,000", 1_000_000, &[]),
    ("blocking/10ms", 1_000, &[]),
    ("serial/drain", 1_000, &[("serial/bare", "ended")]),
    ("batch/1,000", 200_000, &[]),
    ("sqlite/insert", 200_000, &[("sqlite/bare-insert", "elapsed s")]),
    ("sqlite/update", 200_000, &[("sqlite/bare-update", "ended")]),
    ("note/both-hooks", 1_000_000, &[]),
];

fn main() -> Fallible<()> {
    let mut args: Vec<String> = env::args().skip(1).collect();
    if let [flag, name, n, seconds] = args.as_slice()
        && flag == "--one"
    {
        return one(name, n.parse()?, Duration::from_secs_f64(seconds.parse()?));
    }
    let measures = args.iter().any(|arg| arg == "--bench");
    let mut runs = if measures { 3 } else { 1 };
    if let Some(flag) = args.iter().position(|arg| arg == "--runs") {
        runs = args.get(flag + 1).ok_or("`--runs` needs a number")?.parse()?;
        args.drain(flag..flag + 2);
    }
    let wanted: Vec<_> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    println!("{}\n", describe());
    println!("| scenario | figure | min | median | max |");
    println!("|---|---|---:|---:|---:|");
    for scenario in SCENARIOS {
        let (name, n, bare) = scenario;
        let is_meant = |name: &str| wanted.iter().any(|wanted| name.contains(wanted.as_str()));
        if wanted.is_empty() || is_meant(name) || bare.iter().any(|(bare, _)| is_meant(bare)) {
            several((name, if measures { n } else { n.div_ceil(1000) }, bare), runs)?;
        }
    }
    Ok(())
}

/// The figures of several runs of one scenario, in the order of the runs.
#[derive(Default)]
struct Runs(Vec<(String, Vec<f64>)>);

impl Runs {
    fn of(&self, figure: &str) -> &[f64] {
        self.0.iter().find(|(name, _)| name == figure).map_or(&[], |(_, values)| values)
    }

    /// Adds one run, in a separate process.
    fn run(&mut self, name: &str, n: usize, time: f64) -> Fallible<()> {
        let args = ["--one", name, &n.to_string(), &time.to_string()];
        let output = Command::new(env::current_exe()?).args(args).output()?;
        if !output.status.success() {
            return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        for line in String::from_utf8(output.stdout)?.lines() {
            let (figure, value) = line.rsplit_once('\t').ok_or("expected a figure and its value")?;
            let value = value.parse()?;
            match self.0.iter_mut().find(|(name, _)| name == figure) {
                Some((_, values)) => values.push(value),
                None => self.0.push((figure.to_owned(), vec![value])),
            }
        }
        Ok(())
    }

    /// Prints the figures, and the points of the plots under `series` and the name of the scenario.
    fn print(&self, name: &str, n: usize, series: &str, scenario: &str) {
        for (figure, values) in &self.0 {
            let spread = Spread::of(values.iter().copied());
            row(name, figure, &spread, if figure.ends_with(" s") { 3 } else { 0 });
            match figure.as_str() {
                "elapsed s" => plot_data::point("drain: time", series, scenario, spread.median()),
                "ended" => plot_data::point("drain: ended", series, scenario, 100.0 * spread.median() / n as f64),
                _ => {}
            }
        }
    }
}

/// Runs one scenario several times, each time followed by the bare loops that it is compared with.
fn several((name, n, bare): Scenario, runs: usize) -> Fallible<()> {
    let mut ours = Runs::default();
    let mut theirs: Vec<Runs> = bare.iter().map(|_| Runs::default()).collect();
    for _ in 0..runs {
        ours.run(name, n, BUDGET.as_secs_f64())?;
        let time = ours.of("elapsed s").last().copied().unwrap_or_default();
        for ((bare, _), theirs) in bare.iter().zip(&mut theirs) {
            theirs.run(bare, n, time)?;
        }
    }
    ours.print(name, n, "the drain", name);
    for (place, ((bare, figure), theirs)) in bare.iter().zip(&theirs).enumerate() {
        theirs.print(bare, n, ["a bare loop", "a bare loop without boxes"][place.min(1)], name);
        let ratios = |most: f64| {
            let pairs = ours.of(figure).iter().zip(theirs.of(figure));
            Spread::of(pairs.map(|(ours, bare)| ours / bare.min(most)))
        };
        row(name, &format!("{figure}, of {bare}"), &ratios(f64::INFINITY), 2);
        // A loop without an end of its own may deliver more than the number of sessions.
        if *figure == "ended" && theirs.of(figure).iter().any(|ended| *ended > n as f64) {
            row(name, &format!("{figure}, of {bare} with {n} at most"), &ratios(n as f64), 2);
        }
    }
    Ok(())
}

fn row(name: &str, figure: &str, spread: &Spread, precision: usize) {
    let [min, median, max] = [spread.min(), spread.median(), spread.max()];
    println!("| {name} | {figure} | {min:.precision$} | {median:.precision$} | {max:.precision$} |");
}

/// One run of one scenario. A loop without an end of its own runs for `seconds`.
fn one(name: &str, n: usize, time: Duration) -> Fallible<()> {
    // Two workers on every machine, so that tables of different machines are comparable.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // A task runs on a worker thread; the main thread is not one.
    let figures = runtime.block_on(runtime.spawn(scenarios::scenario(name.to_owned(), n, time)))??;
    for (figure, value) in figures {
        println!("{figure}\t{value}");
    }
    println!("peak MB\t{}", memory("VmHWM")? / 1e6);
    // Exits without dropping the hung hooks, which would take time.
    runtime.shutdown_background();
    Ok(())
}
