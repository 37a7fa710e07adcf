//! Claims that go through the shards: the drain, idle expiry, the cap.

use std::sync::Arc;

use super::{
    By, Ending, SHARDS, Tracker,
    chain::Released,
    clock::{Clock, Nanos, Tick},
    entry::{Entry, Scope},
    shard::Shard,
};
use crate::{
    session::EndReason,
    sync::{Mutex, Ordering, lock},
};

/// Below so many sessions, the longest idle is found by looking at all of them.
const SMALL: usize = 256;

/// Beyond it, the longest idle of so many is good enough.
const SAMPLE: usize = 16;

impl Tracker {
    /// Claims every active generation silently, and says how many there were.
    pub(crate) fn forget_all(&self) -> usize {
        self.claim_each(0..SHARDS, |tracker, shard, entry, released| {
            tracker.disown(shard, tracker.hash_of(entry), entry, false, released);
        })
    }

    /// The number of shards, for [`sweep`](Self::sweep).
    pub(crate) const fn shards() -> usize {
        SHARDS
    }

    /// Ends every active generation of one shard, and says how many there were. With `spare_work`, those with a
    /// request that is not over are left alone.
    pub(crate) fn sweep(&self, shard: usize, reason: EndReason, spare_work: bool) -> usize {
        let at = self.clock.now();
        let ending = || Ending { reason, next: None, at, scope: Scope::Here };
        if spare_work || !self.has_end {
            return self.claim_each(shard..shard + 1, |tracker, shard, entry, released| {
                if !(spare_work && entry.has_work()) {
                    tracker.owe(shard, tracker.hash_of(entry), entry, ending(), released);
                }
            });
        }
        let mut released = Released::default();
        let claimed = {
            let mut shard = lock(&self.shards[shard]);
            let all = shard.claim_all(|entry| self.hash_of(entry));
            released.jobs = Some(Vec::with_capacity(all.len()));
            for entry in &all {
                self.owe(&mut shard, self.hash_of(entry), entry, ending(), &mut released);
            }
            self.queue.push_all(released.jobs.take().unwrap_or_default());
            all.len()
        };
        self.release(released);
        claimed
    }

    /// The active generations of one shard, for a drain that asks the user about each.
    pub(crate) fn active_of(&self, shard: usize) -> Vec<Arc<Entry>> {
        lock(&self.shards[shard]).active().cloned().collect()
    }

    /// Forgets this very generation; false if somebody else has claimed it.
    pub(crate) fn keep(&self, entry: &Arc<Entry>) -> bool {
        let mut released = Released::default();
        let kept = {
            let hash = self.hash_of(entry);
            let mut shard = self.shard(hash);
            let is_active = entry.is_active();
            if is_active {
                self.disown(&mut shard, hash, entry, true, &mut released);
            }
            is_active
        };
        self.release(released);
        kept
    }

    /// Ends what has been silent for `timeout` in the next few shards; all of them come in turn.
    pub(crate) fn expire(&self, shards: usize, now: Nanos, timeout: Tick) {
        for _ in 0..shards.min(SHARDS) {
            let next = self.next_to_expire.fetch_add(1, Ordering::Relaxed) % SHARDS;
            self.claim_each(next..next + 1, |tracker, shard, entry, released| {
                if entry.is_at_rest() && entry.silent_for(Clock::tick(now)) >= timeout {
                    let ending = tracker.ending(EndReason::Idle, Scope::Here);
                    tracker.owe(shard, tracker.hash_of(entry), entry, ending, released);
                }
            });
        }
    }

    /// Ends about the longest idle of the sessions that nothing keeps busy, other than `newcomer`; false if all are
    /// busy.
    pub(crate) fn evict(&self, newcomer: &Arc<Entry>) -> bool {
        let now = Clock::tick(self.clock.now());
        // Whom we find may be busy or gone by the time that we claim it: then look again, a few times.
        for _ in 0..8 {
            let candidates = if self.len() <= SMALL { self.evictable() } else { self.sample() };
            let others = candidates.into_iter().filter(|entry| !Arc::ptr_eq(entry, newcomer));
            let Some(idlest) = others.max_by_key(|entry| entry.silent_for(now)) else { return false };
            if self.claim_if(&idlest, EndReason::Evicted, By::LettingGo, Entry::is_at_rest) {
                return true;
            }
        }
        false
    }

    fn evictable(&self) -> Vec<Arc<Entry>> {
        let all =
            |shard: &Mutex<Shard>| lock(shard).active().filter(|entry| entry.is_at_rest()).cloned().collect::<Vec<_>>();
        self.shards.iter().flat_map(all).collect()
    }

    /// Some sessions from a shard, and from the ones behind it if that has too few.
    fn sample(&self) -> Vec<Arc<Entry>> {
        // Shards are filled by a keyed hash: one after the other is as good as at random.
        let first = self.next_to_evict.fetch_add(1, Ordering::Relaxed);
        let mut sample = Vec::with_capacity(SAMPLE);
        for offset in 0..SHARDS {
            let shard = lock(&self.shards[(first + offset) % SHARDS]);
            let buckets = shard.table.num_buckets();
            let begin = first.wrapping_mul(0x9E37_79B9) % buckets.max(1);
            let bucket = |index: usize| shard.table.get_bucket((begin + index) % buckets.max(1));
            let at_rest = (0..buckets).filter_map(bucket).filter(|entry| entry.is_at_rest());
            sample.extend(at_rest.take(SAMPLE - sample.len()).cloned());
            if sample.len() == SAMPLE {
                break;
            }
        }
        sample
    }

    fn claim_each(
        &self,
        shards: std::ops::Range<usize>,
        claim: impl Fn(&Self, &mut Shard, &Arc<Entry>, &mut Released),
    ) -> usize {
        let mut claimed = 0;
        for shard in &self.shards[shards] {
            let mut released = Released::default();
            {
                let mut shard = lock(shard);
                let active: Vec<_> = shard.active().cloned().collect();
                claimed += active.len();
                for entry in &active {
                    claim(self, &mut shard, entry, &mut released);
                }
            }
            self.release(released);
        }
        claimed
    }
}
