//! The circuit breaker of the registry, and the backlog of changes that the registry has missed.

use std::{collections::VecDeque, time::Duration};

use crate::tracker::{
    OutboxEntry,
    clock::{Clock, Nanos},
};

/// How long a registry that fails is left alone: at first, and at most.
const RETRY_BACKOFF: Duration = Duration::from_millis(250);
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(5);

/// How many missed changes are kept.
pub(super) const BACKLOG_LIMIT: usize = 65_536;

#[derive(Debug)]
pub(super) struct CircuitBreaker {
    /// Open until then: the registry is left alone.
    pub(super) retry_at: Option<Nanos>,
    backoff: Duration,
    pub(super) attempts_in_drain: u32,
}

impl CircuitBreaker {
    pub(super) const fn new() -> Self {
        Self { retry_at: None, backoff: RETRY_BACKOFF, attempts_in_drain: 0 }
    }

    pub(super) fn is_open(&self, now: Nanos) -> bool {
        self.retry_at.is_some_and(|at| now < at)
    }

    pub(super) fn trip(&mut self, now: Nanos) {
        self.retry_at = Some(Clock::add(now, self.backoff));
        self.backoff = (self.backoff * 2).min(MAX_RETRY_BACKOFF);
    }

    pub(super) const fn reset(&mut self) {
        (self.retry_at, self.backoff) = (None, RETRY_BACKOFF);
    }
}

/// Changes that the registry has missed, in their order.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    entries: VecDeque<OutboxEntry>,
    /// Beyond the limit.
    pub(super) dropped: u64,
    /// How many there were when they were last replayed.
    pub(super) replayed: usize,
}

impl Backlog {
    pub(super) fn push(&mut self, entry: OutboxEntry) {
        if self.entries.len() == BACKLOG_LIMIT {
            // At worst an end is delivered once more, under the same generation, when this process is gone.
            self.entries.pop_front();
            self.dropped += 1;
        }
        self.entries.push_back(entry);
    }

    pub(super) fn take(&mut self) -> VecDeque<OutboxEntry> {
        std::mem::take(&mut self.entries)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
