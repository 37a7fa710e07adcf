//! What is measured: the handles of every metric, taken from the recorder when a handle is built.

use std::time::Duration;

use super::recorder::{Count, Counter, Gauge, Histogram, Stopwatch, counter, gauge, histogram};
use crate::session::EndReason;

const REASONS: usize = EndReason::ALL.len();

/// How a session leaves without a `session_end` of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReleaseCause {
    Forgotten,
    Kept,
    HeldElsewhere,
    EndedElsewhere,
    HandedOver,
}

impl ReleaseCause {
    const ALL: [Self; 5] = [Self::Forgotten, Self::Kept, Self::HeldElsewhere, Self::EndedElsewhere, Self::HandedOver];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Forgotten => "forgotten",
            Self::Kept => "kept",
            Self::HeldElsewhere => "held_elsewhere",
            Self::EndedElsewhere => "ended_elsewhere",
            Self::HandedOver => "handed_over",
        }
    }
}

/// What has become of sessions in one step, until no lock is held and it can be told: a recorder is user code.
#[derive(Debug, Default)]
pub(crate) struct CounterDelta {
    starts: Count,
    recovered: Count,
    /// Sessions that are no longer active.
    left: Count,
    ends: [Count; REASONS],
    released: [Count; ReleaseCause::ALL.len()],
}

impl CounterDelta {
    pub(crate) fn started(&mut self) {
        self.starts.add(1);
    }

    pub(crate) fn recovered(&mut self) {
        self.recovered.add(1);
    }

    pub(crate) fn left(&mut self) {
        self.left.add(1);
    }

    pub(crate) fn ended(&mut self, reason: EndReason) {
        self.ends[usize::from(reason.code())].add(1);
    }

    pub(crate) fn released(&mut self, cause: ReleaseCause) {
        self.released[cause as usize].add(1);
    }

    /// An active session was ended by others and goes on as a new generation.
    pub(crate) fn renewed(&mut self) {
        self.started();
        self.left();
        self.released(ReleaseCause::EndedElsewhere);
    }
}

/// What a handle measures of its sessions.
#[derive(Debug)]
pub(crate) struct Meters {
    active: Gauge,
    starts: Counter,
    ends: [Counter; REASONS],
    released: [Counter; ReleaseCause::ALL.len()],
    recovered: Counter,
    ignored_ids: Counter,
    drain_duration: Histogram,
    unfinished: Gauge,
}

impl Meters {
    pub(crate) fn new() -> Self {
        let ended = |n: usize| {
            let reason = EndReason::ALL[n].as_str();
            counter("session_ends_total", "Sessions whose session_end is delivered here", &[("reason", reason)])
        };
        let released = |cause: ReleaseCause| {
            let what = "Sessions that left without a session_end of this process";
            counter("session_releases_total", what, &[("cause", cause.as_str())])
        };
        Self {
            active: gauge("session_active", "Sessions that are active"),
            starts: counter("session_starts_total", "Sessions that were noted anew", &[]),
            ends: std::array::from_fn(ended),
            released: ReleaseCause::ALL.map(released),
            recovered: counter("session_recovered_total", "Ends taken over from processes that are gone", &[]),
            ignored_ids: counter("session_ignored_ids_total", "Ids that were ignored because they are not valid", &[]),
            drain_duration: histogram("session_drain_duration_seconds", "How long a drain of all sessions took", &[]),
            unfinished: gauge("session_unfinished_ends", "Ends that the last report of a stop lists as unfinished"),
        }
    }

    /// To be called with no lock held.
    pub(crate) fn add(&self, delta: &CounterDelta) {
        let CounterDelta { starts, recovered, left, ends, released } = delta;
        let by = |counter: &Counter, sum: Count| {
            if sum.get() > 0 {
                counter.increment(sum.get());
            }
        };
        by(&self.starts, *starts);
        by(&self.recovered, *recovered);
        self.ends.iter().zip(ends).for_each(|(counter, sum)| by(counter, *sum));
        self.released.iter().zip(released).for_each(|(counter, sum)| by(counter, *sum));
        let (started, left) = (starts.get() as f64, left.get() as f64);
        if started > left {
            self.active.increment(started - left);
        } else if left > started {
            self.active.decrement(left - started);
        }
    }

    /// The handle goes, and so many sessions that are active go with it.
    pub(crate) fn on_handle_drop(&self, active: usize) {
        self.active.decrement(active as f64);
    }

    pub(crate) fn ignored_id(&self) {
        self.ignored_ids.increment(1);
    }

    pub(crate) fn drained(&self, elapsed: Duration, unfinished: usize) {
        self.drain_duration.record(elapsed.as_secs_f64());
        self.reported(unfinished);
    }

    pub(crate) fn reported(&self, unfinished: usize) {
        self.unfinished.set(unfinished as f64);
    }
}

/// What is measured of one hook, by the name that logs and reports call it.
#[derive(Debug)]
pub(crate) struct HookMeter {
    duration: Histogram,
    failures: Counter,
}

impl HookMeter {
    /// What a hook has until its handle is built.
    pub(crate) const fn none() -> Self {
        Self { duration: Histogram::noop(), failures: Counter::noop() }
    }

    pub(crate) fn new(kind: &'static str, hook: &str) -> Self {
        let labels = [("kind", kind), ("hook", hook)];
        Self {
            duration: histogram("session_hook_duration_seconds", "How long a call of a hook took", &labels),
            failures: counter("session_hook_failures_total", "Calls of a hook that failed", &labels),
        }
    }

    /// One call is over.
    pub(crate) fn over(&self, began: Stopwatch, failed: bool) {
        self.duration.record(began.seconds());
        if failed {
            self.failures.increment(1);
        }
    }
}

/// What is measured of a registry.
#[derive(Debug)]
pub(crate) struct RegistryMeter {
    degraded: Gauge,
    degradations: Counter,
    given_up: Counter,
}

impl RegistryMeter {
    pub(crate) fn new() -> Self {
        Self {
            degraded: gauge("session_registry_degraded", "Handles whose registry is out of reach"),
            degradations: counter(
                "session_registry_degradations_total",
                "Times that a registry went out of reach",
                &[],
            ),
            given_up: counter("session_given_up_total", "Ends that were tried too often, and are given up", &[]),
        }
    }

    pub(crate) fn degraded(&self) {
        self.degraded.increment(1.0);
        self.degradations.increment(1);
    }

    pub(crate) fn restored(&self) {
        self.degraded.decrement(1.0);
    }

    pub(crate) fn given_up(&self) {
        self.given_up.increment(1);
    }
}
