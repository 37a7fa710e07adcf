//! The handles of every metric. They are taken from the installed recorder when an `ActiveSessions` is built.

#[cfg(feature = "metrics")]
mod facade;
#[cfg(not(feature = "metrics"))]
mod noop;

use std::time::Duration;

pub(crate) use self::backend::Stopwatch;
use self::backend::{Count, Counter, Gauge, Histogram, counter, gauge, histogram};
#[cfg(feature = "metrics")]
use self::facade as backend;
#[cfg(not(feature = "metrics"))]
use self::noop as backend;
use crate::session::EndReason;

/// A label and its value. A label has few values: never an id, and never another text of a client.
type Label<'a> = (&'static str, &'a str);

const REASONS: usize = EndReason::ALL.len();

/// Why a session leaves without a `session_end` of this process.
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

/// The changes of the counters in one step of the tracker. They are collected under a lock and added after it is
/// released: a recorder is user code.
#[derive(Debug, Default)]
pub(crate) struct CounterDelta {
    starts: Count,
    recovered: Count,
    /// Sessions that are active no longer.
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

    /// Another process ended an active session, which goes on here as a new generation.
    pub(crate) fn renewed(&mut self) {
        self.started();
        self.left();
        self.released(ReleaseCause::EndedElsewhere);
    }
}

/// The metrics of one handle.
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
            counter("session_ends_total", "Sessions whose session_end this process delivers", &[("reason", reason)])
        };
        let released = |cause: ReleaseCause| {
            let description = "Sessions that left without a session_end of this process";
            counter("session_releases_total", description, &[("cause", cause.as_str())])
        };
        Self {
            active: gauge("session_active", "Active sessions"),
            starts: counter("session_starts_total", "Sessions that started", &[]),
            ends: std::array::from_fn(ended),
            released: ReleaseCause::ALL.map(released),
            recovered: counter("session_recovered_total", "Ends recovered from dead processes", &[]),
            ignored_ids: counter("session_ignored_ids_total", "Invalid ids, which were ignored", &[]),
            drain_duration: histogram("session_drain_duration_seconds", "Duration of a drain", &[]),
            unfinished: gauge("session_unfinished_ends", "Unfinished ends in the last report of a shutdown"),
        }
    }

    /// Must be called with no lock held.
    pub(crate) fn add(&self, delta: &CounterDelta) {
        let CounterDelta { starts, recovered, left, ends, released } = delta;
        let increment = |counter: &Counter, count: Count| {
            if count.get() > 0 {
                counter.increment(count.get());
            }
        };
        increment(&self.starts, *starts);
        increment(&self.recovered, *recovered);
        self.ends.iter().zip(ends).for_each(|(counter, count)| increment(counter, *count));
        self.released.iter().zip(released).for_each(|(counter, count)| increment(counter, *count));
        let (started, left) = (starts.get() as f64, left.get() as f64);
        if started > left {
            self.active.increment(started - left);
        } else if left > started {
            self.active.decrement(left - started);
        }
    }

    /// The handle is dropped with this many active sessions.
    pub(crate) fn on_handle_drop(&self, active: usize) {
        self.active.decrement(active as f64);
    }

    pub(crate) fn ignored_id(&self) {
        self.ignored_ids.increment(1);
    }

    pub(crate) fn on_drain_done(&self, elapsed: Duration, unfinished: u64) {
        self.drain_duration.record(elapsed.as_secs_f64());
        self.set_unfinished(unfinished);
    }

    pub(crate) fn set_unfinished(&self, unfinished: u64) {
        self.unfinished.set(unfinished as f64);
    }
}

/// The metrics of one hook. Their label is the name that logs and reports show.
#[derive(Debug)]
pub(crate) struct HookMeter {
    duration: Histogram,
    failures: Counter,
}

impl HookMeter {
    /// For a hook whose handle is not built yet.
    pub(crate) const fn none() -> Self {
        Self { duration: Histogram::noop(), failures: Counter::noop() }
    }

    pub(crate) fn new(kind: &'static str, hook: &str) -> Self {
        let labels = [("kind", kind), ("hook", hook)];
        Self {
            duration: histogram("session_hook_duration_seconds", "Duration of a call of a hook", &labels),
            failures: counter("session_hook_failures_total", "Failed calls of a hook", &labels),
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

/// The metrics of a transaction hook.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) struct TransactionMeters {
    pub(crate) start: HookMeter,
    pub(crate) end: HookMeter,
}

#[cfg(any(feature = "sqlite", feature = "postgres"))]
impl TransactionMeters {
    pub(crate) fn new(hook: &str) -> Self {
        Self { start: HookMeter::new("transaction_start", hook), end: HookMeter::new("transaction_end", hook) }
    }
}

/// The metrics of a registry.
#[derive(Debug)]
pub(crate) struct RegistryMeter {
    degraded: Gauge,
    degradations: Counter,
    dead_letters: Gauge,
}

impl RegistryMeter {
    pub(crate) fn new() -> Self {
        Self {
            degraded: gauge("session_registry_degraded", "Handles whose registry is slow or does not answer"),
            degradations: counter("session_registry_degradations_total", "How often a registry stopped answering", &[]),
            dead_letters: gauge("session_dead_letters", "Ends in the registry whose hooks have failed too often"),
        }
    }

    pub(crate) fn degraded(&self) {
        self.degraded.increment(1.0);
        self.degradations.increment(1);
    }

    pub(crate) fn restored(&self) {
        self.degraded.decrement(1.0);
    }

    pub(crate) fn dead_letters(&self, count: u64) {
        self.dead_letters.set(count as f64);
    }
}
