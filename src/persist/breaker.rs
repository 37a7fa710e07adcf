//! The circuit breaker of the registry, and the backlog of changes that the registry has missed.
//!
//! Why no crate: the breaker is one deadline and one backoff under a lock that the caller holds. Its rules for a drain,
//! and the replay of the backlog, would be hand-made with a crate too.

use std::{collections::VecDeque, time::Duration};

use crate::tracker::{
    OutboxEntry,
    clock::{Clock, Nanos},
};

/// The pause after an error. It doubles up to [`MAX_RETRY_BACKOFF`].
const RETRY_BACKOFF: Duration = Duration::from_millis(250);
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(5);

/// In a drain, the attempts of one call, and the attempts to reconnect.
pub(super) const MAX_ATTEMPTS_IN_DRAIN: u32 = 3;

/// The most missed changes that are kept, and the most deferred ends.
pub(super) const MAX_BACKLOG: usize = 65_536;

#[derive(Debug)]
pub(super) struct CircuitBreaker {
    /// The breaker is open until then: the registry is not called.
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

/// Changes that the registry has missed, in order.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    entries: VecDeque<OutboxEntry>,
    /// Changes beyond [`MAX_BACKLOG`].
    pub(super) dropped: u64,
    /// The length at the last replay.
    pub(super) replayed: usize,
}

impl Backlog {
    pub(super) fn push(&mut self, entry: OutboxEntry) {
        if self.entries.len() == MAX_BACKLOG {
            // At worst an end is delivered a second time after this process exits, with the same generation id.
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
