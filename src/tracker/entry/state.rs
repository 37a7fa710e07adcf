//! The words for where a generation stands: its claim, its hooks, its end, what keeps it busy.

use crate::{
    session::{EndReason, Session},
    tracker::{NotOurs, clock::Nanos},
};

/// Whether a generation is active, and if not, what its claimer owes. Written under the shard's lock only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Claim {
    Active = 0,
    /// Claimed, and its `session_end` is owed.
    Owed = 1,
    /// As `Owed`, by a compaction: another session goes on in its place.
    Compacted = 2,
    /// Claimed silently.
    Forgotten = 3,
}

/// How far the hooks of a generation have come. Written under the shard's lock, but for `Ending`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    /// Its start waits for hooks of generations before it.
    Waiting = 0,
    /// Its start is queued or runs.
    Starting = 1,
    /// Its start is over.
    Started = 2,
    /// Its end is queued.
    EndQueued = 3,
    /// Its end runs.
    Ending = 4,
    /// Everything is over.
    Over = 5,
}

/// How a session ended, kept until its hooks can be told.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) reason: EndReason,
    pub(crate) next: Option<Box<Session>>,
    pub(crate) at: Nanos,
    pub(crate) scope: Scope,
}

/// How far an end reaches, where several replicas hold the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// It is over, for everybody.
    Everywhere,
    /// This process lets go of it.
    Here,
}

/// What is due of a claimed generation once its start is over.
#[derive(Debug)]
pub(in crate::tracker) enum Due {
    Nothing,
    End(Ending),
    /// Its end is not ours to deliver.
    NotOurs(NotOurs),
}

/// What keeps a session busy. Both are counted in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Load {
    /// A request that is not over; the drain may wait for it. Up to 65,535 at a time.
    Work = 1,
    /// A guard, or a stream that only listens. Up to 65,535 at a time.
    Open = WORK_MASK + 1,
}

pub(super) const WORK_MASK: u32 = (1 << 16) - 1;
