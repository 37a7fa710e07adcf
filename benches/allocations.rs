//! Allocations that each layer adds to a request, compared with the bare host.
//!
//! ```text
//! cargo bench -p benches --bench allocations             # everything
//! cargo bench -p benches --bench allocations -- --gate   # only the cases with a limit; fails if one is exceeded
//! ```
//!
//! This is a separate program because counting replaces the allocator, which would slow down the other benchmarks.

#[allow(dead_code, reason = "`instructions` alone uses bodies of many frames")]
mod host;
mod layers;
mod plot_data;
mod whole_server;

use std::{env, error::Error};

use allocation_counter::{AllocationInfo, measure};
use host::{HEADERS, SessionUse};
use layers::{Case, LayerKind};
use whole_server::{Protocol, ServerCase, ServerLayer};

/// The most allocations that the layer may add to the bare host.
const LIMITS: [(SessionUse, u64); 4] =
    [(SessionUse::None, 0), (SessionUse::InRequest, 0), (SessionUse::InBoth, 0), (SessionUse::NewId, 2)];

fn main() -> Result<(), Box<dyn Error>> {
    if env::args().any(|arg| arg == "--gate") {
        return gate();
    }
    println!("| exchange | headers | layer | allocations over bare | bytes over bare |");
    println!("|---|---:|---|---:|---:|");
    for session_use in SessionUse::ALL {
        for headers in HEADERS {
            for layer in &LayerKind::ALL[1..] {
                let (count, bytes) = over_bare(*layer, session_use, headers);
                let (exchange, layer) = (session_use.name(), layer.name());
                println!("| {exchange} | {headers} | {layer} | {count} | {bytes} |");
                plot_data::point(&format!("allocations, {headers} headers"), layer, exchange, count as f64);
            }
        }
    }
    println!("\n| a whole server | | layer | allocations | over identity | bytes | over identity |");
    println!("|---|---|---|---:|---:|---:|---:|");
    for (protocol, session_use) in ServerCase::exchanges() {
        let (identity, identity_bytes) = of_server(ServerCase { layer: ServerLayer::Identity, session_use, protocol });
        for layer in ServerLayer::ALL {
            let (count, bytes) = of_server(ServerCase { layer, session_use, protocol });
            let (over, bytes_over) = (count - identity, bytes - identity_bytes);
            let (protocol, exchange, layer) = (protocol.name(), session_use.name(), layer.name());
            println!("| {protocol} | {exchange} | {layer} | {count:.1} | {over:.1} | {bytes:.0} | {bytes_over:.0} |");
        }
    }
    Ok(())
}

/// The most allocations that the layer may add, with its defaults, to a layer that does nothing in a whole server.
const SERVER_LIMITS: [(SessionUse, f64); 2] = [(SessionUse::None, 1.0), (SessionUse::InBoth, 1.0)];

fn gate() -> Result<(), Box<dyn Error>> {
    let mut exceeded = false;
    for (session_use, limit) in LIMITS {
        for headers in HEADERS {
            let (count, _) = over_bare(LayerKind::Extractors, session_use, headers);
            let verdict = if count <= limit { "ok" } else { "EXCEEDED" };
            println!("{}, {headers} headers: {count} of {limit} allocations, {verdict}", session_use.name());
            exceeded |= count > limit;
        }
    }
    for protocol in Protocol::ALL {
        for (session_use, limit) in SERVER_LIMITS {
            let of = |layer| of_server(ServerCase { layer, session_use, protocol }).0;
            let count = of(ServerLayer::Sessions) - of(ServerLayer::Identity);
            // The buffers of a connection are allocated anew now and then.
            let fits = count < limit + 0.1;
            let verdict = if fits { "ok" } else { "EXCEEDED" };
            let (protocol, session_use) = (protocol.name(), session_use.name());
            println!("a whole server, {protocol}, {session_use}: {count:.2} of {limit} allocations, {verdict}");
            exceeded |= !fits;
        }
    }
    if exceeded { Err("the layer exceeds its limit of allocations".into()) } else { Ok(()) }
}

/// What a layer adds to the bare host: allocations and bytes.
fn over_bare(layer: LayerKind, session_use: SessionUse, headers: usize) -> (u64, u64) {
    let of = |layer| most(Case { layer, session_use, headers, frames: None });
    let (with, bare) = (of(layer), of(LayerKind::Bare));
    (with.count_total.saturating_sub(bare.count_total), with.bytes_total.saturating_sub(bare.bytes_total))
}

/// The most that one of many requests allocates. As many requests warm up first, because tables grow now and then.
fn most(case: Case) -> AllocationInfo {
    const REQUESTS: usize = 100;
    let mut exchange = case.exchange();
    (0..REQUESTS).for_each(|_| exchange(case.request()));
    let each = |_| {
        let request = case.request();
        measure(|| exchange(request))
    };
    (0..REQUESTS).map(each).max_by_key(|info| (info.count_total, info.bytes_total)).unwrap_or_default()
}

/// Allocations and bytes of one exchange with a whole server and its client: the mean of many.
fn of_server(case: ServerCase) -> (f64, f64) {
    const REQUESTS: usize = 1000;
    let mut connection = case.connect();
    (0..REQUESTS).for_each(|_| connection.exchange());
    let info = measure(|| (0..REQUESTS).for_each(|_| connection.exchange()));
    (info.count_total as f64 / REQUESTS as f64, info.bytes_total as f64 / REQUESTS as f64)
}
