//! The circuit breaker of the registry.
//!
//! Why no crate: the breaker is one deadline and one backoff under a lock that the caller holds. Its rules for a drain would
//! be hand-made with a crate too.

use std::time::Duration;

use crate::tracker::clock::{Clock, Nanos};

/// The pause after an error. It doubles up to [`MAX_RETRY_BACKOFF`].
const RETRY_BACKOFF: Duration = Duration::from_millis(250);
pub(super) const MAX_RETRY_BACKOFF: Duration = Duration::from_millis(500);

/// In a drain, the attempts of one call, and the attempts to reconnect.
pub(super) const MAX_ATTEMPTS_IN_DRAIN: u32 = 3;

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
