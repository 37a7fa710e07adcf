//! [`Registry`]: a durable record of active sessions, which outlives the process.
//!
//! It is never the truth of the hot path: the tracker in memory answers every request, and only births and ends are
//! written, in groups. What it is for: after SIGKILL, a power cut, or a drain that ran out of time, the next start or
//! a survivor finds what is still owed; and of several replicas that serve one session only the last one ends it.

#[cfg(feature = "registry-conformance")]
pub mod conformance;
mod dyn_registry;
mod error;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

pub(crate) use self::dyn_registry::DynRegistry;
pub use self::error::RegistryError;
#[cfg(feature = "redis")]
pub use self::redis::{RedisRegistry, RedisRegistryBuilder};
#[cfg(feature = "sqlite")]
pub use self::sqlite::{SqliteRegistry, SqliteRegistryBuilder};
use crate::session::{EndReason, GenerationId, Session, SessionId};

/// A durable record of active sessions: which process holds which, and whose end is owed.
///
/// `SqliteRegistry` (feature `sqlite`) and `RedisRegistry` (feature `redis`) are there; implement it for a database of
/// your own, and try that with `registry::conformance` (feature `registry-conformance`). A value of this type is one **holder**: one life of one process. It has a **lease**, which it must be seen to
/// lose when its process dies, and only then (an exclusive file lock, an expiry that [`heartbeat`](Self::heartbeat) moves on).
/// What a holder without a lease held or had claimed is up to the others, by [`claim_orphans`](Self::claim_orphans).
///
/// Every call may be repeated after an error, since nobody knows how far the first one came: each change has to be
/// idempotent, for the same holder and the same event id, and so has a row of them. A call that takes longer than a
/// second (less in a drain) is dropped, and counts as [`Unavailable`](RegistryError::Unavailable); so does one that panics.
pub trait Registry: Send + Sync + 'static {
    /// Applies the changes in their order, all of them or none, and says what came of each: one answer a change, in the
    /// same order. One call is in flight at a time; what gathers meanwhile comes with the next one.
    ///
    /// # Errors
    ///
    /// [`RegistryError`]; nothing may be assumed of any of the changes then.
    fn apply(&self, changes: Vec<Change>) -> impl Future<Output = Result<Vec<Applied>, RegistryError>> + Send;

    /// Renews the lease. Called every [`heartbeat_interval`](Self::heartbeat_interval).
    ///
    /// # Errors
    ///
    /// [`RegistryError`]. After [`Fenced`](RegistryError::Fenced) the holder has a new lease already.
    fn heartbeat(&self) -> impl Future<Output = Result<(), RegistryError>> + Send;

    /// Claims up to `max` ends that nobody else will deliver, for this holder, and counts one more try for each:
    ///
    /// * sessions of which every holder has lost its lease, with the reason [`Lost`](EndReason::Lost);
    /// * ends that a holder without a lease had claimed and not done, with the reason that they had.
    ///
    /// The claim survives this holder: should it die too, the next one finds them again. Two holders never claim the
    /// same one. An empty answer means that there is nothing at the moment. What a call had claimed whose answer did not
    /// arrive (an error, a future that was dropped) the next call returns again.
    ///
    /// # Errors
    ///
    /// [`RegistryError`].
    fn claim_orphans(&self, max: usize) -> impl Future<Output = Result<Vec<Orphan>, RegistryError>> + Send;

    /// Gives the lease back: what this holder still holds or has claimed is everybody's at once. The last call.
    ///
    /// # Errors
    ///
    /// [`RegistryError`]. Then the lease is lost like that of a dead process.
    fn release_lease(&self) -> impl Future<Output = Result<(), RegistryError>> + Send;

    /// Whether the lease certainly still runs, by a clock of this process: asked before a recorded `session_end` is
    /// delivered. If not, the end is claimed once more after the next [`heartbeat`](Self::heartbeat) that succeeds, and delivered if it
    /// is still this holder's; in a drain it is left to the others. Always, unless you say otherwise.
    fn lease_is_valid(&self) -> bool {
        true
    }

    /// How often [`heartbeat`](Self::heartbeat) and [`claim_orphans`](Self::claim_orphans) are called. 2 s unless you say otherwise.
    fn heartbeat_interval(&self) -> Duration {
        Duration::from_secs(2)
    }
}

/// One generation of a session, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The session and its details.
    pub session: Session,
    /// The identity of the generation: what its `session_end` will carry, whoever delivers it.
    pub generation: GenerationId,
    /// When it was noted first.
    pub started_at: SystemTime,
}

impl Record {
    /// A record, for implementations and their tests.
    #[must_use]
    pub const fn new(session: Session, generation: GenerationId, started_at: SystemTime) -> Self {
        Self { session, generation, started_at }
    }
}

/// How a session ended, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndRecord {
    /// Why.
    pub reason: EndReason,
    /// The session that goes on in its place, after a compaction.
    pub next: Option<Session>,
    /// When.
    pub ended_at: SystemTime,
    /// How many requests this holder has seen.
    pub requests: u64,
}

impl EndRecord {
    /// An end, for implementations and their tests.
    #[must_use]
    pub const fn new(reason: EndReason, next: Option<Session>, ended_at: SystemTime, requests: u64) -> Self {
        Self { reason, next, ended_at, requests }
    }
}

/// A change to the record; see [`Registry::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// This process holds the session from now on. [`Applied::Created`] if there was no active record of the id, or the one
    /// there has this event id; else [`Applied::Joined`]: this holder is added to the record that is there, with its
    /// event id, its details and its start.
    Hold(Record),
    /// The details of a session that this holder holds have changed. [`Applied::Ok`], also if there is no such record.
    Update(Record),
    /// This holder lets go. [`Applied::HeldElsewhere`] if the session has other holders, with a lease or without; else the end is
    /// recorded, claimed by this holder, and the answer is [`Applied::Owned`]. Where there is no active record of the id with
    /// this event id that this holder holds: [`Applied::Owned`] if it has claimed this end before, else [`Applied::NotFound`].
    Release {
        /// The session.
        id: SessionId,
        /// Its generation.
        generation: GenerationId,
        /// The end, if it comes to one.
        end: EndRecord,
    },
    /// The session ends, whoever else holds it: recorded and claimed as above, [`Applied::Owned`]. Where there is no active
    /// record of the id with this event id: as above.
    End {
        /// The session.
        id: SessionId,
        /// Its generation.
        generation: GenerationId,
        /// The end.
        end: EndRecord,
    },
    /// The end that this holder had claimed is delivered, or given up: forget it. [`Applied::Ok`], also if there is none.
    Delivered {
        /// The generation.
        generation: GenerationId,
    },
    /// This holder lets go and the session outlives it: if it was the last, the record is removed, and no end is owed.
    /// [`Applied::Ok`].
    Keep {
        /// The session.
        id: SessionId,
        /// Its generation.
        generation: GenerationId,
    },
    /// The host has finalised the session itself: the record is removed, whoever holds it, and no end is owed.
    /// [`Applied::Ok`].
    Forget {
        /// The session.
        id: SessionId,
        /// Its generation.
        generation: GenerationId,
    },
}

/// What came of a [`Change`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Applied {
    /// A record was made.
    Created,
    /// The session was recorded already, by this: the same generation goes on.
    Joined(Record),
    /// The end is this holder's to deliver. `requests` is the sum over all that have held the session and let go,
    /// this one included.
    Owned {
        /// Requests that carried the session's id.
        requests: u64,
    },
    /// Others still hold it.
    HeldElsewhere,
    /// It was ended, or taken over, by somebody else.
    NotFound,
    /// Nothing to say.
    Ok,
}

/// A pending end of a holder whose lease has expired; from [`Registry::claim_orphans`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Orphan {
    /// The generation.
    pub record: Record,
    /// The end: [`Lost`](EndReason::Lost), found out just now, or what its claimer had written down.
    pub end: EndRecord,
    /// How often it has been claimed so far by a take-over, this one included.
    pub attempts: u32,
}

impl Orphan {
    /// An orphan, for implementations and their tests.
    #[must_use]
    pub const fn new(record: Record, end: EndRecord, attempts: u32) -> Self {
        Self { record, end, attempts }
    }
}

/// What a birth waits for, where there is a [`Registry`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// The response head of a new session leaves once the session is recorded, or after 250 ms: no client holds an id
    /// that a crash could orphan.
    #[default]
    Strict,
    /// The record is written behind; a crash may lose the sessions of the last moments.
    Relaxed,
}
