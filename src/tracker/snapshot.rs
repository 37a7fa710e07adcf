//! Copies and sums over all shards.

use std::sync::{Arc, PoisonError};

use super::{Counts, Generation, Stage, Tracker};
use crate::{
    session::Session,
    sync::{Ordering, lock},
};

/// Generations whose end is unfinished.
#[derive(Debug, Default)]
pub(crate) struct Unfinished {
    pub(crate) count: u64,
    pub(crate) first: Vec<(Arc<Generation>, Stage)>,
}

impl Tracker {
    /// A copy of the active sessions. Of a compaction it contains either the old session or the new one.
    pub(crate) fn snapshot(&self) -> Vec<Session> {
        let _no_compaction = self.compaction_lock.write().unwrap_or_else(PoisonError::into_inner);
        let mut sessions = Vec::with_capacity(self.len());
        for shard in &self.shards {
            sessions.extend(lock(shard).active().map(|generation| generation.session()));
        }
        sessions
    }

    /// The sum of all shards' counts, for a look at them: it changes nothing.
    pub(crate) fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for shard in &self.shards {
            sum.add(&lock(shard).counts);
        }
        sum
    }

    /// The sum of all shards' counts. Each shard balances when it is read, so the sum does too. All pending ends are
    /// awaited from now on.
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

    /// Pending ends of late starts are awaited from now on.
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

    /// Whether no hook runs, is queued, or waits for an earlier hook or for the registry. It looks at every generation.
    pub(crate) fn are_hooks_idle(&self) -> bool {
        // Most of what is not over is found without a lock.
        self.queue.is_empty()
            && self.awaited() == 0
            && self.shards.iter().all(|shard| {
                let shard = lock(shard);
                !shard.has_claimed() && shard.active().all(|generation| generation.stage() >= Stage::Started)
            })
    }

    /// The sum of all shards' counts, and the generations whose end is unfinished, of which `max` are listed. With `give_up`, these
    /// are no longer awaited, and late starts are left out.
    pub(crate) fn collect_unfinished(&self, give_up: bool, max: usize) -> (Counts, Unfinished) {
        let mut sum = Counts::default();
        let mut unfinished = Unfinished::default();
        let mut late = 0;
        let mut add = |generation: &Arc<Generation>, stage| {
            if give_up && self.is_late_start(generation) {
                late += 1;
                return;
            }
            unfinished.count += 1;
            if unfinished.first.len() < max {
                unfinished.first.push((Arc::clone(generation), stage));
            }
        };
        let mut drained = false;
        for shard in &self.shards {
            let shard = lock(shard);
            sum.add(&shard.counts);
            for generation in shard.pending_ends() {
                if give_up && generation.set_given_up(true) {
                    drained |= self.decrement_awaited();
                }
                add(generation, generation.stage());
            }
            shard.aborted.iter().for_each(|generation| add(generation, Stage::EndRunning));
            // No sweep has claimed it yet, or `keep_if` is still running for it.
            shard.active().for_each(|generation| add(generation, Stage::Started));
        }
        if drained {
            self.drained.notify_waiters();
        }
        sum.starts -= late;
        (sum, unfinished)
    }
}
