//! Doubt: the host has answered as if the session did not exist. That may be the refusal of another user's request, so
//! it ends nothing by itself. The next success of the session takes the doubt back; without one, the session ends when
//! the doubt is older than the timeout.

use std::{sync::Arc, time::Duration};

use super::{
    Tracker,
    clock::{Nanos, nanos},
    generation::{Generation, Scope},
};
use crate::{
    session::EndReason,
    sync::{Ordering, lock},
};
impl Tracker {
    /// Doubts exactly this generation, if it is active and not doubted yet.
    #[cold]
    pub(crate) fn doubt(&self, generation: &Arc<Generation>) {
        // The time is read, and the queue changed, under this lock: so the queue is in order, with each generation once.
        let mut doubts = lock(&self.doubts);
        let now = self.clock.now();
        if generation.is_active() && generation.doubt(now) {
            doubts.push_back((Arc::clone(generation), now));
            self.doubt_count.store(doubts.len(), Ordering::SeqCst);
            drop(doubts);
            self.doubted.notify_waiters();
        }
    }

    /// When the oldest doubt began.
    #[inline]
    pub(crate) fn oldest_doubt(&self) -> Option<Nanos> {
        if self.doubt_count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        lock(&self.doubts).front().map(|(_, at)| *at)
    }

    /// Ends the sessions that are doubted for `timeout`. One with work or a guard is trusted again, and one with a
    /// listening stream too if these count as activity: its host would have ended it.
    pub(crate) fn resolve_doubts(&self, timeout: Duration, streams_are_activity: bool) {
        loop {
            let Some((generation, at)) = self.take_due_doubt(timeout) else { return };
            // In this order: a success takes the doubt back before its work ends.
            let is_silent =
                |generation: &Generation| generation.is_idle(streams_are_activity) && generation.is_doubted_since(at);
            if self.claim_if(&generation, EndReason::Unknown, Scope::Here, is_silent) {
                let hash = self.hash_of(&generation);
                self.shard(hash).tombstones.mark_doubt(hash);
            } else {
                generation.trust_since(at);
            }
        }
    }
    /// Whether the id is not active, and its last generation ended because of a doubt: its host may know it still.
    pub(crate) fn was_doubted(&self, id: &[u8]) -> bool {
        let hash = self.hash(id);
        let shard = self.shard(hash);
        shard.find_active(hash, id).is_none() && shard.tombstones.was_doubted(hash)
    }

    /// The next generation that has been doubted for this time, and since when.
    fn take_due_doubt(&self, timeout: Duration) -> Option<(Arc<Generation>, Nanos)> {
        let mut doubts = lock(&self.doubts);
        let now = self.clock.now();
        let mut due = None;
        let is_due = |doubt: &(Arc<Generation>, Nanos)| now.saturating_sub(doubt.1) >= nanos(timeout);
        while due.is_none() && doubts.front().is_some_and(is_due) {
            let Some((generation, at)) = doubts.pop_front() else { break };
            match generation.take_queued_doubt() {
                // It was trusted and doubted again.
                Some(later) if later > at => {
                    let place = doubts.partition_point(|(_, other)| *other <= later);
                    generation.requeue_doubt();
                    doubts.insert(place, (generation, later));
                }
                Some(_) => due = Some((generation, at)),
                None => {}
            }
        }
        self.doubt_count.store(doubts.len(), Ordering::SeqCst);
        due
    }
}
