//! The outbox: changes for the registry, in order.
//!
//! It belongs to the handle and is filled under the shards' locks, so the changes of a session are written in the order
//! of its steps.

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

/// One change for the registry.
#[derive(Debug)]
pub(crate) enum OutboxEntry {
    /// Create the record, or join it.
    Hold(Arc<Generation>),
    /// The details have changed.
    Update(Arc<Generation>),
    /// It was claimed. The registry decides whether this process delivers the end.
    End(Arc<Generation>, PendingEnd),
    /// It was claimed, and its end was delivered while the registry was unavailable.
    EndDeliveredOffline(Arc<Generation>, PendingEnd),
    /// It was claimed silently.
    Release(Arc<Generation>, ReleaseCause),
    /// Its end is delivered.
    Delivered(Arc<Generation>),
    /// This process has joined the record of a generation that it does not have.
    LeaveForeign(Box<Record>),
    /// The delivery of this end was attempted too often.
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
    /// A copy of the length, so an empty outbox is not locked.
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

    /// Queues `first` before everything else, in its order.
    pub(crate) fn put_back(&self, first: impl IntoIterator<Item = OutboxEntry, IntoIter: DoubleEndedIterator>) {
        let mut entries = lock(&self.entries);
        first.into_iter().rev().for_each(|entry| entries.push_front(entry));
        self.len.store(entries.len(), Ordering::SeqCst);
    }

    /// Takes up to `max` entries that one call can write. The answer to a hold, or to an end that holds first, decides
    /// how later entries of the same id are written, so these stay in the outbox. Entries of different ids may pass
    /// each other.
    pub(crate) fn take(&self, max: usize) -> Vec<OutboxEntry> {
        let mut entries = lock(&self.entries);
        let n = max.min(entries.len());
        let mut blocked_ids = HashSet::new();
        let (mut taken, mut later) = (Vec::with_capacity(n), Vec::new());
        for entry in entries.drain(..n) {
            if blocked_ids.contains(entry.id()) {
                later.push(entry);
                continue;
            }
            if matches!(entry, OutboxEntry::Hold(_) | OutboxEntry::LeaveForeign(_) | OutboxEntry::End(..)) {
                blocked_ids.insert(entry.id().clone());
            }
            taken.push(entry);
        }
        later.into_iter().rev().for_each(|entry| entries.push_front(entry));
        self.len.store(entries.len(), Ordering::SeqCst);
        taken
    }
}
