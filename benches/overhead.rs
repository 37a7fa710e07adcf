//! Time that each layer adds to a request. On a shared machine the noise exceeds many of these times: use
//! `instructions` and `allocations` to compare versions.

#[allow(dead_code, reason = "`instructions` alone uses bodies of many frames")]
mod host;
mod layers;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use host::{HEADERS, SessionUse};
use layers::{Case, LayerKind};

fn overhead(c: &mut Criterion) {
    for session_use in SessionUse::ALL {
        let mut group = c.benchmark_group(session_use.name());
        for headers in HEADERS {
            for layer in LayerKind::ALL {
                let case = Case { layer, session_use, headers, frames: None };
                let mut exchange = case.exchange();
                group.bench_function(BenchmarkId::new(layer.name(), headers), |b| {
                    b.iter_batched(|| case.request(), &mut exchange, BatchSize::SmallInput);
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, overhead);
criterion_main!(benches);
