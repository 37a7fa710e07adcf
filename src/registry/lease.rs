//! Whether the lease is certainly still valid, by this process's own clocks.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// The monotonic and the wall clock, read together.
#[derive(Clone, Copy, Debug)]
pub(super) struct DualClock {
    /// Never jumps, but does not advance while the machine is suspended.
    monotonic: Instant,
    /// Advances during a suspend, but may be set.
    wall: SystemTime,
}

impl DualClock {
    pub(super) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// The longer of the two elapsed times. A wall clock that was set back counts as zero.
    fn elapsed(self) -> Duration {
        self.monotonic.elapsed().max(self.wall.elapsed().unwrap_or_default())
    }
}

/// The last confirmed renewal.
#[derive(Debug, Default)]
pub(super) struct Lease {
    asked: Mutex<Option<DualClock>>,
}

impl Lease {
    /// Records a renewal that happened after `asked`.
    pub(super) fn renewed(&self, asked: DualClock) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
    }

    pub(super) fn lost(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// True if a lease of this length has not expired, with a margin of 10 % for clock drift.
    pub(super) fn lease_is_valid(&self, length: Duration) -> bool {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.is_some_and(|asked| asked.elapsed() < length - length / 10)
    }
}
