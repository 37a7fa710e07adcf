//! Claims over many shards: the drain, idle expiry, `max_sessions`.

use std::{sync::Arc, time::Duration};

use super::{
    PendingEnd, SHARDS, Tracker,
    clock::{Clock, Nanos, nanos},
    generation::{Generation, Scope},
    order::AfterUnlock,
    shard::Shard,
};
use crate::{
    observability::ReleaseCause,
    session::EndReason,
    sync::{Mutex, Ordering, lock},
};

/// Up to this many sessions, an eviction finds the longest idle one exactly, by a scan.
const EXACT_LRU_MAX: usize = 256;

/// With more sessions, an eviction takes the longest idle one of a sample of this size.
const EVICTION_SAMPLE: usize = 16;

/// The chosen session may become busy or be claimed before the eviction claims it. Then another one is chosen.
const EVICTION_ATTEMPTS: usize = 8;

/// When a session ends by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpiryLimits {
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) max_lifetime: Option<Duration>,
    pub(crate) streams_are_activity: bool,
}

impl ExpiryLimits {
    fn reason(&self, generation: &Generation, now: Nanos) -> Option<EndReason> {
        if let Some(max_lifetime) = self.max_lifetime
            && now.saturating_sub(generation.started_at) >= nanos(max_lifetime)
            && generation.await_quiet()
        {
            return Some(EndReason::Expired);
        }
        let idle_timeout = self.idle_timeout?;
        let is_idle = generation.is_idle(self.streams_are_activity)
            && generation.idle_for(Clock::tick(now)) >= Clock::ticks(idle_timeout);
        is_idle.then_some(EndReason::Idle)
    }
}

impl Tracker {
    /// Claims every active generation silently, and returns how many there were.
    pub(crate) fn forget_all(&self) -> usize {
        self.claim_each(0..SHARDS, |tracker, shard, generation, after_unlock| {
            tracker.claim_silently(
                shard,
                tracker.hash_of(generation),
                generation,
                ReleaseCause::Forgotten,
                after_unlock,
            );
        })
    }

    /// The number of shards, for [`sweep`](Self::sweep).
    pub(crate) const fn shard_count() -> usize {
        SHARDS
    }

    /// Ends every active generation of one shard, and returns how many there were. With `spare_work`, generations with
    /// work are not ended.
    pub(crate) fn sweep(&self, shard: usize, reason: EndReason, spare_work: bool) -> usize {
        let at = self.clock.now();
        let end = || PendingEnd { reason, next: None, at, scope: Scope::Here, redelivery: None };
        if spare_work || !self.has_end {
            return self.claim_each(shard..shard + 1, |tracker, shard, generation, after_unlock| {
                if !(spare_work && generation.keeps_drain_waiting()) {
                    shard.count_at_work(generation);
                    tracker.claim_with_end(shard, tracker.hash_of(generation), generation, end(), after_unlock);
                }
            });
        }
        let mut after_unlock = AfterUnlock::default();
        let claimed = {
            let mut shard = lock(&self.shards[shard]);
            let all = shard.claim_all(|generation| self.hash_of(generation));
            after_unlock.jobs = Some(Vec::with_capacity(all.len()));
            for generation in &all {
                shard.count_at_work(generation);
                self.claim_with_end(&mut shard, self.hash_of(generation), generation, end(), &mut after_unlock);
            }
            self.queue.push_all(after_unlock.jobs.take().unwrap_or_default());
            all.len()
        };
        self.apply_after_unlock(after_unlock);
        claimed
    }

    /// Ends exactly this generation because of a drain. Returns false if it has been claimed already, or has work that is
    /// to be spared.
    pub(crate) fn claim_in_drain(&self, generation: &Arc<Generation>, reason: EndReason, spare_work: bool) -> bool {
        self.claim_exactly(generation, is_drained(spare_work), |shard, hash, after_unlock| {
            shard.count_at_work(generation);
            self.claim_with_end(shard, hash, generation, self.pending_end(reason, Scope::Here), after_unlock);
        })
    }

    /// The active generations of one shard, for a drain with `keep_if`.
    pub(crate) fn active_in(&self, shard: usize) -> Vec<Arc<Generation>> {
        lock(&self.shards[shard]).active().cloned().collect()
    }

    /// Releases exactly this generation, because `keep_if` said so. Returns false if it has been claimed already, or has
    /// work that is to be spared.
    pub(crate) fn keep(&self, generation: &Arc<Generation>, spare_work: bool) -> bool {
        self.claim_exactly(generation, is_drained(spare_work), |shard, hash, after_unlock| {
            self.claim_silently(shard, hash, generation, ReleaseCause::Kept, after_unlock);
        })
    }

    /// Ends the sessions of the next `shards` shards that are idle or old enough. Calls go round through all shards.
    pub(crate) fn expire(&self, shards: usize, now: Nanos, limits: &ExpiryLimits) {
        for _ in 0..shards.min(SHARDS) {
            let next = self.next_to_expire.fetch_add(1, Ordering::Relaxed) % SHARDS;
            self.claim_each(next..next + 1, |tracker, shard, generation, after_unlock| {
                if let Some(reason) = limits.reason(generation, now) {
                    let end = tracker.pending_end(reason, Scope::Here);
                    tracker.claim_with_end(shard, tracker.hash_of(generation), generation, end, after_unlock);
                }
            });
        }
    }

    /// Ends this generation if it is older than its lifetime and has no work. Returns false if not.
    pub(crate) fn expire_overdue(&self, generation: &Arc<Generation>) -> bool {
        self.claim_if(generation, EndReason::Expired, Scope::Here, |generation| {
            generation.is_overdue() && !generation.has_work()
        })
    }

    /// Ends one idle session other than `new`, about the longest idle one. Returns false if all others are busy.
    pub(crate) fn evict(&self, new: &Arc<Generation>, streams_are_activity: bool) -> bool {
        let is_idle = |generation: &Generation| generation.is_idle(streams_are_activity);
        let now = Clock::tick(self.clock.now());
        for _ in 0..EVICTION_ATTEMPTS {
            let candidates =
                if self.len() <= EXACT_LRU_MAX { self.idle_generations(is_idle) } else { self.sample_idle(is_idle) };
            let others = candidates.into_iter().filter(|generation| !Arc::ptr_eq(generation, new));
            let Some(longest_idle) = others.max_by_key(|generation| generation.idle_for(now)) else { return false };
            if self.claim_if(&longest_idle, EndReason::Evicted, Scope::Here, is_idle) {
                return true;
            }
        }
        false
    }

    fn idle_generations(&self, is_idle: impl Fn(&Generation) -> bool) -> Vec<Arc<Generation>> {
        let all = |shard: &Mutex<Shard>| {
            lock(shard).active().filter(|generation| is_idle(generation)).cloned().collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(all).collect()
    }

    /// Up to [`EVICTION_SAMPLE`] idle sessions of one shard, and of the next ones if it has fewer.
    fn sample_idle(&self, is_idle: impl Fn(&Generation) -> bool) -> Vec<Arc<Generation>> {
        // Ids are spread by a keyed hash, so consecutive shards are a random sample.
        let first = self.next_to_evict.fetch_add(1, Ordering::Relaxed);
        let mut sample = Vec::with_capacity(EVICTION_SAMPLE);
        for offset in 0..SHARDS {
            let shard = lock(&self.shards[(first + offset) % SHARDS]);
            let buckets = shard.active.num_buckets();
            let begin = first.wrapping_mul(0x9E37_79B9) % buckets.max(1);
            let bucket = |index: usize| shard.active.get_bucket((begin + index) % buckets.max(1));
            let idle = (0..buckets).filter_map(bucket).filter(|generation| is_idle(generation));
            sample.extend(idle.take(EVICTION_SAMPLE - sample.len()).cloned());
            if sample.len() == EVICTION_SAMPLE {
                break;
            }
        }
        sample
    }

    fn claim_each(
        &self,
        shards: std::ops::Range<usize>,
        claim: impl Fn(&Self, &mut Shard, &Arc<Generation>, &mut AfterUnlock),
    ) -> usize {
        let mut claimed = 0;
        for shard in &self.shards[shards] {
            let mut after_unlock = AfterUnlock::default();
            {
                let mut shard = lock(shard);
                let active: Vec<_> = shard.active().cloned().collect();
                claimed += active.len();
                for generation in &active {
                    claim(self, &mut shard, generation, &mut after_unlock);
                }
            }
            self.apply_after_unlock(after_unlock);
        }
        claimed
    }
}

/// Whether a drain ends or keeps a generation now. Work may have begun since the caller looked.
fn is_drained(spare_work: bool) -> impl FnOnce(&Generation) -> bool {
    move |generation| !(spare_work && generation.keeps_drain_waiting())
}

impl Shard {
    /// Must be called for each generation that a drain ends, before its claim.
    #[inline]
    fn count_at_work(&mut self, generation: &Generation) {
        self.counts.at_work += u64::from(generation.keeps_drain_waiting());
    }
}
