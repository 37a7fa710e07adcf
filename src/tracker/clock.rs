//! The handle's monotonic clock, in nanoseconds since the handle was built. It is tokio's clock, which tests can pause.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A point on the handle's clock.
pub(crate) type Nanos = u64;

/// A coarse point on the same clock, in units of 10 ms. Wraps around after 497 days.
pub(crate) type Tick = u32;

const NANOS_PER_TICK: u64 = 10_000_000;

/// No point in time is this late.
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

    /// A duration in ticks, rounded up.
    pub(crate) fn ticks(span: Duration) -> Tick {
        Tick::try_from(nanos(span).div_ceil(NANOS_PER_TICK)).unwrap_or(Tick::MAX)
    }

    /// `now` plus `delay`, or [`NEVER`] on overflow.
    pub(crate) fn add(now: Nanos, delay: Duration) -> Nanos {
        now.saturating_add(nanos(delay))
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
