//! Zero-sized stand-ins for the types of `facade.rs`, without the feature `metrics`.

use super::Label;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Counter;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Gauge;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Histogram;

pub(crate) const fn counter(_: &'static str, _: &'static str, _: &[Label<'_>]) -> Counter {
    Counter
}

pub(crate) const fn gauge(_: &'static str, _: &'static str) -> Gauge {
    Gauge
}

pub(crate) const fn histogram(_: &'static str, _: &'static str, _: &[Label<'_>]) -> Histogram {
    Histogram
}

impl Counter {
    pub(crate) const fn noop() -> Self {
        Self
    }

    pub(crate) const fn increment(&self, _: u64) {}
}

impl Gauge {
    pub(crate) const fn increment(&self, _: f64) {}

    pub(crate) const fn decrement(&self, _: f64) {}

    pub(crate) const fn set(&self, _: f64) {}
}

impl Histogram {
    pub(crate) const fn noop() -> Self {
        Self
    }

    pub(crate) const fn record(&self, _: f64) {}
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch;

impl Stopwatch {
    pub(crate) const fn start() -> Self {
        Self
    }

    pub(crate) const fn seconds(self) -> f64 {
        0.0
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count;

impl Count {
    pub(crate) const fn add(&mut self, _: u32) {}

    pub(crate) const fn get(self) -> u64 {
        0
    }
}
