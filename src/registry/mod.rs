//! [`Registry`]: a durable record of active sessions, which outlives the process.
//!
//! The tracker in memory answers every request. The registry receives session starts and ends only, in batches. After
//! SIGKILL, a power cut or a drain that timed out, the next start or a surviving process claims the pending ends. When
//! several replicas hold one session, only the last holder ends it.

#[cfg(feature = "registry-conformance")]
pub mod conformance;
mod dyn_registry;
mod error;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod lease;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod process;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::{
    future::Future,
    time::{Duration, Instant, SystemTime},
};

pub(crate) use self::dyn_registry::DynRegistry;
pub use self::error::RegistryError;
#[cfg(feature = "postgres")]
pub use self::postgres::{PostgresRegistry, PostgresRegistryBuilder, PostgresTransactionHook};
#[cfg(feature = "redis")]
pub use self::redis::{RedisRegistry, RedisRegistryBuilder};
#[cfg(feature = "sqlite")]
pub use self::sqlite::{SqliteRegistry, SqliteRegistryBuilder, SqliteTransactionHook};
use crate::session::{EndReason, GenerationId, Session, SessionId};
/// The version of `rusqlite` whose types a [`SqliteTransactionHook`] gets.
#[cfg(feature = "sqlite")]
pub use rusqlite;
/// The version of `sqlx` whose pool a [`PostgresRegistry`] uses, and whose types a [`PostgresTransactionHook`] gets.
#[cfg(feature = "postgres")]
pub use sqlx;

/// A durable record of active sessions, their holders and their pending ends.
///
/// The crate provides `SqliteRegistry` (feature `sqlite`), `PostgresRegistry` (feature `postgres`) and `RedisRegistry` (feature
/// `redis`). Implement the trait for another database, and test the implementation with `registry::conformance` (feature `registry-conformance`).
///
/// # Records
///
/// There is one record for each generation, from its first [`Hold`](Change::Hold) until its end is
/// [`Delivered`](Change::Delivered). A record is **active**, or it has **ended**: then it has a reason, and one holder has
/// claimed the end. Nothing deletes an ended record but `Delivered`, by the holder that has claimed it.
///
/// # Holders
///
/// Each instance is one **holder** (one process lifetime) and owns a **lease**. The lease must expire if, and only if,
/// the process dies: an exclusive file lock, for example, or an expiry time that [`heartbeat`](Self::heartbeat) renews.
/// Other holders recover the sessions and claimed ends of a holder without a lease, with
/// [`claim_orphans`](Self::claim_orphans). One living holder **adopts** a dead one with all that it held and had claimed. From
/// then on the dead holder holds nothing: an active record that only adopted holders hold is an orphan of the adopter, and its
/// session is lost.
///
/// # Notices
///
/// When a holder ends or forgets a session for all, each other living holder of it gets a **notice**. Its heartbeats return the
/// notice until it has [acknowledged](Change::Acknowledge) it. The notice also answers a repeated change of a generation that
/// has no record any more: [`Applied::Gone`].
///
/// # Calls
///
/// Every call may be repeated after an error, because the caller cannot know which part of it was applied. Each change,
/// and each sequence of changes, must be idempotent for the same holder and the same generation. A call is dropped
/// after one second (earlier in a drain). A dropped call, and a call that panics, counts as
/// [`Unavailable`](RegistryError::Unavailable). No call should occupy the store for more than 50 ms.
pub trait Registry: Send + Sync + 'static {
    /// Applies all changes, or none of them. Returns one answer per change, in the same order.
    ///
    /// There are at most 1,000 changes, and no session id and no generation occurs in two of them, so they can be applied in
    /// any order, or at once. One call is in flight at a time. Changes that arrive meanwhile are batched into the next call.
    ///
    /// # Errors
    ///
    /// [`RegistryError`]. The caller cannot assume that any change was applied, or that none was.
    fn apply(&self, changes: Vec<Change>) -> impl Future<Output = Result<Vec<Applied>, RegistryError>> + Send;

    /// As [`apply`](Self::apply), for a caller that drops the call at `deadline`. This crate calls `apply` through this method
    /// only. By default it calls `apply`.
    ///
    /// Implement it if the store may apply a change after its call was dropped: a command that has left the process, a thread
    /// that waits for a lock. Nothing should be applied after `deadline`. A drain that gets no answer about a record may have
    /// to deliver the end of the session, and a record that is written afterwards leads to a second end.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply).
    fn apply_before(
        &self,
        changes: Vec<Change>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Vec<Applied>, RegistryError>> + Send {
        let _ = deadline;
        self.apply(changes)
    }

    /// Renews the lease, and returns what this holder has to know. Called every
    /// [`heartbeat_interval`](Self::heartbeat_interval).
    ///
    /// # Errors
    ///
    /// [`RegistryError`]. After [`Fenced`](RegistryError::Fenced) the holder already has a new lease.
    fn heartbeat(&self) -> impl Future<Output = Result<Heartbeat, RegistryError>> + Send;

    /// Claims up to `max` orphaned ends for this holder:
    ///
    /// * sessions whose holders have all lost their leases, with the reason [`Lost`](EndReason::Lost);
    /// * undelivered ends that were claimed by a holder without a lease, with their recorded reason;
    /// * dead letters that an operator has asked to deliver again, with their recorded reason.
    ///
    /// [Dead letters](Change::DeadLetter) are not claimed. A claim is durable: if this holder dies too, another holder finds it
    /// again. Two holders never claim the same end. An empty answer means that there are no orphans at the moment, or that
    /// the call has read enough: then the next heartbeat [says so](Heartbeat::has_more). If the answer of a call does not arrive (an error, a dropped future), a later call returns the same orphans again.
    ///
    /// # Errors
    ///
    /// [`RegistryError`].
    fn claim_orphans(&self, max: usize) -> impl Future<Output = Result<Vec<Orphan>, RegistryError>> + Send;

    /// Releases the lease. Other holders can claim this holder's sessions and pending ends at once. This is the last
    /// call.
    ///
    /// # Errors
    ///
    /// [`RegistryError`]. The lease then expires as if the process had died.
    fn release_lease(&self) -> impl Future<Output = Result<(), RegistryError>> + Send;

    /// The name of this registry's transaction hook, for logs and reports. `None`, the default, if it has none.
    ///
    /// A transaction hook writes in the registry's own transactions. It is called when a [`Hold`](Change::Hold) creates a
    /// record, and when [`Delivered`](Change::Delivered) removes one or [`Commit`](Change::Commit) marks it.
    fn transaction_hook(&self) -> Option<&str> {
        None
    }

    /// Whether the lease is certainly still valid, by a clock of this process. Checked before each delivery of a
    /// recorded `session_end`.
    ///
    /// If it returns `false`, the end is claimed again after the next successful [`heartbeat`](Self::heartbeat), and
    /// delivered if this holder still owns it. In a drain it is left to other holders. The default is `true`.
    fn lease_is_valid(&self) -> bool {
        true
    }

    /// The interval of [`heartbeat`](Self::heartbeat) and [`claim_orphans`](Self::claim_orphans) calls. The default is
    /// 2 s.
    fn heartbeat_interval(&self) -> Duration {
        Duration::from_secs(2)
    }
}

/// The answer to [`Registry::heartbeat`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heartbeat {
    /// The oldest notices of this holder, 1,000 at most. The caller [acknowledges](Change::Acknowledge) each.
    pub notices: Vec<Notice>,
    /// Whether there are more notices, or there may be orphans although the last [`claim_orphans`](Registry::claim_orphans)
    /// returned none. The caller then claims orphans, and sends the next heartbeat once it has acknowledged the notices.
    pub has_more: bool,
    /// The number of [dead letters](Change::DeadLetter) in the store, of all holders.
    pub dead_letters: u64,
}

impl Heartbeat {
    /// Creates an answer, for implementations and their tests.
    #[must_use]
    pub const fn new(notices: Vec<Notice>, has_more: bool, dead_letters: u64) -> Self {
        Self { notices, has_more, dead_letters }
    }
}

/// A session that this holder held was ended or forgotten by another one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notice {
    /// The session.
    pub id: SessionId,
    /// Its generation.
    pub generation: GenerationId,
    /// How long ago it ended, by the clock of the store.
    pub age: Duration,
}

impl Notice {
    /// Creates a notice, for implementations and their tests.
    #[must_use]
    pub const fn new(id: SessionId, generation: GenerationId, age: Duration) -> Self {
        Self { id, generation, age }
    }
}

/// The record of one generation of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The session and its details.
    pub session: Session,
    /// The identity of the generation. Its `session_end` carries it, from any holder that delivers it.
    pub generation: GenerationId,
    /// When the generation started.
    pub started_at: SystemTime,
}

impl Record {
    /// Creates a record, for implementations and their tests.
    #[must_use]
    pub const fn new(session: Session, generation: GenerationId, started_at: SystemTime) -> Self {
        Self { session, generation, started_at }
    }
}

/// The record of a session's end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndRecord {
    /// Why the session ended.
    pub reason: EndReason,
    /// The session that replaces it after a compaction.
    pub next: Option<Session>,
    /// When the session ended.
    pub ended_at: SystemTime,
    /// The number of requests: counted by this holder in a [`Change`], by all that released the session in an
    /// [`Orphan`].
    pub requests: u64,
}

impl EndRecord {
    /// Creates an end, for implementations and their tests.
    #[must_use]
    pub const fn new(reason: EndReason, next: Option<Session>, ended_at: SystemTime, requests: u64) -> Self {
        Self { reason, next, ended_at, requests }
    }
}

/// A change to the registry; see [`Registry::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// This holder holds the session from now on.
    ///
    /// * A record with this generation is active: this holder is added to it, and the details are replaced.
    ///   [`Applied::Created`].
    /// * This holder has claimed the end of this generation: [`Applied::Created`]. Nothing changes.
    /// * There is a notice of this generation for this holder, or its record has ended otherwise: [`Applied::Gone`].
    /// * Unless the mode is [`Create`](HoldMode::Create), the id has an active record that a holder which is not adopted holds:
    ///   this holder is added to it. [`Applied::Joined`] returns it. If there are several, the oldest one.
    /// * The mode is [`Join`](HoldMode::Join): nothing changes. [`Applied::NotFound`].
    /// * Otherwise a record is created: [`Applied::Created`]. An active record of the id that only adopted holders hold ends
    ///   first, with the reason [`Lost`](EndReason::Lost), as an orphan of their adopter.
    Hold {
        /// The record.
        record: Record,
        /// What becomes of a generation that has no record yet.
        mode: HoldMode,
    },
    /// The details of a session that this holder holds have changed.
    ///
    /// [`Applied::Ok`]; [`Applied::Gone`] if this holder holds no active record with this generation.
    Update(Record),
    /// This holder releases the session.
    ///
    /// [`Applied::HeldElsewhere`] if the session has other holders that have not released it, with or without a lease, or if
    /// this holder has released it before. Otherwise the end is recorded and claimed by this holder: [`Applied::Owned`].
    ///
    /// If this holder holds no active record with this id and generation: [`Applied::Owned`] if it has claimed this end
    /// before, else [`Applied::Gone`].
    Release {
        /// The session.
        id: SessionId,
        /// Its generation.
        generation: GenerationId,
        /// The end to record if this is the last holder.
        end: EndRecord,
    },
    /// The session ends for all holders. Each other living holder gets a notice.
    ///
    /// The end is recorded and claimed by this holder: [`Applied::Owned`]. If there is no active record with this id
    /// and generation: [`Applied::Owned`] if this holder has claimed this end before, else [`Applied::Gone`].
    End {
        /// The session.
        id: SessionId,
        /// Its generation.
        generation: GenerationId,
        /// The end.
        end: EndRecord,
    },
    /// A hook is called for an end that this holder has claimed.
    ///
    /// [`Applied::Ok`], also if there is no such end.
    Attempted {
        /// The generation.
        generation: GenerationId,
        /// The number of such calls so far, including this one. It is stored, and [`Orphan::attempts`] returns it.
        attempts: u32,
    },
    /// An end that this holder has claimed was delivered: remove its record.
    ///
    /// [`Applied::Ok`], also if there is no such end. With a [transaction hook](Registry::transaction_hook) that has not
    /// run for this end, the hook is called in the transaction that removes the record. If it fails, the record stays:
    /// [`Applied::Failed`].
    Delivered {
        /// The generation.
        generation: GenerationId,
    },
    /// Other hooks of an end that this holder has claimed have failed: call the [transaction hook](Registry::transaction_hook)
    /// now, and keep the record. The transaction marks it, so that the hook is not called again.
    ///
    /// [`Applied::Ok`], also if there is no such end, and [`Applied::Failed`] as for [`Delivered`](Self::Delivered). A
    /// registry without a transaction hook gets no such change.
    Commit {
        /// The generation.
        generation: GenerationId,
    },
    /// The hooks of an end that this holder has claimed have failed too often. The record is kept for an operator, and no
    /// holder claims it until the operator asks for it.
    ///
    /// [`Applied::Ok`], also if there is no such end.
    DeadLetter {
        /// The generation.
        generation: GenerationId,
        /// The last error of a hook.
        error: String,
    },
    /// This holder releases the session without an end. If no other holder has a hold that it has not released, the record is
    /// removed, and no end is pending.
    ///
    /// [`Applied::Ok`].
    Keep {
        /// The session.
        id: SessionId,
        /// Its generation.
        generation: GenerationId,
    },
    /// The host has finalised the session itself. The active record is removed for all holders, and no end is pending. Each
    /// other living holder gets a notice.
    ///
    /// [`Applied::Ok`].
    Forget {
        /// The session.
        id: SessionId,
        /// Its generation.
        generation: GenerationId,
    },
    /// This holder has learned that the generation has ended: remove its notice.
    ///
    /// [`Applied::Ok`].
    Acknowledge {
        /// The session.
        id: SessionId,
        /// Its generation.
        generation: GenerationId,
    },
}

/// Which records a [`Change::Hold`] may join or create, for a generation that has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HoldMode {
    /// Join the active record of another generation of the id, or create one. Start hooks are called once it is created.
    JoinOrCreate,
    /// Join, and create no record. The id came with a request, and another process may be about to record it.
    Join,
    /// Create, beside the records of other generations. The start hooks of this generation have been called.
    Create,
}

/// The answer to a [`Change`].
#[allow(clippy::large_enum_variant, reason = "an answer is used at once")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Applied {
    /// The holder holds a record of its own generation.
    Created,
    /// The session has this active record already. Its generation continues.
    Joined(Record),
    /// There is no record to [join](HoldMode::Join).
    NotFound,
    /// This holder delivers the end.
    Owned {
        /// Requests that carried the session's id, summed over all holders that have released it, including this one.
        requests: u64,
    },
    /// Other holders still hold the session.
    HeldElsewhere,
    /// There is no such active record. For a session that this holder held: another holder has ended it, or has recovered it.
    Gone,
    /// The change was applied.
    Ok,
    /// The transaction hook has failed with this error, and the record stays. Nothing that it wrote is kept.
    Failed(String),
}

/// A pending end of a holder whose lease has expired; from [`Registry::claim_orphans`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Orphan {
    /// The generation.
    pub record: Record,
    /// The end: [`Lost`](EndReason::Lost) at the time of this recovery, or the recorded end.
    pub end: EndRecord,
    /// The [`attempts`](Change::Attempted) so far. A claim is no attempt.
    pub attempts: u32,
}

impl Orphan {
    /// Creates an orphan, for implementations and their tests.
    #[must_use]
    pub const fn new(record: Record, end: EndRecord, attempts: u32) -> Self {
        Self { record, end, attempts }
    }
}

/// An end whose hooks have failed too often. It stays in the store until an operator asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The generation.
    pub record: Record,
    /// The end.
    pub end: EndRecord,
    /// The calls of hooks.
    pub attempts: u32,
    /// The last error of a hook.
    pub error: String,
}

impl DeadLetter {
    /// Creates a dead letter, for implementations and their tests.
    #[must_use]
    pub const fn new(record: Record, end: EndRecord, attempts: u32, error: String) -> Self {
        Self { record, end, attempts, error }
    }
}

/// Whether a session start waits for its record in the [`Registry`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// The response head of a new session is sent once the session is recorded, or after 250 ms. Within these 250 ms no
    /// client learns an id that a crash could lose.
    #[default]
    Strict,
    /// The response head is sent at once and the record is written later. A crash may lose the most recent sessions.
    Relaxed,
}
