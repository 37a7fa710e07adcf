//! The outbox: changes for the registry, in order.
//!
//! It belongs to the handle and is filled under the shards' locks, so the changes of a session are written in the order
//! of its steps.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use tokio::sync::oneshot;

use super::{
    generation::{CalledEnd, Generation, PendingEnd, RecordState},
    queue::return_memory,
};
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
    /// The hooks of its end are called. So many calls are made now. The sender is for hooks that wait for the answer.
    Attempted(Arc<Generation>, u32, Option<oneshot::Sender<()>>),
    /// Its end is delivered.
    Delivered(Arc<Generation>),
    /// The transaction hook is called for its end, which completes it.
    Commit(Box<CalledEnd>),
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

    /// Whether its answer depends on the records of its id.
    pub(crate) const fn needs_record(&self) -> bool {
        matches!(self, Self::Hold(_) | Self::End(..) | Self::Release(..))
    }

    pub(crate) fn id(&self) -> &SessionId {
        match self {
            Self::Hold(generation)
            | Self::Update(generation)
            | Self::End(generation, _)
            | Self::EndDeliveredOffline(generation, _)
            | Self::Release(generation, _)
            | Self::Attempted(generation, ..)
            | Self::Delivered(generation) => &generation.id,
            Self::Commit(called) => &called.generation.id,
            Self::DeadLetter(id, ..) | Self::Acknowledge(id, _) => id,
        }
    }
}

/// With more entries than this, the records of sessions that end before they were written are cancelled.
const OVERLOAD: usize = if cfg!(shuttle) { 3 } else { 16_384 };

/// The most entries that one call leaves for a later one because of their ids.
const MAX_PASSED: usize = 8192;

/// Up to this many entries are put back one by one. They come from the front of the queue, so each moves few others.
const FEW: usize = 64;

/// An entry, and its place in the order. It keeps its place when it is put back.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) entry: OutboxEntry,
    pub(crate) place: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// A copy of the length, so an empty outbox is not locked.
    len: AtomicUsize,
    /// A transaction hook sees each session, so no record is cancelled.
    records_all: bool,
}

#[derive(Debug, Default)]
struct State {
    /// By their places.
    entries: VecDeque<Queued>,
    /// The entries that were pushed so far.
    pushed: u64,
}

impl Outbox {
    pub(crate) fn new(has_transaction_hook: bool) -> Self {
        Self { records_all: has_transaction_hook, ..Self::default() }
    }

    /// Whether a session needs no record if it ends before that was sent.
    pub(crate) const fn may_cancel(&self) -> bool {
        !self.records_all
    }

    pub(crate) fn push(&self, entry: OutboxEntry) {
        let mut state = lock(&self.state);
        state.pushed += 1;
        let place = state.pushed;
        state.entries.push_back(Queued { entry, place });
        self.len.store(state.entries.len(), Ordering::SeqCst);
    }

    /// Whether sessions come and go faster than the registry takes them.
    pub(super) fn is_overloaded(&self) -> bool {
        self.len.load(Ordering::SeqCst) > OVERLOAD
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len.load(Ordering::SeqCst) == 0
    }

    /// Queues entries before everything else, in their order.
    pub(crate) fn push_first(&self, entries: impl IntoIterator<Item = OutboxEntry>) {
        self.put_back(entries.into_iter().map(|entry| Queued { entry, place: 0 }));
    }

    /// Queues entries again, each at its place.
    pub(crate) fn put_back(&self, entries: impl IntoIterator<Item = Queued>) {
        let mut state = lock(&self.state);
        let first = state.entries.front().map_or(u64::MAX, |queued| queued.place);
        let (mut before, after): (Vec<_>, Vec<_>) = entries.into_iter().partition(|queued| queued.place < first);
        before.sort_by_key(|queued| queued.place);
        before.into_iter().rev().for_each(|queued| state.entries.push_front(queued));
        if after.len() > FEW {
            state.entries.extend(after);
            // Stable, and cheap for runs that are sorted.
            state.entries.make_contiguous().sort_by_key(|queued| queued.place);
        } else {
            for queued in after {
                let at = state.entries.partition_point(|other| other.place <= queued.place);
                state.entries.insert(at, queued);
            }
        }
        self.len.store(state.entries.len(), Ordering::SeqCst);
    }

    /// Takes up to `max` entries that one call can write: no two of the same id, because the answer to the first decides how
    /// the second is written. Entries of different ids may pass each other.
    ///
    /// No other call may be under way: an entry of the same id may be put back by it.
    pub(crate) fn take(&self, max: usize) -> Vec<Queued> {
        let mut state = lock(&self.state);
        let n = max.min(state.entries.len());
        let mut ids = HashSet::with_capacity(n);
        let (mut taken, mut later) = (Vec::with_capacity(n), Vec::new());
        while taken.len() < n
            && later.len() < MAX_PASSED
            && let Some(queued) = state.entries.pop_front()
        {
            if queued.entry.is_cancelled() {
                continue;
            }
            if ids.insert(queued.entry.id().clone()) {
                taken.push(queued);
            } else {
                later.push(queued);
            }
        }
        later.into_iter().rev().for_each(|queued| state.entries.push_front(queued));
        return_memory(&mut state.entries);
        self.len.store(state.entries.len(), Ordering::SeqCst);
        taken
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::session::Session;

    #[test]
    fn an_outbox_returns_the_memory_of_a_burst() {
        let outbox = Outbox::new(false);
        for n in 0..100_000_u64 {
            let session = Session::try_from(n.to_string()).unwrap();
            outbox.push(OutboxEntry::Delivered(Arc::new(Generation::new(session, n, 0, None))));
        }
        while !outbox.take(1000).is_empty() {}
        let capacity = lock(&outbox.state).entries.capacity();
        assert!(capacity <= 4096, "{capacity}");
    }
}
