//! Recovery: ends that dead processes have not delivered.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{
    Tracker,
    generation::{AfterStart, ClaimState, Generation, PendingEnd, RecordState, Scope, Stage},
    order::{AfterUnlock, Outcome},
    shard::Shard,
};
use crate::{
    registry::Orphan,
    session::Phase,
    sync::{AtomicUsize, Ordering},
};

/// The outcomes of the orphans that one recovery has claimed.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    pub(crate) found: AtomicUsize,
    pub(crate) ended: AtomicUsize,
    pub(crate) failed: AtomicUsize,
    /// Orphans that have become dead letters: each of their attempts has ended the process.
    pub(crate) dead_letters: AtomicUsize,
    /// Ends that another process delivers, because the hooks were aborted or the lease was lost.
    released: AtomicUsize,
    /// Notified after each outcome.
    pub(crate) progress: Notify,
}

impl Recovery {
    /// Ends that this process has not delivered.
    pub(crate) fn undelivered(&self) -> usize {
        let delivered = self.ended.load(Ordering::SeqCst) + self.failed.load(Ordering::SeqCst);
        self.found.load(Ordering::SeqCst).saturating_sub(delivered)
    }

    /// Ends that this process is still to deliver.
    pub(crate) fn running(&self) -> usize {
        self.undelivered().saturating_sub(self.released.load(Ordering::SeqCst))
    }

    pub(super) fn on_outcome(&self, outcome: Outcome) {
        match outcome {
            Outcome::Ended => &self.ended,
            Outcome::Failed => &self.failed,
            Outcome::Aborted => &self.released,
        }
        .fetch_add(1, Ordering::SeqCst);
        self.progress.notify_waiters();
    }

    pub(super) fn on_released(&self) {
        self.on_outcome(Outcome::Aborted);
    }
}

impl Tracker {
    /// Delivers an end that a dead process has not delivered.
    pub(crate) fn take_over(&self, orphan: Orphan, recovery: &Arc<Recovery>) {
        let Orphan { record, end, attempts } = orphan;
        let hash = self.hash(record.session.id.as_bytes());
        let now = self.clock.now();
        let pending_end = PendingEnd {
            reason: end.reason,
            next: end.next.clone().map(Box::new),
            at: now,
            scope: Scope::Everywhere,
            redelivery: None,
        };
        let mut after_unlock = AfterUnlock::default();
        {
            let mut shard = self.shard(hash);
            let is_same = |generation: &&Arc<Generation>| self.generation_id(generation) == record.generation;
            let own = shard.generations(hash, &record.session.id).find(is_same).cloned();
            let (generation, started_elsewhere) = match own {
                // It is active here, and a holder that died had ended it for all replicas.
                Some(own) if own.is_active() => {
                    self.remove_active(&mut shard, hash, &own, ClaimState::EndPending, true, &mut after_unlock);
                    self.end_children(&mut shard, &own, &pending_end, false, &mut after_unlock);
                    shard.counts.pending_ends += 1;
                    own.set_record_state(RecordState::Held);
                    let started_elsewhere = own.started_elsewhere();
                    (own, started_elsewhere)
                }
                // Its end is queued in the outbox, and the registry will answer that this process owns it.
                Some(own) if own.has_pending_end_here() => return,
                // There is none, or this process has released it and its start has not completed.
                own => {
                    let number = self.next_number();
                    // A concurrent claim of the last active session may have read a length of 1 during `next_number`.
                    after_unlock.drained |= self.phase() >= Phase::Closing && self.len() == 0;
                    let generation = Arc::new(Generation::orphan(record.session.clone(), number, now));
                    let last = shard.insert_orphan(hash, &generation, |generation| self.hash_of(generation));
                    if let Some(predecessor) = last.or(own) {
                        predecessor.add_successor(&generation);
                        generation.set_stage(Stage::Waiting);
                    }
                    (generation, true)
                }
            };
            generation.set_ended_elsewhere(&record, &end, started_elsewhere, Arc::clone(recovery), attempts);
            recovery.found.fetch_add(1, Ordering::SeqCst);
            if !generation.is_given_up() {
                self.awaited.fetch_add(1, Ordering::SeqCst);
            }
            after_unlock.effects.recovered();
            after_unlock.effects.ended(&generation, &pending_end);
            self.complete_or_defer(&mut shard, &generation, AfterStart::RunEnd(pending_end), &mut after_unlock);
            // Its own hold is queued no more.
            self.run_waiting_start(&mut shard, &generation, &mut after_unlock);
        }
        self.apply_after_unlock(after_unlock);
    }
}

impl Shard {
    /// Inserts a claimed generation. The next generation of its id starts after it, if there is none yet. Returns the last
    /// claimed one of its id: this one ends after it, so that the next one starts after both.
    fn insert_orphan(
        &mut self,
        hash: u64,
        generation: &Arc<Generation>,
        rehash: impl Fn(&Arc<Generation>) -> u64,
    ) -> Option<Arc<Generation>> {
        self.counts.starts += 1;
        self.counts.pending_ends += 1;
        let last = self.take_claimed(hash, generation);
        self.insert_claimed(hash, generation, rehash);
        last
    }
}
