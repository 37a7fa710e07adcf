//! What the layer costs a request, in time. The noise of a shared machine is larger than much of what is measured here:
//! `instructions` and `allocations` are the figures to compare between versions.

mod around;
#[allow(dead_code, reason = "bodies of many frames are another program's")]
mod host;

use around::{Around, Case};
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use host::{HEADERS, Talk};

fn overhead(c: &mut Criterion) {
    for talk in Talk::ALL {
        let mut group = c.benchmark_group(talk.name());
        for headers in HEADERS {
            for around in Around::ALL {
                let case = Case { around, talk, headers, frames: None };
                let mut exchange = case.exchange();
                group.bench_function(BenchmarkId::new(around.name(), headers), |b| {
                    b.iter_batched(|| case.request(), &mut exchange, BatchSize::SmallInput);
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, overhead);
criterion_main!(benches);
