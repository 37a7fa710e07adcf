//! Ends that others have left behind, and those that are left to others.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{
    Tracker,
    generation::{AfterStart, ClaimState, Generation, PendingEnd, RecordState, Scope, Stage},
    order::{AfterUnlock, Outcome},
    outbox::OutboxEntry,
    shard::Shard,
};
use crate::{
    registry::Orphan,
    session::{GenerationId, Phase, SessionId},
    sync::{AtomicUsize, Ordering},
};

/// How the ends that one recovery has found come out.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    pub(crate) found: AtomicUsize,
    pub(crate) ended: AtomicUsize,
    pub(crate) failed: AtomicUsize,
    /// Tried too often: nobody delivers them any more.
    pub(crate) given_up: AtomicUsize,
    /// Let go of: whoever comes after us delivers them.
    released: AtomicUsize,
    /// Told when one more is over.
    pub(crate) progress: Notify,
}

impl Recovery {
    /// Those that were not delivered, for now or by us.
    pub(crate) fn undelivered(&self) -> usize {
        let over = self.ended.load(Ordering::SeqCst) + self.failed.load(Ordering::SeqCst);
        self.found.load(Ordering::SeqCst).saturating_sub(over)
    }

    /// Those that are worth waiting for.
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
    /// Takes over an end that somebody else has left behind.
    pub(crate) fn take_over(&self, orphan: Orphan, recovery: &Arc<Recovery>) {
        let Orphan { record, end, .. } = orphan;
        let hash = self.hash(record.session.id.as_bytes());
        let now = self.clock.now();
        let pending_end =
            PendingEnd { reason: end.reason, next: end.next.clone().map(Box::new), at: now, scope: Scope::Everywhere };
        let mut after_unlock = AfterUnlock::default();
        {
            let mut shard = self.shard(hash);
            let is_same = |generation: &&Arc<Generation>| self.generation_id(generation) == record.generation;
            let own = shard.generations(hash, &record.session.id).find(is_same).cloned();
            let (generation, started_elsewhere) = match own {
                // It goes on here, and a holder that is gone has ended it for all.
                Some(own) if own.is_active() => {
                    self.remove_active(&mut shard, hash, &own, ClaimState::EndPending, now, &mut after_unlock);
                    shard.counts.pending_ends += 1;
                    own.set_record_state(RecordState::Held);
                    let started_elsewhere = own.started_elsewhere();
                    (own, started_elsewhere)
                }
                // It ends here, and the claim that is on its way will find the end to be ours.
                Some(own) if own.has_pending_end_here() => return,
                // We have let go of it ourselves, and are not through with its start.
                own => {
                    let number = self.next_number();
                    // Whoever has claimed the last one meanwhile may have seen one more.
                    after_unlock.drained |= self.phase() >= Phase::Closing && self.len() == 0;
                    let generation = Arc::new(Generation::orphan(record.session.clone(), number, now));
                    if let Some(own) = own {
                        own.add_successor(&generation);
                        generation.set_stage(Stage::Waiting);
                    }
                    shard.insert_orphan(hash, &generation, |generation| self.hash_of(generation));
                    (generation, true)
                }
            };
            generation.set_ended_elsewhere(&record, &end, started_elsewhere, Arc::clone(recovery));
            recovery.found.fetch_add(1, Ordering::SeqCst);
            if !generation.is_given_up() {
                self.awaited.fetch_add(1, Ordering::SeqCst);
            }
            after_unlock.effects.recovered();
            after_unlock.effects.ended(&generation, &pending_end);
            self.complete_or_defer(&mut shard, &generation, AfterStart::RunEnd(pending_end), &mut after_unlock);
        }
        self.apply_after_unlock(after_unlock);
    }

    /// Whether this generation is one of ours that is not over.
    pub(crate) fn has_generation(&self, id: &SessionId, generation_id: GenerationId) -> bool {
        let hash = self.hash(id.as_bytes());
        self.shard(hash).generations(hash, id).any(|generation| self.generation_id(generation) == generation_id)
    }

    /// It was tried often enough.
    pub(crate) fn abandon(&self, orphan: &Orphan) {
        if let Some(outbox) = &self.outbox {
            outbox.push(OutboxEntry::Abandon(orphan.record.session.id.clone(), orphan.record.generation));
        }
    }
}

impl Shard {
    /// Takes in a generation that is owed already. It comes before the next generation of its id, if there is none yet.
    fn insert_orphan(&mut self, hash: u64, generation: &Arc<Generation>, rehash: impl Fn(&Arc<Generation>) -> u64) {
        self.counts.starts += 1;
        self.counts.pending_ends += 1;
        self.insert_claimed(hash, generation, rehash);
    }
}
