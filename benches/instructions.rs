//! What the layer costs a request, in instructions: by callgrind, as the difference of two run lengths, so that what
//! happens once does not count. Prints what each layer adds to the bare host.
//!
//! ```text
//! cargo bench -p benches --bench instructions             # everything
//! cargo bench -p benches --bench instructions -- --gate   # what has a limit; fails where one is exceeded
//! ```
//!
//! `valgrind` has to be installed. Without `--bench`, as in `cargo test --benches`, every case runs once and nothing is
//! measured.

mod around;
mod host;
mod line;

use std::{
    collections::HashMap,
    env,
    error::Error,
    process::{Command, exit},
};

use around::{Around, Case};
use host::{HEADERS, Kind, Talk};

/// The two run lengths. What grows now and then (a table, a buffer) has grown before the first.
const SHORT: usize = 500;
const LONG: usize = 2500;

/// Frames of a long body, and of a short one.
const FRAMES: [usize; 2] = [100, 500];

/// Most instructions that the layer may add to a frame of a body.
const LIMIT_A_FRAME: f64 = 30.0;

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [flag, case, length] = args.as_slice()
        && flag == "--run"
    {
        let _rest = run(cases().nth(case.parse()?).ok_or("no such case")?, length.parse()?);
        // Without a drop of the rest.
        exit(0);
    }
    if !args.iter().any(|arg| arg == "--bench") {
        cases().for_each(|case| drop(run(case, 1)));
        return Ok(());
    }
    let mut costs = Costs::default();
    if args.iter().any(|arg| arg == "--gate") {
        return gate(&mut costs);
    }
    heads(&mut costs)?;
    bodies(&mut costs)
}

/// All cases. Their places in here are their names for the processes that run them.
fn cases() -> impl Iterator<Item = Case> {
    let talks = Talk::ALL.into_iter().flat_map(|talk| HEADERS.into_iter().map(move |headers| (talk, headers)));
    let heads = talks.flat_map(|(talk, headers)| {
        Around::ALL.into_iter().map(move |around| Case { around, talk, headers, frames: None })
    });
    let kinds = [Kind::Sized, Kind::Unsized, Kind::Events].into_iter();
    let bodies = kinds.flat_map(|kind| [Talk::Silence, Talk::Request].map(|talk| (kind, talk)));
    let bodies = bodies.flat_map(|(kind, talk)| {
        let around = [Around::Bare, Around::Sessions].into_iter();
        around.flat_map(move |around| {
            FRAMES.map(|frames| Case { around, talk, headers: HEADERS[0], frames: Some((kind, frames)) })
        })
    });
    heads.chain(bodies)
}

/// Runs the case so many times. Each request is made when it is wanted, so that the allocator has nothing to do but to hand
/// out again what it has just got back; the making cancels out against the bare host's.
fn run(case: Case, length: usize) -> impl Sized {
    let mut exchange = case.exchange();
    (0..length).for_each(|_| exchange(case.request()));
    exchange
}

/// Every table of ids is seeded anew in each process, and now and then two ids share a slot of one. So a case that would
/// exceed its limit is tried again: the least of so many tries counts.
const TRIES: usize = 3;

#[derive(Default)]
struct Costs(HashMap<usize, u64>);

impl Costs {
    /// Instructions of one exchange.
    fn of(&mut self, case: Case) -> Fallible<u64> {
        let index = cases().position(|other| other == case).ok_or("no such case")?;
        if let Some(known) = self.0.get(&index) {
            return Ok(*known);
        }
        let cost = measure(index)?;
        self.0.insert(index, cost);
        Ok(cost)
    }

    /// Forgets it, unless it is less than what comes out this time.
    fn again(&mut self, case: Case) -> Fallible<()> {
        let before = self.of(case)?;
        let index = cases().position(|other| other == case).ok_or("no such case")?;
        self.0.insert(index, measure(index)?.min(before));
        Ok(())
    }

    /// What a layer adds to the bare host.
    fn over_bare(&mut self, around: Around, talk: Talk, headers: usize) -> Fallible<f64> {
        let of = |costs: &mut Self, around| costs.of(Case { around, talk, headers, frames: None });
        Ok(of(self, around)? as f64 - of(self, Around::Bare)? as f64)
    }

    /// What a layer adds to each frame of the body.
    fn a_frame(&mut self, kind: Kind, talk: Talk) -> Fallible<f64> {
        let mut each = |around| -> Fallible<f64> {
            let mut of = |frames| self.of(Case { around, talk, headers: HEADERS[0], frames: Some((kind, frames)) });
            Ok((of(FRAMES[1])? as f64 - of(FRAMES[0])? as f64) / (FRAMES[1] - FRAMES[0]) as f64)
        };
        Ok(each(Around::Sessions)? - each(Around::Bare)?)
    }
}

fn heads(costs: &mut Costs) -> Fallible<()> {
    let names: Vec<_> = Around::ALL[1..].iter().map(|around| around.name()).collect();
    println!("| over the bare host | headers | {} |", names.join(" | "));
    println!("|---|---:|{}", "---:|".repeat(names.len()));
    for talk in Talk::ALL {
        for headers in HEADERS {
            print!("| {} | {headers} |", talk.name());
            let mut points = Vec::new();
            for around in &Around::ALL[1..] {
                let over = costs.over_bare(*around, talk, headers)?;
                print!(" {over:.0} |");
                points.push((around.name(), over));
            }
            println!();
            for (name, over) in points {
                line::point(&format!("instructions, {headers} headers"), name, talk.name(), over);
            }
        }
    }
    Ok(())
}

fn bodies(costs: &mut Costs) -> Fallible<()> {
    println!("\n| a frame of a body | of no session | of a known session |");
    println!("|---|---:|---:|");
    for (kind, name) in
        [(Kind::Sized, "with a length"), (Kind::Unsized, "without a length"), (Kind::Events, "event stream")]
    {
        let (of_none, of_known) = (costs.a_frame(kind, Talk::Silence)?, costs.a_frame(kind, Talk::Request)?);
        println!("| {name} | {of_none:.1} | {of_known:.1} |");
        line::point("instructions a frame", "of no session", name, of_none);
        line::point("instructions a frame", "of a known session", name, of_known);
    }
    Ok(())
}

/// What a layer may cost with 3 headers and with 15, in parts of what another one does for the same exchange.
///
/// With many headers the look at each of their names counts, and the way to the value of one of the last: a look-up by its
/// hash is 200 instructions, and what it takes to walk there is no less.
const LIMITS: [(Talk, [f64; 2], Around); 4] = [
    (Talk::Silence, [0.6, 0.67], Around::Propagate),
    (Talk::Request, [0.65, 0.65], Around::Propagate),
    (Talk::Both, [0.65, 0.85], Around::Propagate),
    (Talk::Birth, [1.0, 1.0], Around::Set),
];

fn gate(costs: &mut Costs) -> Fallible<()> {
    let mut exceeded = false;
    let mut check = |what: &str, cost: f64, limit: f64| {
        let verdict = if cost <= limit { "ok" } else { "EXCEEDED" };
        println!("{what}: {cost:.0} of {limit:.0} instructions, {verdict}");
        exceeded |= cost > limit;
    };
    for (talk, parts, yardstick) in LIMITS {
        for (headers, part) in HEADERS.into_iter().zip(parts) {
            let limit = part * costs.over_bare(yardstick, talk, headers)?;
            let ours = Case { around: Around::Sessions, talk, headers, frames: None };
            let mut cost = costs.over_bare(Around::Sessions, talk, headers)?;
            for _ in 1..TRIES {
                if cost > limit {
                    costs.again(ours)?;
                    cost = costs.over_bare(Around::Sessions, talk, headers)?;
                }
            }
            check(&format!("{}, {headers} headers", talk.name()), cost, limit);
        }
    }
    for kind in [Kind::Sized, Kind::Unsized, Kind::Events] {
        for talk in [Talk::Silence, Talk::Request] {
            check(&format!("a frame, {kind:?}, {}", talk.name()), costs.a_frame(kind, talk)?, LIMIT_A_FRAME);
        }
    }
    if exceeded { Err("the layer costs more than it may".into()) } else { Ok(()) }
}

/// Instructions of one exchange of the case.
fn measure(case: usize) -> Fallible<u64> {
    Ok((count(case, LONG)? - count(case, SHORT)?) / (LONG - SHORT) as u64)
}

/// The instructions of a whole process that runs the case so often.
fn count(case: usize, length: usize) -> Fallible<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args(["--run", &case.to_string(), &length.to_string()])
        // glibc's allocator then does the same each time: it keeps everything that is freed for the next of that size.
        .env("GLIBC_TUNABLES", "glibc.malloc.mxfast=0:glibc.malloc.tcache_count=10000")
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8(output.stderr)?;
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    let (_, collected) = collected.ok_or_else(|| format!("callgrind counted nothing: {said}"))?;
    Ok(collected.trim().parse()?)
}
