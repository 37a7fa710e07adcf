//! Changes that the registry has missed.
//!
//! It is bounded without dropping what is owed: ends on record, one for each session that was recorded before the outage;
//! and ends of sessions that wait for their record, at most [`MAX_UNSTARTED`]. No hook was called for the latter.

use std::{collections::VecDeque, sync::Arc};

use super::Persister;
use crate::{
    sync::{MutexGuard, lock},
    tracker::{CalledEnd, Generation, OutboxEntry, PendingEnd, Queued},
};

/// The most withheld ends of sessions that have not started.
const MAX_UNSTARTED: usize = 65_536;

/// Changes that the registry has missed, in order.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    entries: VecDeque<Queued>,
    unstarted: usize,
}

/// Whether an end waits for the registry.
pub(super) enum Withheld {
    Yes,
    No(Arc<Generation>, PendingEnd),
}

impl Backlog {
    pub(super) fn push(&mut self, queued: Queued) {
        self.entries.push_back(queued);
    }

    pub(super) fn take(&mut self) -> VecDeque<Queued> {
        self.unstarted = 0;
        std::mem::take(&mut self.entries)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl Persister {
    pub(super) fn backlog(&self) -> MutexGuard<'_, Backlog> {
        lock(&self.backlog)
    }

    /// Withholds the end of a session that another process may hold, unless a drain has begun.
    pub(super) fn withhold(&self, generation: Arc<Generation>, end: PendingEnd, place: u64) -> Withheld {
        let mut backlog = self.backlog();
        let is_unstarted = generation.waits_for_record();
        let is_full = is_unstarted && backlog.unstarted == MAX_UNSTARTED;
        // A transaction hook can wait: it is called with the registry only.
        let ends_here = !self.hand_over_on_outage && !is_unstarted && self.transaction_hook.is_none();
        // Read under the lock: a drain begins first, and empties the backlog then.
        if is_full || ends_here || self.is_draining() {
            return Withheld::No(generation, end);
        }
        backlog.unstarted += usize::from(is_unstarted);
        backlog.push(Queued { entry: OutboxEntry::End(generation, end), place });
        Withheld::Yes
    }

    /// Withholds a commit, unless a drain has begun: then it is returned.
    pub(super) fn withhold_commit(&self, called: Box<CalledEnd>, place: u64) -> Option<Box<CalledEnd>> {
        let mut backlog = self.backlog();
        // Read under the lock, as in `withhold`.
        if self.is_draining() {
            return Some(called);
        }
        backlog.push(Queued { entry: OutboxEntry::Commit(called), place });
        None
    }

    /// Queues the changes that the registry has missed again, each at its place.
    pub(crate) fn replay_backlog(&self) {
        let _no_group_is_taken = lock(&self.postponed);
        let entries = self.backlog().take();
        self.outbox.put_back(entries);
    }
}
