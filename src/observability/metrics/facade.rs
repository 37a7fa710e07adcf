//! The `metrics` crate, with the feature of that name.

pub(crate) use metrics::{Counter, Gauge, Histogram};
use tokio::time::Instant;

use super::Label;

pub(crate) fn counter(name: &'static str, description: &'static str, labels: &[Label<'_>]) -> Counter {
    metrics::describe_counter!(name, description);
    metrics::counter!(name, owned(labels))
}

pub(crate) fn gauge(name: &'static str, description: &'static str) -> Gauge {
    metrics::describe_gauge!(name, description);
    metrics::gauge!(name)
}

/// Its unit is seconds.
pub(crate) fn histogram(name: &'static str, description: &'static str, labels: &[Label<'_>]) -> Histogram {
    metrics::describe_histogram!(name, metrics::Unit::Seconds, description);
    metrics::histogram!(name, owned(labels))
}

fn owned(labels: &[Label<'_>]) -> Vec<metrics::Label> {
    labels.iter().map(|(name, value)| metrics::Label::new(*name, (*value).to_owned())).collect()
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn seconds(self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// A number that only a metric uses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count(u32);

impl Count {
    pub(crate) fn add(&mut self, n: u32) {
        self.0 += n;
    }

    pub(crate) fn get(self) -> u64 {
        self.0.into()
    }
}
