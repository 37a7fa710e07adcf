//! What the layer costs a request, in allocations. Prints what each layer adds to the bare host.
//!
//! ```text
//! cargo bench -p benches --bench allocations             # everything
//! cargo bench -p benches --bench allocations -- --gate   # what has a limit; fails where one is exceeded
//! ```
//!
//! A program of its own, because counting replaces the allocator, which the other figures must not feel.

mod around;
#[allow(dead_code, reason = "bodies of many frames are another program's")]
mod host;
mod line;

use std::{env, error::Error};

use allocation_counter::{AllocationInfo, measure};
use around::{Around, Case};
use host::{HEADERS, Talk};

/// What the layer may add to the bare host.
const LIMITS: [(Talk, u64); 4] = [(Talk::Silence, 0), (Talk::Request, 0), (Talk::Both, 0), (Talk::Birth, 4)];

fn main() -> Result<(), Box<dyn Error>> {
    if env::args().any(|arg| arg == "--gate") {
        return gate();
    }
    println!("| exchange | headers | around the host | allocations over bare | bytes over bare |");
    println!("|---|---:|---|---:|---:|");
    for talk in Talk::ALL {
        for headers in HEADERS {
            for around in &Around::ALL[1..] {
                let (count, bytes) = over_bare(*around, talk, headers);
                let (exchange, layer) = (talk.name(), around.name());
                println!("| {exchange} | {headers} | {layer} | {count} | {bytes} |");
                line::point(&format!("allocations, {headers} headers"), layer, exchange, count as f64);
            }
        }
    }
    Ok(())
}

fn gate() -> Result<(), Box<dyn Error>> {
    let mut exceeded = false;
    for (talk, limit) in LIMITS {
        for headers in HEADERS {
            let (count, _) = over_bare(Around::Sessions, talk, headers);
            let verdict = if count <= limit { "ok" } else { "EXCEEDED" };
            println!("{}, {headers} headers: {count} of {limit} allocations, {verdict}", talk.name());
            exceeded |= count > limit;
        }
    }
    if exceeded { Err("the layer allocates more than it may".into()) } else { Ok(()) }
}

/// What a layer adds to the bare host: allocations, and their bytes.
fn over_bare(around: Around, talk: Talk, headers: usize) -> (u64, u64) {
    let of = |around| most(Case { around, talk, headers, frames: None });
    let (with, bare) = (of(around), of(Around::Bare));
    (with.count_total.saturating_sub(bare.count_total), with.bytes_total.saturating_sub(bare.bytes_total))
}

/// The most that one of many requests allocates, after as many: a table grows now and then.
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
