//! What is to be written into the registry, in the order in which it happened.
//!
//! Like the queue of hooks it belongs to the handle, and is filled under the shards' locks: a session's changes are
//! written in the order of its claims.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use super::generation::{Generation, PendingEnd};
use crate::{
    observability::ReleaseCause,
    registry::Record,
    session::{GenerationId, SessionId},
    sync::{AtomicUsize, Mutex, Ordering, lock},
};

/// Something to write.
#[derive(Debug)]
pub(crate) enum OutboxEntry {
    /// A generation is to be held, or held again.
    Hold(Arc<Generation>),
    /// Its details have changed.
    Update(Arc<Generation>),
    /// It was claimed; whether its end is ours to deliver, the registry says.
    End(Arc<Generation>, PendingEnd),
    /// It was claimed, and its end was delivered while the registry was out of reach.
    EndDeliveredOffline(Arc<Generation>, PendingEnd),
    /// It was claimed silently.
    Release(Arc<Generation>, ReleaseCause),
    /// Its end is delivered.
    Delivered(Arc<Generation>),
    /// We have become a holder of a generation that is not ours.
    LeaveForeign(Box<Record>),
    /// An end was tried often enough.
    Abandon(SessionId, GenerationId),
}

impl OutboxEntry {
    fn id(&self) -> &SessionId {
        match self {
            Self::Hold(generation)
            | Self::Update(generation)
            | Self::End(generation, _)
            | Self::EndDeliveredOffline(generation, _)
            | Self::Release(generation, _)
            | Self::Delivered(generation) => &generation.id,
            Self::LeaveForeign(record) => &record.session.id,
            Self::Abandon(id, _) => id,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    entries: Mutex<VecDeque<OutboxEntry>>,
    /// A copy of the line's length, so that nobody locks an empty one.
    len: AtomicUsize,
}

impl Outbox {
    pub(super) fn push(&self, entry: OutboxEntry) {
        let mut entries = lock(&self.entries);
        entries.push_back(entry);
        self.len.store(entries.len(), Ordering::SeqCst);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len.load(Ordering::SeqCst) == 0
    }

    /// Puts back what was taken, or comes before everything else, in its order.
    pub(crate) fn put_back(&self, entries_: impl IntoIterator<Item = OutboxEntry, IntoIter: DoubleEndedIterator>) {
        let mut entries = lock(&self.entries);
        entries_.into_iter().rev().for_each(|entry| entries.push_front(entry));
        self.len.store(entries.len(), Ordering::SeqCst);
    }

    /// The next ones that can be written in one go. The answer to a hold, or to a claim that has to be held first, decides
    /// how the changes after it are to be written, so those of the same id wait for the next time; changes of different
    /// ids may pass each other.
    pub(crate) fn take(&self, max: usize) -> Vec<OutboxEntry> {
        let mut entries = lock(&self.entries);
        let n = max.min(entries.len());
        let mut waiting = HashSet::new();
        let (mut taken, mut later) = (Vec::with_capacity(n), Vec::new());
        for entry in entries.drain(..n) {
            if waiting.contains(entry.id()) {
                later.push(entry);
                continue;
            }
            if matches!(entry, OutboxEntry::Hold(_) | OutboxEntry::LeaveForeign(_) | OutboxEntry::End(..)) {
                waiting.insert(entry.id().clone());
            }
            taken.push(entry);
        }
        later.into_iter().rev().for_each(|entry| entries.push_front(entry));
        self.len.store(entries.len(), Ordering::SeqCst);
        taken
    }
}
