//! Requests per second and latency of a whole axum server under load: with the layer, without it, and with tower-http's
//! `PropagateRequestId` in its place.
//!
//! The three servers are child processes of this program on core 0, and run from the first turn to the last. The load
//! comes from this process, on core 1 (by `taskset`; the output says if it is missing and nothing is pinned). The
//! servers take turns in alternating rounds (ABC CBA ABC ...), because the speed of the machine varies. A ratio
//! compares two turns of a round. The other servers are idle during a turn.
//!
//! * **The mix**: of 20 requests, 16 carry the id of one of 10,000 known sessions, which the host repeats; 3 carry no
//!   id and get none; 1 starts a session. All hosts do the same; only the layer differs. The layer of this crate has
//!   its defaults and an end hook that does nothing.
//! * **HTTP/1**: 32 connections kept alive, one request at a time on each. **HTTP/2**: 2 connections, 32 streams at a
//!   time.
//! * An answer with an unexpected status, body or id fails the benchmark.
//!
//! If the load generator is slower than the server, a difference between the servers shows less in the requests per
//! second. So the table also has the server's CPU time per request, as the system counts it (in steps of 10 ms per
//! turn).
//!
//! ```text
//! cargo bench -p benches --bench server                           # ten pairs of turns of 2 s: about 90 s
//! cargo bench -p benches --bench server -- --pairs 4 --seconds 1
//! ```
//!
//! Without `--bench` there is one pair of short turns for each protocol.

#[path = "server/load.rs"]
mod load;
mod measure;
mod plot_data;
#[path = "server/process.rs"]
mod process;

use std::{env, time::Duration};

use load::{Load, Turn};
use measure::{Fallible, Spread, describe};
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
    // Called before this process is pinned to one core.
    let machine = describe();
    let pinned = pin_to(1);
    println!("{machine}{}\n", if pinned { "" } else { "; not pinned: no taskset, or no second core" });
    // On this thread, because only this thread is pinned.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(compare(pinned, pairs, Duration::from_secs_f64(seconds), known))
}

/// Sessions that are known when a turn begins.
const KNOWN: usize = 10_000;

const WITH: &str = "with";
const WITHOUT: &str = "without";
/// The comparison: a layer that reads two heads and does nothing else.
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

/// A figure, the function that reads it from a turn, and its number of decimals.
type Figure = (&'static str, fn(&Turn) -> f64, usize);

fn report(protocol: Protocol, turns: &[Vec<Turn>; 3]) {
    let name = protocol.name();
    let figures: [Figure; 4] = [
        ("requests per second", |turn| turn.rate(), 0),
        ("p50, µs", |turn| turn.wait(0.5), 0),
        ("p99, µs", |turn| turn.wait(0.99), 0),
        ("CPU time per request, µs", |turn| turn.processor(), 1),
    ];
    for (figure, read, precision) in figures {
        for (layer, turns) in [WITH, WITHOUT, PEER].iter().zip(turns) {
            let spread = Spread::of(turns.iter().map(read));
            row(name, figure, layer, &spread, precision);
            let (plot, x) = match figure {
                "requests per second" => ("server: rate", name.to_owned()),
                "CPU time per request, µs" => ("server: processor", name.to_owned()),
                wait => ("server: wait", format!("{name}, {}", &wait[..3])),
            };
            plot_data::point(plot, layer, x, spread.median());
        }
        let [with, without, peer] = turns;
        for (name_of_ratio, turns) in [("with / without", with), ("PropagateRequestId / without", peer)] {
            let ratios: Vec<_> = turns.iter().zip(without).map(|(turn, without)| read(turn) / read(without)).collect();
            row(name, figure, name_of_ratio, &Spread::of(ratios.iter().copied()), 3);
            if figure == "requests per second" {
                for (round, ratio) in ratios.into_iter().enumerate() {
                    plot_data::point("server: pairs", &format!("{name}, {name_of_ratio}"), round + 1, ratio);
                }
            }
        }
    }
}

fn row(protocol: &str, figure: &str, layer: &str, spread: &Spread, precision: usize) {
    let [min, median, max] = [spread.min(), spread.median(), spread.max()];
    println!("| {protocol} | {figure} | {layer} | {min:.precision$} | {median:.precision$} | {max:.precision$} |");
}
