//! The outbox: changes for the registry, in order.
//!
//! It belongs to the handle and is filled under the shards' locks, so the changes of a session are written in the order
//! of its steps.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use super::generation::{Generation, PendingEnd, RecordState};
use crate::{
    observability::ReleaseCause,
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
    /// The hooks of its end are called. So many calls are made now.
    Attempted(Arc<Generation>, u32),
    /// Its end is delivered.
    Delivered(Arc<Generation>),
    /// The hooks of this end have failed too often. The last error of a hook.
    DeadLetter(SessionId, GenerationId, String),
    /// Another process has ended this generation, and this one has released it.
    Acknowledge(SessionId, GenerationId),
}

impl OutboxEntry {
    /// Whether it is a record that a claim has cancelled.
    fn is_cancelled(&self) -> bool {
        matches!(self, Self::Hold(generation) if generation.record_state() == RecordState::None)
    }

    fn id(&self) -> &SessionId {
        match self {
            Self::Hold(generation)
            | Self::Update(generation)
            | Self::End(generation, _)
            | Self::EndDeliveredOffline(generation, _)
            | Self::Release(generation, _)
            | Self::Attempted(generation, _)
            | Self::Delivered(generation) => &generation.id,
            Self::DeadLetter(id, ..) | Self::Acknowledge(id, _) => id,
        }
    }
}

/// With more entries than this, the records of sessions that end before they were written are cancelled.
const OVERLOAD: usize = 16_384;

/// The most entries that one call leaves for a later one because of their ids.
const MAX_PASSED: usize = 8192;

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    entries: Mutex<VecDeque<OutboxEntry>>,
    /// A copy of the length, so an empty outbox is not locked.
    len: AtomicUsize,
}

impl Outbox {
    pub(crate) fn push(&self, entry: OutboxEntry) {
        let mut entries = lock(&self.entries);
        entries.push_back(entry);
        self.len.store(entries.len(), Ordering::SeqCst);
    }

    /// Whether sessions come and go faster than the registry takes them.
    pub(super) fn is_overloaded(&self) -> bool {
        self.len.load(Ordering::SeqCst) > OVERLOAD
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

    /// Takes up to `max` entries that one call can write: no two of the same id, because the answer to the first decides how
    /// the second is written. Entries of different ids may pass each other.
    pub(crate) fn take(&self, max: usize) -> Vec<OutboxEntry> {
        let mut entries = lock(&self.entries);
        let n = max.min(entries.len());
        let mut ids = HashSet::with_capacity(n);
        let (mut taken, mut later) = (Vec::with_capacity(n), Vec::new());
        while taken.len() < n
            && later.len() < MAX_PASSED
            && let Some(entry) = entries.pop_front()
        {
            if entry.is_cancelled() {
                continue;
            }
            if ids.insert(entry.id().clone()) {
                taken.push(entry);
            } else {
                later.push(entry);
            }
        }
        later.into_iter().rev().for_each(|entry| entries.push_front(entry));
        self.len.store(entries.len(), Ordering::SeqCst);
        taken
    }
}
