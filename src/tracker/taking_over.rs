//! Ends that others have left behind, and those that are left to others.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{
    Tracker,
    chain::{Outcome, Released},
    entry::{Claim, Due, Ending, Entry, Recorded, Scope, Stage},
    ledger::Op,
    shard::Shard,
};
use crate::{
    observability::LetGo,
    registry::Orphan,
    session::{EventId, Phase, SessionId},
    sync::{AtomicUsize, Ordering},
};

/// Why a claimed end is not delivered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotOurs {
    /// Other replicas still hold the session.
    Others,
    /// Somebody else has ended it.
    Gone,
    /// The registry is out of reach: whoever comes after us finds it there.
    HandedOver,
}

impl NotOurs {
    pub(super) const fn how(self) -> LetGo {
        match self {
            Self::Others => LetGo::HeldByOthers,
            Self::Gone => LetGo::EndedByOthers,
            Self::HandedOver => LetGo::HandedOver,
        }
    }
}

/// How the ends that one recovery has found come out.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    pub(crate) found: AtomicUsize,
    pub(crate) ended: AtomicUsize,
    pub(crate) failed: AtomicUsize,
    /// Tried too often: nobody delivers them any more.
    pub(crate) given_up: AtomicUsize,
    /// Let go of: whoever comes after us delivers them.
    elsewhere: AtomicUsize,
    /// Told when one more is over.
    pub(crate) over: Notify,
}

impl Recovery {
    /// Those that were not delivered, for now or by us.
    pub(crate) fn left(&self) -> usize {
        let over = self.ended.load(Ordering::SeqCst) + self.failed.load(Ordering::SeqCst);
        self.found.load(Ordering::SeqCst).saturating_sub(over)
    }

    /// Those that are worth waiting for.
    pub(crate) fn running(&self) -> usize {
        self.left().saturating_sub(self.elsewhere.load(Ordering::SeqCst))
    }

    pub(super) fn count(&self, outcome: Outcome) {
        match outcome {
            Outcome::Ended => &self.ended,
            Outcome::Failed => &self.failed,
            Outcome::Aborted => &self.elsewhere,
        }
        .fetch_add(1, Ordering::SeqCst);
        self.over.notify_waiters();
    }

    pub(super) fn is_elsewhere(&self) {
        self.count(Outcome::Aborted);
    }
}

impl Tracker {
    /// Takes over an end that somebody else has left behind.
    pub(crate) fn adopt(&self, orphan: Orphan, recovery: &Arc<Recovery>) {
        let Orphan { record, end, .. } = orphan;
        let hash = self.hash(record.session.id.as_bytes());
        let now = self.clock.now();
        let ending =
            Ending { reason: end.reason, next: end.next.clone().map(Box::new), at: now, scope: Scope::Everywhere };
        let mut released = Released::default();
        {
            let mut shard = self.shard(hash);
            let is_it = |entry: &&Arc<Entry>| self.event_id(entry) == record.event_id;
            let own = shard.generations(hash, &record.session.id).find(is_it).cloned();
            let (entry, is_joined) = match own {
                // It goes on here, and a holder that is gone has ended it for all.
                Some(own) if own.is_active() => {
                    self.leave(&mut shard, hash, &own, Claim::Owed, now, &mut released);
                    shard.counts.owed += 1;
                    own.set_recorded(Recorded::Held);
                    let is_joined = own.is_joined();
                    (own, is_joined)
                }
                // It ends here, and the claim that is on its way will find the end to be ours.
                Some(own) if own.is_owed_here() => return,
                // We have let go of it ourselves, and are not through with its start.
                own => {
                    let generation = self.number();
                    // Whoever has claimed the last one meanwhile may have seen one more.
                    released.quiet |= self.phase() >= Phase::Closing && self.len() == 0;
                    let entry = Arc::new(Entry::orphan(record.session.clone(), generation, now));
                    if let Some(own) = own {
                        own.precede(&entry);
                        entry.set_stage(Stage::Waiting);
                    }
                    shard.adopt(hash, &entry, |entry| self.hash_of(entry));
                    (entry, true)
                }
            };
            entry.end_elsewhere(&record, &end, is_joined, Arc::clone(recovery));
            recovery.found.fetch_add(1, Ordering::SeqCst);
            if !entry.is_given_up() {
                self.awaited.fetch_add(1, Ordering::SeqCst);
            }
            released.telling.recovered();
            released.telling.ended(&entry, &ending);
            self.finish_or_park(&mut shard, &entry, Due::End(ending), &mut released);
        }
        self.release(released);
    }

    /// Whether this generation is one of ours that is not over.
    pub(crate) fn has(&self, id: &SessionId, event_id: EventId) -> bool {
        let hash = self.hash(id.as_bytes());
        self.shard(hash).generations(hash, id).any(|entry| self.event_id(entry) == event_id)
    }

    /// It was tried often enough.
    pub(crate) fn forget_orphan(&self, orphan: &Orphan) {
        if let Some(ledger) = &self.ledger {
            ledger.push(Op::GivenUp(orphan.record.session.id.clone(), orphan.record.event_id));
        }
    }
}

impl Shard {
    /// Takes in a generation that is owed already. It comes before the next generation of its id, if there is none yet.
    fn adopt(&mut self, hash: u64, entry: &Arc<Entry>, rehash: impl Fn(&Arc<Entry>) -> u64) {
        self.counts.births += 1;
        self.counts.owed += 1;
        self.insert_owed(hash, entry, rehash);
    }
}
