//! What is to be written into the registry, in the order in which it happened.
//!
//! Like the queue of hooks it belongs to the handle, and is filled under the shards' locks: a session's changes are
//! written in the order of its claims.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use super::entry::{Ending, Entry};
use crate::{
    registry::Record,
    session::{EventId, SessionId},
    sync::{AtomicUsize, Mutex, Ordering, lock},
};

/// Something to write.
#[derive(Debug)]
pub(crate) enum Op {
    /// A generation is to be held, or held again.
    Hold(Arc<Entry>),
    /// Its details have changed.
    Update(Arc<Entry>),
    /// It was claimed; whether its end is ours to deliver, the registry says.
    Claimed(Arc<Entry>, Ending),
    /// It was claimed, and its end was delivered while the registry was out of reach.
    Late(Arc<Entry>, Ending),
    /// It was claimed silently; `true` if it outlives the process.
    Disowned(Arc<Entry>, bool),
    /// Its end is delivered.
    Over(Arc<Entry>),
    /// We have become a holder of a generation that is not ours.
    Part(Box<Record>),
    /// An end was tried often enough.
    GivenUp(SessionId, EventId),
}

impl Op {
    fn id(&self) -> &SessionId {
        match self {
            Self::Hold(entry)
            | Self::Update(entry)
            | Self::Claimed(entry, _)
            | Self::Late(entry, _)
            | Self::Disowned(entry, _)
            | Self::Over(entry) => &entry.id,
            Self::Part(record) => &record.session.id,
            Self::GivenUp(id, _) => id,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    line: Mutex<VecDeque<Op>>,
    /// A copy of the line's length, so that nobody locks an empty one.
    len: AtomicUsize,
}

impl Ledger {
    pub(super) fn push(&self, op: Op) {
        let mut line = lock(&self.line);
        line.push_back(op);
        self.len.store(line.len(), Ordering::SeqCst);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len.load(Ordering::SeqCst) == 0
    }

    /// Puts back what was taken, or comes before everything else, in its order.
    pub(crate) fn put_back(&self, ops: impl IntoIterator<Item = Op, IntoIter: DoubleEndedIterator>) {
        let mut line = lock(&self.line);
        ops.into_iter().rev().for_each(|op| line.push_front(op));
        self.len.store(line.len(), Ordering::SeqCst);
    }

    /// The next ones that can be written in one go. The answer to a hold, or to a claim that has to be held first, decides
    /// how the changes after it are to be written, so those of the same id wait for the next time; changes of different
    /// ids may pass each other.
    pub(crate) fn take(&self, max: usize) -> Vec<Op> {
        let mut line = lock(&self.line);
        let n = max.min(line.len());
        let mut held = HashSet::new();
        let (mut taken, mut later) = (Vec::with_capacity(n), Vec::new());
        for op in line.drain(..n) {
            if held.contains(op.id()) {
                later.push(op);
                continue;
            }
            if matches!(op, Op::Hold(_) | Op::Part(_) | Op::Claimed(..)) {
                held.insert(op.id().clone());
            }
            taken.push(op);
        }
        later.into_iter().rev().for_each(|op| line.push_front(op));
        self.len.store(line.len(), Ordering::SeqCst);
        taken
    }
}
