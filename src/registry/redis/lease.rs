//! Whether the lease certainly still runs, by this process's own clocks.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct DualClock {
    /// Never jumps, but stands still while the machine is suspended.
    monotonic: Instant,
    /// Goes on then, but may be set.
    wall: SystemTime,
}

impl DualClock {
    pub(super) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// How long ago, by whichever clock says more. A wall clock that was set back says nothing.
    fn elapsed(self) -> Duration {
        self.monotonic.elapsed().max(self.wall.elapsed().unwrap_or_default())
    }
}

/// The last renewal that is known to have been done.
#[derive(Debug, Default)]
pub(super) struct Lease {
    asked: Mutex<Option<DualClock>>,
}

impl Lease {
    /// It was renewed, some time after `asked`.
    pub(super) fn renewed(&self, asked: DualClock) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
    }

    pub(super) fn lost(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// True if a lease of this length is not over yet, with a tenth of it to spare: no two clocks go alike.
    pub(super) fn lease_is_valid(&self, length: Duration) -> bool {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.is_some_and(|asked| asked.elapsed() < length - length / 10)
    }
}
