//! Policies of a handle: idle expiry, lifetime, doubt, `max_sessions`, and `keep_if` in a drain.

use std::{
    convert::Infallible,
    sync::{
        Arc, Once,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    hooks::Pool,
    panic::catch,
    session::{EndReason, Phase, Session},
    sync::wait_for,
    tracker::{
        Activity, ExpiryLimits, Generation, Tracker,
        clock::{Clock, Nanos, Tick, nanos},
    },
};

/// The driver yields after this many shards.
const SHARDS_PER_YIELD: usize = 64;

/// The driver looks at each session so often within its timeout.
const PERIODS_PER_TIMEOUT: u32 = 32;

/// The driver looks again after this time, if no clock reaches the end of a doubt.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// A warning is logged if a handle has no driver this long after the first `idle_timeout`.
const UNDRIVEN_GRACE: Nanos = 5_000_000_000;

/// Whether a drain keeps the session.
pub(crate) type KeepIf = Box<dyn Fn(&Session, EndReason) -> bool + Send + Sync>;

pub(crate) struct HousekeeperConfig {
    pub(crate) expiry: ExpiryLimits,
    /// `None`: no doubt ends a session.
    pub(crate) doubt_timeout: Option<Duration>,
    pub(crate) max_sessions: usize,
    pub(crate) keep_if: Option<KeepIf>,
}

pub(crate) struct Housekeeper {
    tracker: Arc<Tracker>,
    pool: Arc<Pool>,
    config: HousekeeperConfig,
    /// A driver holds the [`DriverPermit`].
    driven: AtomicBool,
    /// Without a driver: when the next shards are due for expiry.
    expiry_due: AtomicU64,
    undriven: Once,
    over_max_sessions: Once,
}

impl Housekeeper {
    pub(crate) fn new(tracker: Arc<Tracker>, pool: Arc<Pool>, config: HousekeeperConfig) -> Arc<Self> {
        Arc::new(Self {
            tracker,
            pool,
            config,
            driven: AtomicBool::new(false),
            expiry_due: AtomicU64::new(0),
            undriven: Once::new(),
            over_max_sessions: Once::new(),
        })
    }

    /// Must be called for every new generation, after it was inserted into the tracker.
    pub(crate) fn on_started(&self, generation: &Arc<Generation>) {
        // The insertion comes before this read of the phase. If no sweep saw the generation, the phase is set here.
        if self.config.keep_if.is_some() && self.tracker.phase() >= Phase::Closing {
            self.drain_one(generation, false);
        }
        self.expire_if_undriven();
        if self.doubt_due().is_some_and(|due| due <= self.tracker.clock.now()) {
            self.resolve_doubts();
        }
    }

    /// Ends one activity of this generation, and what has waited for the end of its work. The idle time counts from here.
    #[inline]
    pub(crate) fn end_activity(&self, generation: &Arc<Generation>, activity: Activity) {
        generation.touch(self.tick());
        // The activity ends before the phase is read. A drain that still found work here had stored the phase before.
        if generation.end_activity(activity, || self.tracker.phase() >= Phase::Closing) {
            self.on_work_over(generation);
        }
    }

    /// Must be called when the last work of a generation is over.
    #[cold]
    fn on_work_over(&self, generation: &Arc<Generation>) {
        let is_closing = || self.tracker.phase() >= Phase::Closing;
        let mut over = Some(Arc::clone(generation));
        while let Some(generation) = over.take() {
            over = generation.take_successor_with_work().filter(|successor| {
                successor.touch(self.tick());
                successor.end_activity(Activity::Work, is_closing)
            });
            if !generation.is_active() {
                continue;
            }
            if is_closing() {
                self.drain_one(&generation, true);
            } else if self.tracker.expire_overdue(&generation) {
                self.pool.wake();
            }
        }
    }

    /// From now on no drain waits for the work of this generation.
    pub(crate) fn exempt_work(&self, generation: &Arc<Generation>) {
        generation.exempt_work();
        if self.tracker.phase() >= Phase::Closing {
            self.drain_one(generation, true);
        }
    }

    /// Doubts exactly this generation, unless no doubt ends a session.
    pub(crate) fn doubt(&self, generation: &Arc<Generation>) {
        if self.config.doubt_timeout.is_some() {
            self.tracker.doubt(generation);
        }
    }

    /// Ends exactly this generation because of the shutdown, or releases it as kept if `keep_if` returns true. With
    /// `spare_work`, one with work is left: its end comes with that of the work.
    pub(crate) fn drain_one(&self, generation: &Arc<Generation>, spare_work: bool) {
        if !generation.is_active() || (spare_work && generation.keeps_drain_waiting()) {
            return;
        }
        let reason = self.tracker.shutdown_reason();
        let keep = self.config.keep_if.as_ref().is_some_and(|keep_if| {
            catch(|| keep_if(&generation.session(), reason)).unwrap_or_else(|_| {
                tracing::warn!(
                    name: "session-keep-if-panicked",
                    session = %generation.id.redacted(),
                    "`keep_if` panicked; the session is ended",
                );
                false
            })
        });
        if keep {
            self.tracker.keep(generation, spare_work);
        } else if self.tracker.claim_in_drain(generation, reason, spare_work) {
            self.pool.wake();
        }
    }

    /// Without `keep_if`: ends every session of one shard because of the shutdown, and returns how many there were. With
    /// `spare_work`, sessions with work are skipped.
    pub(crate) fn drain_shard(&self, shard: usize, spare_work: bool) -> usize {
        self.tracker.sweep(shard, self.tracker.shutdown_reason(), spare_work)
    }

    /// Whether a drain asks `keep_if` about each session, by [`drain_one`](Self::drain_one).
    pub(crate) const fn asks_keep_if(&self) -> bool {
        self.config.keep_if.is_some()
    }

    /// Evicts one session other than `new`, if there are more than `max_sessions`.
    pub(crate) fn enforce_max_sessions(&self, new: &Arc<Generation>) {
        let max_sessions = self.config.max_sessions;
        if self.tracker.len() > max_sessions && !self.tracker.evict(new, self.config.expiry.streams_are_activity) {
            self.over_max_sessions.call_once(|| {
                tracing::warn!(
                    name: "session-cap-exceeded",
                    max_sessions,
                    "there are more sessions than `max_sessions`, and none is idle (logged once)",
                );
            });
        }
    }

    /// The tick of an activity. With a driver it is read without asking the clock.
    #[inline]
    fn tick(&self) -> Tick {
        match self.config.expiry.idle_timeout {
            None => self.tracker.tick(),
            // The driver's last step may be one period ago: expiry may come too late, never too early.
            Some(timeout) if self.driven.load(Ordering::Relaxed) => {
                self.tracker.tick().wrapping_add(Clock::ticks(Self::expiry_period(timeout)))
            }
            Some(_) => Clock::tick(self.tracker.clock.now()),
        }
    }

    fn expiry_period(timeout: Duration) -> Duration {
        (timeout / PERIODS_PER_TIMEOUT).clamp(Duration::from_millis(10), Duration::from_secs(10))
    }

    /// The time between two looks at a session.
    fn sweep_period(&self) -> Option<Duration> {
        let ExpiryLimits { idle_timeout, max_lifetime, streams_are_activity: _ } = self.config.expiry;
        idle_timeout.into_iter().chain(max_lifetime).min().map(Self::expiry_period)
    }

    /// Expiry and doubts, while it is polled.
    pub(crate) async fn drive(self: &Arc<Self>) -> Infallible {
        tokio::select! {
            biased;
            never = self.drive_expiry() => never,
            never = self.drive_doubts() => never,
        }
    }

    async fn drive_doubts(&self) -> Infallible {
        if self.config.doubt_timeout.is_none() {
            return std::future::pending().await;
        }
        loop {
            wait_for(&self.tracker.doubted, None, || self.doubt_due().is_some()).await;
            match self.doubt_due().and_then(|due| self.tracker.clock.instant(due)) {
                Some(due) => tokio::time::sleep_until(due).await,
                // No clock gets there, or another driver was faster.
                None => tokio::time::sleep(LONGEST_SLEEP).await,
            }
            self.resolve_doubts();
        }
    }

    /// When the oldest doubt ends its session.
    #[inline]
    fn doubt_due(&self) -> Option<Nanos> {
        Some(Clock::add(self.tracker.oldest_doubt()?, self.config.doubt_timeout?))
    }

    fn resolve_doubts(&self) {
        if let Some(timeout) = self.config.doubt_timeout {
            self.tracker.resolve_doubts(timeout, self.config.expiry.streams_are_activity);
            self.pool.wake();
        }
    }

    /// Of several drivers, one holds the permit and works.
    async fn drive_expiry(self: &Arc<Self>) -> Infallible {
        let Some(period) = self.sweep_period() else { return std::future::pending().await };
        let mut permit = None;
        loop {
            tokio::time::sleep(period).await;
            if permit.is_none() {
                permit = DriverPermit::acquire(self);
            }
            if permit.is_some() {
                for _ in 0..Tracker::shard_count().div_ceil(SHARDS_PER_YIELD) {
                    let now = self.tracker.clock.now();
                    self.tracker.set_tick(now);
                    self.tracker.expire(SHARDS_PER_YIELD, now, &self.config.expiry);
                    self.pool.wake();
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Without a driver, each start expires the shards that are due.
    fn expire_if_undriven(&self) {
        let Some(period) = self.sweep_period() else { return };
        if self.driven.load(Ordering::Relaxed) {
            return;
        }
        let now = self.tracker.clock.now();
        let due = self.expiry_due.load(Ordering::Relaxed);
        if now < due {
            return;
        }
        let (shards, step) = Self::overdue(now - due, nanos(period));
        let next = now.saturating_add(step);
        if self.expiry_due.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.tracker.expire(shards, now, &self.config.expiry);
            // A new handle may not be driven yet.
            if now > nanos(period).saturating_mul(PERIODS_PER_TIMEOUT.into()).saturating_add(UNDRIVEN_GRACE) {
                self.undriven.call_once(|| {
                    tracing::warn!(
                        name: "session-expiry-undriven",
                        "`idle_timeout` or `max_lifetime` is set but no `shutdown_on` future is being polled: sessions \
                         expire only when others start (logged once)",
                    );
                });
            }
        }
    }

    /// The number of shards that are due, and the time per shard. All shards come due once per period.
    fn overdue(late: Nanos, period: Nanos) -> (usize, Nanos) {
        let step = (period / Tracker::shard_count() as u64).max(1);
        let shards = (late / step).saturating_add(1).min(Tracker::shard_count() as u64);
        (shards as usize, step)
    }
}

/// The permit of the one driver that works.
struct DriverPermit(Arc<Housekeeper>);

impl DriverPermit {
    fn acquire(housekeeper: &Arc<Housekeeper>) -> Option<Self> {
        let is_free = !housekeeper.driven.swap(true, Ordering::SeqCst);
        is_free.then(|| Self(Arc::clone(housekeeper)))
    }
}

impl Drop for DriverPermit {
    fn drop(&mut self) {
        self.0.driven.store(false, Ordering::SeqCst);
    }
}
