//! What the layer costs a request, in allocations. Prints a table of what each layer adds to the bare host.
//!
//! A program of its own, because counting replaces the allocator, which the other figures must not feel.

mod around;
#[allow(dead_code, reason = "bodies of many frames are another program's")]
mod host;

use allocation_counter::{AllocationInfo, measure};
use around::{Around, Case};
use host::{HEADERS, Talk};

fn main() {
    println!("| exchange | headers | around the host | allocations | over bare | bytes | over bare |");
    println!("|---|---:|---|---:|---:|---:|---:|");
    for talk in Talk::ALL {
        for headers in HEADERS {
            let mut bare = AllocationInfo::default();
            for around in Around::ALL {
                let count = count(Case { around, talk, headers, frames: None });
                if around == Around::Bare {
                    bare = count;
                }
                println!(
                    "| {} | {headers} | {} | {} | {} | {} | {} |",
                    talk.name(),
                    around.name(),
                    count.count_total,
                    count.count_total.saturating_sub(bare.count_total),
                    count.bytes_total,
                    count.bytes_total.saturating_sub(bare.bytes_total),
                );
            }
        }
    }
}

/// Of one request that is not the first.
fn count(case: Case) -> AllocationInfo {
    let mut exchange = case.exchange();
    exchange(case.request());
    let request = case.request();
    measure(|| exchange(request))
}
