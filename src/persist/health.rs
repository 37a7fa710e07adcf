//! How the registry answers: in time, slowly, or not at all.
//!
//! Slow is not down. While calls take longer than a start may wait, starts do not wait, and everything is written later.

use std::{fmt, time::Duration};

use super::{Calls, MAX_START_WAIT, Persister, redelivery::HOLD_AGAIN_AFTER};
use crate::{
    observability::escape_controls,
    sync::Ordering,
    tracker::{
        Generation,
        clock::{Clock, Nanos},
    },
};

/// After a slow call, starts do not wait for this time, so that a registry that is slow now and then does not flap.
const SLOW_FOR: Duration = Duration::from_secs(5);

/// For this time after its note, a session that has no record may ask for one before it creates it.
const MAX_FINDING: Duration = Duration::from_secs(6);

/// A process that has just started, or has stood still, may have missed an outage. Within this time, the other ones have recorded
/// what they made in it, as after [`HOLD_AGAIN_AFTER`].
pub(super) const SETTLING: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Health {
    InTime = 0,
    Slow = 1,
    Down = 2,
}

impl Persister {
    /// Whether starts do not wait for the registry.
    pub(crate) fn is_degraded(&self) -> bool {
        self.health.load(Ordering::SeqCst) != Health::InTime as u8
    }

    pub(super) fn is_down(&self) -> bool {
        self.health.load(Ordering::SeqCst) == Health::Down as u8
    }

    pub(crate) fn degradations(&self) -> u64 {
        self.degradations.load(Ordering::Relaxed)
    }

    /// Whether an id that came with a request is joined before a record is created for it: another process may have made it in
    /// an outage, and not recorded it yet. Without replicas there is no such process, and a drain has no time for it.
    pub(super) fn finds_first(&self) -> bool {
        let is_troubled = self.is_down() || self.tracker.clock.now() < self.troubled_until.load(Ordering::SeqCst);
        is_troubled && self.hand_over_on_outage && !self.is_draining()
    }

    /// A session that had no record [`HOLD_AGAIN_AFTER`] ago is recorded now: if there was trouble since then, in which others
    /// could not record what they had made, it asks for a record once more before it creates one. After [`MAX_FINDING`] it asks no
    /// more, so a registry that is always in trouble does not hold it up for longer.
    pub(super) fn find_again_or_create(&self, generation: &Generation) {
        // The heartbeat of this moment may not have been sent yet.
        self.note_standstill();
        let now = self.tracker.clock.now();
        let is_within = |time, since: Nanos| now < Clock::add(since, time);
        let last_trouble = self.last_trouble.load(Ordering::SeqCst);
        let finds_again = last_trouble != 0
            && is_within(HOLD_AGAIN_AFTER, last_trouble)
            && is_within(MAX_FINDING, generation.started_at)
            && self.finds_first();
        if !finds_again {
            generation.stop_finding();
        }
    }

    /// A late heartbeat shows that the process was stopped, or its threads were blocked: it may have missed an outage.
    pub(super) fn note_standstill(&self) {
        let last_heartbeat = self.last_heartbeat.load(Ordering::SeqCst);
        if last_heartbeat != 0 && self.is_heartbeat_overdue(self.tracker.clock.now()) {
            self.note_trouble(SETTLING);
        }
    }

    /// There is no record of an id that another process may have made. It may have made others, for which no one has asked yet.
    pub(super) fn on_not_found(&self) {
        self.extend_trouble(SLOW_FOR);
    }

    /// Other processes may not have been able to record what they made until now. They do so within this time.
    fn note_trouble(&self, time: Duration) {
        self.last_trouble.store(self.tracker.clock.now().max(1), Ordering::SeqCst);
        self.extend_trouble(time);
    }

    fn extend_trouble(&self, time: Duration) {
        self.troubled_until.fetch_max(Clock::add(self.tracker.clock.now(), time), Ordering::SeqCst);
    }

    /// A start has waited in vain.
    pub(super) fn on_late_record(&self) {
        self.on_call(MAX_START_WAIT + Duration::from_nanos(1));
    }

    /// A call was answered after this time.
    pub(super) fn on_call(&self, took: Duration) {
        if took <= MAX_START_WAIT {
            return;
        }
        self.slow_until.store(Clock::add(self.tracker.clock.now(), SLOW_FOR), Ordering::SeqCst);
        self.note_trouble(SLOW_FOR);
        if self.worsen(Health::Slow) == Health::InTime as u8 {
            tracing::warn!(
                name: "session-registry-slow",
                "the session registry takes longer than {MAX_START_WAIT:?}; starts do not wait for their records until \
                 it has been fast for {SLOW_FOR:?}",
            );
        }
    }

    /// The registry does not answer.
    pub(super) fn degrade(&self, error: &dyn fmt::Display) {
        self.note_trouble(SLOW_FOR);
        if self.worsen(Health::Down) != Health::Down as u8 {
            tracing::warn!(
                name: "session-registry-degraded",
                error = %escape_controls(error),
                "the session registry is unavailable; sessions are kept in memory until it answers again",
            );
        }
    }

    /// Returns the health before.
    fn worsen(&self, health: Health) -> u8 {
        let before = self.health.fetch_max(health as u8, Ordering::SeqCst);
        if before == Health::InTime as u8 {
            self.degradations.fetch_add(1, Ordering::Relaxed);
            self.meter.degraded();
        }
        before
    }

    /// A call was answered, and no change waits for the registry.
    pub(super) fn restore(&self, calls: &mut Calls) {
        calls.breaker.reset();
        if !self.is_degraded() {
            return;
        }
        let is_slow = self.tracker.clock.now() < self.slow_until.load(Ordering::SeqCst);
        let health = if is_slow { Health::Slow } else { Health::InTime };
        let before = self.health.swap(health as u8, Ordering::SeqCst);
        if before != Health::InTime as u8 && health == Health::InTime {
            self.meter.restored();
            let missed = std::mem::take(&mut calls.missed);
            tracing::info!(
                name: "session-registry-restored",
                missed,
                "the session registry answers again in time; missed changes were written",
            );
        }
    }
}

impl Drop for Persister {
    fn drop(&mut self) {
        if self.is_degraded() {
            self.meter.restored();
        }
    }
}
