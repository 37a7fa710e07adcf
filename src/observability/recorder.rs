//! The `metrics` facade; without the feature, types of the same shape that are nothing and do nothing.

pub(crate) use self::imp::{Count, Counter, Gauge, Histogram, Stopwatch, counter, gauge, histogram};

/// A label and its value. Values are few: never an id, nor anything else of a client's.
pub(crate) type Label<'a> = (&'static str, &'a str);

#[cfg(feature = "metrics")]
mod imp {
    pub(crate) use metrics::{Counter, Gauge, Histogram};
    use tokio::time::Instant;

    use super::Label;

    pub(crate) fn counter(name: &'static str, what: &'static str, labels: &[Label<'_>]) -> Counter {
        metrics::describe_counter!(name, what);
        metrics::counter!(name, owned(labels))
    }

    pub(crate) fn gauge(name: &'static str, what: &'static str) -> Gauge {
        metrics::describe_gauge!(name, what);
        metrics::gauge!(name)
    }

    /// Of seconds.
    pub(crate) fn histogram(name: &'static str, what: &'static str, labels: &[Label<'_>]) -> Histogram {
        metrics::describe_histogram!(name, metrics::Unit::Seconds, what);
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

    /// A number that is only there to be told.
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
}

#[cfg(not(feature = "metrics"))]
mod imp {
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
}
