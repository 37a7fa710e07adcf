//! What the handle does by itself: the cap, idle expiry, and the choice of what a stop leaves to live on.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crate::{
    lifecycle::ActiveSessions,
    session::Phase,
    tracker::{
        EndedBy, Generation, Tracker,
        clock::{Clock, Nanos, Tick, nanos},
    },
};

/// After so many shards the driver lets others have its thread.
const SHARDS_PER_YIELD: usize = 64;

impl ActiveSessions {
    /// To be called for every newcomer, once it is in the tracker.
    pub(crate) fn on_started(&self, generation: &Arc<Generation>) {
        // First insert, then read the phase: what no sweep has seen sees the phase itself.
        if self.inner.config.keep_if.is_some() && self.phase() >= Phase::Closing {
            self.drain_one(generation);
        }
        self.expire_if_nobody_drives();
    }

    /// Ends this very generation because of the stop, or keeps it, as the user likes.
    pub(crate) fn drain_one(&self, generation: &Arc<Generation>) {
        let tracker = &self.inner.pool.tracker;
        let reason = tracker.stop_reason();
        let keep = self.inner.config.keep_if.as_ref().is_some_and(|keep_if| {
            catch_unwind(AssertUnwindSafe(|| keep_if(&generation.session(), reason))).unwrap_or_else(|_| {
                tracing::warn!(
                    name: "session-keep-if-panicked",
                    session = %generation.id.redacted(),
                    "`keep_if` panicked; the session is ended",
                );
                false
            })
        });
        if keep {
            tracker.keep(generation);
        } else {
            self.end_generation(generation, reason, EndedBy::Detach);
        }
    }

    /// Ends or keeps every session of one shard because of the stop, and says how many there were. With `spare_work`,
    /// those with a request that is not over are left alone.
    pub(crate) fn drain_shard(&self, shard: usize, spare_work: bool) -> usize {
        let tracker = &self.inner.pool.tracker;
        if self.inner.config.keep_if.is_none() {
            return tracker.sweep(shard, tracker.stop_reason(), spare_work);
        }
        let active = tracker.active_of(shard);
        active
            .iter()
            .filter(|generation| !(spare_work && generation.has_work()))
            .for_each(|generation| self.drain_one(generation));
        active.len()
    }

    /// Evicts one for the newcomer, if there are too many.
    pub(crate) fn enforce_max_sessions(&self, newcomer: &Arc<Generation>) {
        if self.len() > self.inner.config.max_sessions && !self.inner.pool.tracker.evict(newcomer) {
            self.inner.warned.over_the_cap.call_once(|| {
                tracing::warn!(
                    name: "session-cap-exceeded",
                    max_sessions = self.inner.config.max_sessions,
                    "more sessions than `max_sessions`, and none of them at rest; this is said once",
                );
            });
        }
    }

    /// The time for the activity of a session: coarse where somebody, or something, moves it on.
    pub(crate) fn tick(&self) -> Tick {
        let tracker = &self.inner.pool.tracker;
        match self.inner.config.idle_timeout {
            None => tracker.tick(),
            // The driver's last step may be a period ago: rather too late than too early.
            Some(timeout) if self.inner.driven.load(Ordering::Relaxed) => {
                tracker.tick().wrapping_add(Clock::ticks(Self::expiry_period(timeout)))
            }
            Some(_) => Clock::tick(tracker.clock.now()),
        }
    }

    fn expiry_period(timeout: Duration) -> Duration {
        (timeout / 32).clamp(Duration::from_millis(10), Duration::from_secs(10))
    }

    /// Idle expiry and the registry's lease, for as long as it is polled.
    pub(crate) async fn drive(&self) -> Infallible {
        tokio::select! {
            never = self.drive_expiry() => never,
            never = self.drive_registry() => never,
        }
    }

    /// One of several drivers does the work.
    pub(crate) async fn drive_expiry(&self) -> Infallible {
        let Some(timeout) = self.inner.config.idle_timeout else { return std::future::pending().await };
        let period = Self::expiry_period(timeout);
        let mut lease = None;
        loop {
            tokio::time::sleep(period).await;
            if lease.is_none() {
                lease = Lease::take(self);
            }
            if lease.is_some() {
                for _ in 0..Tracker::shards().div_ceil(SHARDS_PER_YIELD) {
                    let now = self.inner.pool.tracker.clock.now();
                    self.inner.pool.tracker.set_tick(now);
                    self.inner.pool.tracker.expire(SHARDS_PER_YIELD, now, Clock::ticks(timeout));
                    self.inner.pool.wake();
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Without a driver, births do its work, a few shards at a time.
    fn expire_if_nobody_drives(&self) {
        let Some(timeout) = self.inner.config.idle_timeout else { return };
        if self.inner.driven.load(Ordering::Relaxed) {
            return;
        }
        let tracker = &self.inner.pool.tracker;
        let now = tracker.clock.now();
        let due = self.inner.expiry_due.load(Ordering::Relaxed);
        if now < due {
            return;
        }
        let period = nanos(Self::expiry_period(timeout));
        let (shards, step) = Self::overdue(now - due, period);
        let next = now.saturating_add(step);
        if self.inner.expiry_due.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracker.expire(shards, now, Clock::ticks(timeout));
            // Whoever has built the handle a moment ago may still be about to drive it.
            if now > nanos(timeout).saturating_add(5_000_000_000) {
                self.inner.warned.undriven.call_once(|| {
                    tracing::warn!(
                        name: "session-expiry-undriven",
                        "idle expiry is on, and nobody polls `shutdown_on`: sessions expire only as others begin; said once",
                    );
                });
            }
        }
    }

    /// How many shards have come due, at one round a period, and when the next one will.
    fn overdue(late: Nanos, period: Nanos) -> (usize, Nanos) {
        let step = (period / Tracker::shards() as u64).max(1);
        let shards = (late / step).saturating_add(1).min(Tracker::shards() as u64);
        (shards as usize, step)
    }
}

/// The right to drive.
struct Lease(ActiveSessions);

impl Lease {
    fn take(sessions: &ActiveSessions) -> Option<Self> {
        let is_free = !sessions.inner.driven.swap(true, Ordering::SeqCst);
        is_free.then(|| Self(sessions.clone()))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.inner.driven.store(false, Ordering::SeqCst);
    }
}
