//! One monotonic clock for the handle, in nanoseconds since it was made; tokio's, so that tests can pause it.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A point on the handle's clock.
pub(crate) type Nanos = u64;

/// A coarse point, 10 ms apart, for what need not be exact. Wraps around.
pub(crate) type Tick = u32;

const NANOS_PER_TICK: u64 = 10_000_000;

/// The point that never comes.
pub(crate) const NEVER: Nanos = Nanos::MAX;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
    wall: SystemTime,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now(), wall: SystemTime::now() }
    }

    #[inline]
    pub(crate) fn now(&self) -> Nanos {
        nanos(self.origin.elapsed())
    }

    pub(crate) const fn tick(at: Nanos) -> Tick {
        (at / NANOS_PER_TICK) as Tick
    }

    /// A time span in ticks, rounded up.
    pub(crate) fn ticks(span: Duration) -> Tick {
        Tick::try_from(nanos(span).div_ceil(NANOS_PER_TICK)).unwrap_or(Tick::MAX)
    }

    /// The point at `after` from `now`, or [`NEVER`] where that is out of reach.
    pub(crate) fn add(now: Nanos, after: Duration) -> Nanos {
        now.saturating_add(nanos(after))
    }

    pub(crate) fn instant(&self, at: Nanos) -> Option<Instant> {
        (at != NEVER).then(|| self.origin.checked_add(Duration::from_nanos(at))).flatten()
    }

    pub(crate) fn wall(&self, at: Nanos) -> SystemTime {
        self.wall + Duration::from_nanos(at)
    }
}

pub(crate) fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}
