//! Looking at all shards: copies and sums.

use std::sync::{Arc, PoisonError};

use super::{Counts, Generation, Stage, Tracker};
use crate::{
    session::Session,
    sync::{Ordering, lock},
};

impl Tracker {
    /// A copy of what is active at one moment.
    pub(crate) fn snapshot(&self) -> Vec<Session> {
        let _still = self.compaction_lock.write().unwrap_or_else(PoisonError::into_inner);
        let mut sessions = Vec::with_capacity(self.len());
        for shard in &self.shards {
            sessions.extend(lock(shard).active().map(|generation| generation.session()));
        }
        sessions
    }

    /// The sum of all shards' counts: each shard balances at the moment it is read, and so does the sum. From now on
    /// somebody waits for every end that is owed.
    pub(crate) fn baseline_counts(&self) -> Counts {
        let mut sum = Counts::default();
        for shard in &self.shards {
            let shard = lock(shard);
            sum.add(&shard.counts);
            let awaited_again = shard.pending_ends().filter(|generation| generation.set_given_up(false)).count();
            self.awaited.fetch_add(awaited_again, Ordering::SeqCst);
        }
        sum
    }

    /// From now on somebody waits for the late ones too.
    pub(crate) fn await_late_starts(&self) {
        for shard in &self.shards {
            let shard = lock(shard);
            let awaited_again = shard
                .pending_ends()
                .filter(|generation| self.is_late_start(generation) && generation.set_given_up(false))
                .count();
            self.awaited.fetch_add(awaited_again, Ordering::SeqCst);
        }
    }

    /// The sum of all shards' counts, with every generation whose end is not over. With `give_up`, nobody waits for those
    /// any more.
    pub(crate) fn collect_unfinished(&self, give_up: bool) -> (Counts, Vec<(Arc<Generation>, Stage)>) {
        let mut sum = Counts::default();
        let mut unfinished = Vec::new();
        let mut drained = false;
        for shard in &self.shards {
            let shard = lock(shard);
            sum.add(&shard.counts);
            for generation in shard.pending_ends() {
                if give_up && generation.set_given_up(true) {
                    drained |= self.decrement_awaited();
                }
                unfinished.push((Arc::clone(generation), generation.stage()));
            }
            unfinished.extend(shard.aborted.iter().map(|generation| (Arc::clone(generation), Stage::EndRunning)));
            // No sweep has come to it, or the user is still being asked about it.
            unfinished.extend(shard.active().map(|generation| (Arc::clone(generation), Stage::Started)));
        }
        if drained {
            self.drained.notify_waiters();
        }
        (sum, unfinished)
    }
}
