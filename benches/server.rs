//! A whole axum server with the layer, without it, and with tower-http's `PropagateRequestId` in its place, under load:
//! requests a second, and what a request waits.
//!
//! The three servers are this program again, as child processes on core 0, and live from the first turn to the last; the load
//! comes from this process, on core 1 (by `taskset`; unpinned where there is none, and it says so). They take turns, in
//! rounds in alternation (ABC CBA ABC ...), because the machine is slower at one moment than at another: a ratio is that
//! of two turns of a round. What is not the one server's turn waits idle.
//!
//! * **The mix**: of 20 requests 16 carry the id of one of 10,000 known sessions, which the host repeats; 3 carry none and
//!   get none; 1 begins a session. All hosts do the same; only the layer is another. Ours has its defaults and an end hook
//!   that does nothing.
//! * **HTTP/1**: 32 connections kept alive, one request at a time on each. **HTTP/2**: 2 connections, 32 streams at a time.
//! * An answer with another status, another body or another id than expected ends the benchmark as a failure.
//!
//! The load generator may be slower than the server, and then a difference shows less in the requests a second than it
//! should; so the server's processor time a request is in the table too, as the system counts it (to 10 ms a turn).
//!
//! ```text
//! cargo bench -p benches --bench server                           # ten pairs of turns of 2 s: about 90 s
//! cargo bench -p benches --bench server -- --pairs 4 --seconds 1
//! ```
//!
//! Without `--bench` there is one pair of short turns for each protocol.

mod line;
#[path = "server/load.rs"]
mod load;
mod machine;
#[path = "server/process.rs"]
mod process;

use std::{env, time::Duration};

use load::{Load, Turn};
use machine::{Fallible, Spread, describe};
use process::{Server, pin_to, serve};

fn main() -> Fallible<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [flag, which] = args.as_slice()
        && flag == "--serve"
    {
        return serve(which);
    }
    let measures = args.iter().any(|arg| arg == "--bench");
    let (mut pairs, mut seconds, known) = if measures { (10, 2.0, KNOWN) } else { (1, 0.05, KNOWN / 100) };
    for pair in args.windows(2) {
        match pair[0].as_str() {
            "--pairs" => pairs = pair[1].parse()?,
            "--seconds" => seconds = pair[1].parse()?,
            _ => {}
        }
    }
    // Before this process has only one core left.
    let machine = describe();
    let pinned = pin_to(1);
    println!("{machine}{}\n", if pinned { "" } else { "; not pinned: no taskset, or no second core" });
    // On this thread, which is the one that is pinned.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(compare(pinned, pairs, Duration::from_secs_f64(seconds), known))
}

/// Sessions that are known when it begins.
const KNOWN: usize = 10_000;

const WITH: &str = "with";
const WITHOUT: &str = "without";
/// What any layer costs around a router, and one that reads two heads.
const PEER: &str = "PropagateRequestId";

async fn compare(pinned: bool, pairs: usize, turn: Duration, known: usize) -> Fallible<()> {
    let servers = [Server::start(WITH, pinned)?, Server::start(WITHOUT, pinned)?, Server::start(PEER, pinned)?];
    println!("| protocol | figure | layer | min | median | max |");
    println!("|---|---|---|---:|---:|---:|");
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let mut loads = Vec::new();
        for server in &servers {
            loads.push(Load::connect(server, protocol, known).await?);
        }
        for load in &mut loads {
            load.turn(turn / 4).await?;
        }
        let mut turns = [const { Vec::new() }; 3];
        for pair in 0..pairs {
            let order = if pair % 2 == 0 { [0, 1, 2] } else { [2, 1, 0] };
            for which in order {
                turns[which].push(loads[which].turn(turn).await?);
            }
        }
        report(protocol, &turns);
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// A figure, how it is read from a turn, and the plot that it belongs to.
type Figure = (&'static str, fn(&Turn) -> f64, usize);

fn report(protocol: Protocol, turns: &[Vec<Turn>; 3]) {
    let name = protocol.name();
    let figures: [Figure; 4] = [
        ("requests a second", |turn| turn.rate(), 0),
        ("p50, µs", |turn| turn.wait(0.5), 0),
        ("p99, µs", |turn| turn.wait(0.99), 0),
        ("processor time a request, µs", |turn| turn.processor(), 1),
    ];
    for (figure, read, precision) in figures {
        for (layer, turns) in [WITH, WITHOUT, PEER].iter().zip(turns) {
            let spread = Spread::of(turns.iter().map(read));
            row(name, figure, layer, &spread, precision);
            let (plot, x) = match figure {
                "requests a second" => ("server: rate", name.to_owned()),
                "processor time a request, µs" => ("server: processor", name.to_owned()),
                wait => ("server: wait", format!("{name}, {}", &wait[..3])),
            };
            line::point(plot, layer, x, spread.median());
        }
        let [with, without, peer] = turns;
        for (name_of_ratio, turns) in [("with / without", with), ("PropagateRequestId / without", peer)] {
            let ratios: Vec<_> = turns.iter().zip(without).map(|(turn, without)| read(turn) / read(without)).collect();
            row(name, figure, name_of_ratio, &Spread::of(ratios.iter().copied()), 3);
            if figure == "requests a second" {
                for (round, ratio) in ratios.into_iter().enumerate() {
                    line::point("server: pairs", &format!("{name}, {name_of_ratio}"), round + 1, ratio);
                }
            }
        }
    }
}

fn row(protocol: &str, figure: &str, layer: &str, spread: &Spread, precision: usize) {
    let [min, median, max] = [spread.min(), spread.median(), spread.max()];
    println!("| {protocol} | {figure} | {layer} | {min:.precision$} | {median:.precision$} | {max:.precision$} |");
}
