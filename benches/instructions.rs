//! Instructions that each layer adds to a request, compared with the bare host. Callgrind counts two run lengths; the
//! difference between them leaves out one-time work.
//!
//! ```text
//! cargo bench -p benches --bench instructions               # everything
//! cargo bench -p benches --bench instructions -- --server   # only the whole server
//! cargo bench -p benches --bench instructions -- --gate     # only the cases with a limit; fails if one is exceeded
//! ```
//!
//! Needs `valgrind`. Without `--bench`, as in `cargo test --benches`, every case runs once and nothing is
//! measured.

mod host;
mod layers;
mod plot_data;
mod whole_server;

use std::{
    collections::HashMap,
    env,
    error::Error,
    process::{Command, exit},
};

use host::{HEADERS, Kind, SessionUse};
use layers::{Case, LayerKind};
use whole_server::{Protocol, ServerCase, ServerLayer};

/// The two run lengths. Tables and buffers have grown before the end of the shorter one.
const LENGTHS: [usize; 2] = [500, 2500];
/// A whole server executes a hundred times as many instructions.
const SERVER_LENGTHS: [usize; 2] = [250, 1000];

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
        let case = cases().nth(case.parse()?).ok_or("no such case")?;
        // Exits without dropping the service.
        case.run(length.parse()?, || exit(0));
    }
    if !args.iter().any(|arg| arg == "--bench") {
        cases().for_each(|case| case.run(1, || {}));
        return Ok(());
    }
    let mut costs = Costs::default();
    if args.iter().any(|arg| arg == "--gate") {
        return gate(&mut costs);
    }
    if args.iter().any(|arg| arg == "--server") {
        return servers(&mut costs);
    }
    heads(&mut costs)?;
    bodies(&mut costs)?;
    servers(&mut costs)
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measured {
    /// A layer around a bare service.
    Service(Case),
    /// A layer in a whole server.
    Server(ServerCase),
}

impl Measured {
    /// Runs the case so many times, then calls `then`. Each request is made just before it is sent, so that the allocator
    /// reuses the memory that was just freed. The cost of making it cancels out against the bare host's.
    fn run(self, length: usize, then: impl FnOnce()) {
        match self {
            Self::Service(case) => {
                let mut exchange = case.exchange();
                (0..length).for_each(|_| exchange(case.request()));
                then();
            }
            Self::Server(case) => {
                let mut connection = case.connect();
                (0..length).for_each(|_| connection.exchange());
                then();
            }
        }
    }
}

/// All cases. The index of a case is its name for the process that runs it.
fn cases() -> impl Iterator<Item = Measured> {
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
    let servers = ServerCase::exchanges().flat_map(|(protocol, session_use)| {
        ServerLayer::ALL.into_iter().map(move |layer| ServerCase { layer, session_use, protocol })
    });
    heads.chain(bodies).map(Measured::Service).chain(servers.map(Measured::Server))
}

/// Each process seeds its tables of ids at random, and now and then two ids share a slot. So a case that exceeds its
/// limit is tried again, and the minimum of these tries counts.
const TRIES: usize = 3;

#[derive(Default)]
struct Costs(HashMap<usize, u64>);

impl Costs {
    /// Instructions of one exchange.
    fn of(&mut self, case: Measured) -> Fallible<u64> {
        let index = cases().position(|other| other == case).ok_or("no such case")?;
        if let Some(known) = self.0.get(&index) {
            return Ok(*known);
        }
        let cost = measure(index, case)?;
        self.0.insert(index, cost);
        Ok(cost)
    }

    /// The `cost` of our `case`. If it exceeds the limit, the case is measured again, and the smaller count is kept.
    fn within(&mut self, limit: f64, case: Measured, cost: impl Fn(&mut Self) -> Fallible<f64>) -> Fallible<f64> {
        let index = cases().position(|other| other == case).ok_or("no such case")?;
        for _ in 1..TRIES {
            if cost(self)? > limit {
                let before = self.of(case)?;
                self.0.insert(index, measure(index, case)?.min(before));
            }
        }
        cost(self)
    }

    /// Instructions that a layer adds to the bare host.
    fn over_bare(&mut self, layer: LayerKind, session_use: SessionUse, headers: usize) -> Fallible<f64> {
        let of =
            |costs: &mut Self, layer| costs.of(Measured::Service(Case { layer, session_use, headers, frames: None }));
        Ok(of(self, layer)? as f64 - of(self, LayerKind::Bare)? as f64)
    }

    /// Instructions that a layer adds to each frame of the body.
    fn a_frame(&mut self, kind: Kind, session_use: SessionUse) -> Fallible<f64> {
        let mut each = |layer| -> Fallible<f64> {
            let mut of = |frames| {
                let frames = Some((kind, frames));
                self.of(Measured::Service(Case { layer, session_use, headers: HEADERS[0], frames }))
            };
            Ok((of(FRAMES[1])? as f64 - of(FRAMES[0])? as f64) / (FRAMES[1] - FRAMES[0]) as f64)
        };
        Ok(each(LayerKind::Sessions)? - each(LayerKind::Bare)?)
    }

    /// Instructions that a layer adds to the bare server.
    fn over_bare_server(&mut self, case: ServerCase) -> Fallible<f64> {
        let bare = ServerCase { layer: ServerLayer::Bare, ..case };
        Ok(self.of(Measured::Server(case))? as f64 - self.of(Measured::Server(bare))? as f64)
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

fn servers(costs: &mut Costs) -> Fallible<()> {
    let names: Vec<_> = ServerLayer::ALL[1..].iter().map(|layer| layer.name()).collect();
    println!("\n| a whole server, over bare | | bare | {} |", names.join(" | "));
    println!("|---|---|---:|{}", "---:|".repeat(names.len()));
    for (protocol, session_use) in ServerCase::exchanges() {
        let bare = ServerCase { layer: ServerLayer::Bare, session_use, protocol };
        print!("| {} | {} | {} |", protocol.name(), session_use.name(), costs.of(Measured::Server(bare))?);
        let mut points = Vec::new();
        for layer in &ServerLayer::ALL[1..] {
            let over = costs.over_bare_server(ServerCase { layer: *layer, ..bare })?;
            print!(" {over:.0} |");
            points.push((layer.name(), over));
        }
        println!();
        for (name, over) in points {
            plot_data::point(&format!("instructions, {}", protocol.name()), name, session_use.name(), over);
        }
    }
    Ok(())
}

/// The limits of the layer with its defaults, with 3 headers and with 15, relative to the cost of another layer for the same exchange.
///
/// With many headers, comparing each name matters, and so does reading a value at the end of the map: a look-up by hash
/// takes 200 instructions, and walking there takes as many.
const LIMITS: [(SessionUse, [f64; 2], LayerKind); 4] = [
    (SessionUse::None, [1.0, 1.1], LayerKind::Propagate),
    (SessionUse::InRequest, [0.5, 0.7], LayerKind::Propagate),
    (SessionUse::InBoth, [0.77, 0.98], LayerKind::Propagate),
    (SessionUse::NewId, [1.1, 1.1], LayerKind::Set),
];

/// The limits in a whole server over HTTP/1 and HTTP/2, with the defaults, relative to `PropagateRequestId`.
const SERVER_LIMITS: [(SessionUse, [f64; 2]); 2] = [(SessionUse::None, [1.26, 1.5]), (SessionUse::InBoth, [1.1, 1.25])];

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
            let ours = Measured::Service(Case { layer: LayerKind::Extractors, session_use, headers, frames: None });
            let cost =
                costs.within(limit, ours, |costs| costs.over_bare(LayerKind::Extractors, session_use, headers))?;
            check(&format!("{}, {headers} headers", session_use.name()), cost, limit);
        }
    }
    for (session_use, parts) in SERVER_LIMITS {
        for (protocol, part) in Protocol::ALL.into_iter().zip(parts) {
            let of = |layer| ServerCase { layer, session_use, protocol };
            let limit = part * costs.over_bare_server(of(ServerLayer::Propagate))?;
            let ours = of(ServerLayer::Sessions);
            let cost = costs.within(limit, Measured::Server(ours), |costs| costs.over_bare_server(ours))?;
            check(&format!("a whole server, {}, {}", protocol.name(), session_use.name()), cost, limit);
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

/// Instructions per exchange of the case with this index.
fn measure(index: usize, case: Measured) -> Fallible<u64> {
    let [short, long] = match case {
        Measured::Service(_) => LENGTHS,
        Measured::Server(_) => SERVER_LENGTHS,
    };
    Ok((count(index, long)? - count(index, short)?) / (long - short) as u64)
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
