//! Instructions that each layer adds to a request, compared with the bare host. Callgrind counts two run lengths; the
//! difference between them leaves out one-time work.
//!
//! ```text
//! cargo bench -p benches --bench instructions             # everything
//! cargo bench -p benches --bench instructions -- --gate   # only the cases with a limit; fails if one is exceeded
//! ```
//!
//! Needs `valgrind`. Without `--bench`, as in `cargo test --benches`, every case runs once and nothing is
//! measured.

mod host;
mod layers;
mod plot_data;

use std::{
    collections::HashMap,
    env,
    error::Error,
    process::{Command, exit},
};

use host::{HEADERS, Kind, SessionUse};
use layers::{Case, LayerKind};

/// The two run lengths. Tables and buffers have grown before the end of the shorter one.
const SHORT: usize = 500;
const LONG: usize = 2500;

/// Frames of a short body and of a long one.
const FRAMES: [usize; 2] = [100, 500];

/// The most instructions that the layer may add to a frame of a body.
const LIMIT_A_FRAME: f64 = 30.0;

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> Fallible<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [flag, case, length] = args.as_slice()
        && flag == "--run"
    {
        let _rest = run(cases().nth(case.parse()?).ok_or("no such case")?, length.parse()?);
        // Exits without dropping the service.
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

/// All cases. The index of a case is its name for the process that runs it.
fn cases() -> impl Iterator<Item = Case> {
    let talks = SessionUse::ALL
        .into_iter()
        .flat_map(|session_use| HEADERS.into_iter().map(move |headers| (session_use, headers)));
    let heads = talks.flat_map(|(session_use, headers)| {
        LayerKind::ALL.into_iter().map(move |layer| Case { layer, session_use, headers, frames: None })
    });
    let kinds = [Kind::Sized, Kind::Unsized, Kind::Events].into_iter();
    let bodies =
        kinds.flat_map(|kind| [SessionUse::None, SessionUse::InRequest].map(|session_use| (kind, session_use)));
    let bodies = bodies.flat_map(|(kind, session_use)| {
        let layer = [LayerKind::Bare, LayerKind::Sessions].into_iter();
        layer.flat_map(move |layer| {
            FRAMES.map(|frames| Case { layer, session_use, headers: HEADERS[0], frames: Some((kind, frames)) })
        })
    });
    heads.chain(bodies)
}

/// Runs the case `n` times. Each request is made just before it is sent, so that the allocator reuses the memory that
/// was just freed. The cost of making it cancels out against the bare host's.
fn run(case: Case, length: usize) -> impl Sized {
    let mut exchange = case.exchange();
    (0..length).for_each(|_| exchange(case.request()));
    exchange
}

/// Each process seeds its tables of ids at random, and now and then two ids share a slot. So a case that exceeds its
/// limit is tried again, and the minimum of these tries counts.
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

    /// Measures the case again and keeps the smaller count.
    fn again(&mut self, case: Case) -> Fallible<()> {
        let before = self.of(case)?;
        let index = cases().position(|other| other == case).ok_or("no such case")?;
        self.0.insert(index, measure(index)?.min(before));
        Ok(())
    }

    /// Instructions that a layer adds to the bare host.
    fn over_bare(&mut self, layer: LayerKind, session_use: SessionUse, headers: usize) -> Fallible<f64> {
        let of = |costs: &mut Self, layer| costs.of(Case { layer, session_use, headers, frames: None });
        Ok(of(self, layer)? as f64 - of(self, LayerKind::Bare)? as f64)
    }

    /// Instructions that a layer adds to each frame of the body.
    fn a_frame(&mut self, kind: Kind, session_use: SessionUse) -> Fallible<f64> {
        let mut each = |layer| -> Fallible<f64> {
            let mut of =
                |frames| self.of(Case { layer, session_use, headers: HEADERS[0], frames: Some((kind, frames)) });
            Ok((of(FRAMES[1])? as f64 - of(FRAMES[0])? as f64) / (FRAMES[1] - FRAMES[0]) as f64)
        };
        Ok(each(LayerKind::Sessions)? - each(LayerKind::Bare)?)
    }
}

fn heads(costs: &mut Costs) -> Fallible<()> {
    let names: Vec<_> = LayerKind::ALL[1..].iter().map(|layer| layer.name()).collect();
    println!("| over the bare host | headers | {} |", names.join(" | "));
    println!("|---|---:|{}", "---:|".repeat(names.len()));
    for session_use in SessionUse::ALL {
        for headers in HEADERS {
            print!("| {} | {headers} |", session_use.name());
            let mut points = Vec::new();
            for layer in &LayerKind::ALL[1..] {
                let over = costs.over_bare(*layer, session_use, headers)?;
                print!(" {over:.0} |");
                points.push((layer.name(), over));
            }
            println!();
            for (name, over) in points {
                plot_data::point(&format!("instructions, {headers} headers"), name, session_use.name(), over);
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
        let (of_none, of_known) = (costs.a_frame(kind, SessionUse::None)?, costs.a_frame(kind, SessionUse::InRequest)?);
        println!("| {name} | {of_none:.1} | {of_known:.1} |");
        plot_data::point("instructions a frame", "of no session", name, of_none);
        plot_data::point("instructions a frame", "of a known session", name, of_known);
    }
    Ok(())
}

/// The limits with 3 headers and with 15, relative to the cost of another layer for the same exchange.
///
/// With many headers, comparing each name matters, and so does reading a value at the end of the map: a look-up by hash
/// takes 200 instructions, and walking there takes as many.
const LIMITS: [(SessionUse, [f64; 2], LayerKind); 4] = [
    (SessionUse::None, [0.6, 0.67], LayerKind::Propagate),
    (SessionUse::InRequest, [0.65, 0.65], LayerKind::Propagate),
    (SessionUse::InBoth, [0.65, 0.85], LayerKind::Propagate),
    (SessionUse::NewId, [1.05, 1.05], LayerKind::Set),
];

fn gate(costs: &mut Costs) -> Fallible<()> {
    let mut exceeded = false;
    let mut check = |what: &str, cost: f64, limit: f64| {
        let verdict = if cost <= limit { "ok" } else { "EXCEEDED" };
        println!("{what}: {cost:.0} of {limit:.0} instructions, {verdict}");
        exceeded |= cost > limit;
    };
    for (session_use, parts, yardstick) in LIMITS {
        for (headers, part) in HEADERS.into_iter().zip(parts) {
            let limit = part * costs.over_bare(yardstick, session_use, headers)?;
            let ours = Case { layer: LayerKind::Sessions, session_use, headers, frames: None };
            let mut cost = costs.over_bare(LayerKind::Sessions, session_use, headers)?;
            for _ in 1..TRIES {
                if cost > limit {
                    costs.again(ours)?;
                    cost = costs.over_bare(LayerKind::Sessions, session_use, headers)?;
                }
            }
            check(&format!("{}, {headers} headers", session_use.name()), cost, limit);
        }
    }
    for kind in [Kind::Sized, Kind::Unsized, Kind::Events] {
        for session_use in [SessionUse::None, SessionUse::InRequest] {
            check(
                &format!("a frame, {kind:?}, {}", session_use.name()),
                costs.a_frame(kind, session_use)?,
                LIMIT_A_FRAME,
            );
        }
    }
    if exceeded { Err("the layer exceeds its limit of instructions".into()) } else { Ok(()) }
}

/// Instructions per exchange of the case.
fn measure(case: usize) -> Fallible<u64> {
    Ok((count(case, LONG)? - count(case, SHORT)?) / (LONG - SHORT) as u64)
}

/// The instructions of a whole process that runs the case `length` times.
fn count(case: usize, length: usize) -> Fallible<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args(["--run", &case.to_string(), &length.to_string()])
        // Makes glibc's allocator deterministic: it keeps freed memory for the next allocation of that size.
        .env("GLIBC_TUNABLES", "glibc.malloc.mxfast=0:glibc.malloc.tcache_count=10000")
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8(output.stderr)?;
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    let (_, collected) = collected.ok_or_else(|| format!("callgrind counted nothing: {said}"))?;
    Ok(collected.trim().parse()?)
}
