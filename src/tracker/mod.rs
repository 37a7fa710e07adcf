//! Who is active: a sharded map from ids to generations, and the order of their hooks.
//!
//! The one rule that makes everything else safe: **claim = remove**. A generation leaves the set of the active by
//! `Active -> Owed` or `Active -> Forgotten`, under its shard's lock, once; whoever made that step owes its one
//! `session_end`, and hands the job over under the same lock. No user code runs under a lock.
//!
//! A claimed generation stays findable in its shard until its hooks are over, beside the active ones, so that the next
//! generation of the id queues behind it.

mod claim;
pub(crate) mod clock;
mod compact;
mod effects;
mod generation;
#[cfg(all(test, not(shuttle)))]
mod hash_flooding;
mod note;
mod order;
pub(crate) mod outbox;
mod persistence;
pub(crate) mod queue;
mod recovery;
mod shard;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
mod snapshot;
mod sweep;
mod tombstones;

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use hashbrown::DefaultHashBuilder;
use tokio::sync::Notify;

pub(crate) use self::{
    claim::EndedBy,
    generation::{Activity, Generation, Origin, PendingEnd, RecordState, Scope, Stage},
    note::{NoteSource, Noted},
    order::Outcome,
    outbox::{Outbox, OutboxEntry},
    queue::{Job, Queue},
    recovery::Recovery,
    shard::Counts,
};
use self::{
    clock::{Clock, Nanos, Tick},
    shard::Shard,
};
use crate::{
    observability::Meters,
    session::{EndReason, GenerationId, Phase},
    sync::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, RwLock, lock},
};

/// So many, because a table that grows does so under its lock: at ten million sessions no shard has moved more than
/// 3,584 entries at a time.
#[cfg(not(shuttle))]
const SHARDS: usize = 2048;
/// Few, because every lock is a point where schedules branch.
#[cfg(shuttle)]
const SHARDS: usize = 2;

#[derive(Debug)]
pub(crate) struct Tracker {
    shards: Box<[Mutex<Shard>]>,
    hasher: DefaultHashBuilder,
    instance: u128,
    totals: Totals,
    tick: AtomicU32,
    next_to_expire: AtomicUsize,
    next_to_evict: AtomicUsize,
    phase: AtomicU8,
    /// The reason that what is born in `Closing` ends with.
    shutdown_reason: AtomicU8,
    /// Ends that are owed, not over, and that no report has given up.
    awaited: AtomicUsize,
    /// From this generation on the drain waits for nobody: `finish` does.
    late_from: AtomicU64,
    /// Told when `awaited` comes to zero.
    pub(crate) drained: Notify,
    /// Compactions hold it shared, so that who holds it alone sees the old or the new, always one.
    compaction_lock: RwLock<()>,
    pub(crate) queue: Queue,
    /// Where there is a registry.
    outbox: Option<Arc<Outbox>>,
    pub(crate) clock: Clock,
    pub(crate) meters: Meters,
    has_start: bool,
    has_end: bool,
    /// Whether what is born in `Closing` ends under the same lock; if not, its noter sees to it.
    ends_late_starts: bool,
}

/// What every birth and every claim writes: on a line of its own, so that those who write it do not disturb those who
/// read the rest.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Totals {
    /// How many there ever were. Generations are numbered from 1 on.
    generations: AtomicU64,
    /// How many of them were claimed.
    claimed: AtomicU64,
}

impl Tracker {
    /// `has_start` and `has_end` say whether there is a hook to call; `ends_late_starts`, whether whatever is born in
    /// [`Phase::Closing`] ends at once; `is_recorded`, whether there is a registry.
    pub(crate) fn new(has_start: bool, has_end: bool, ends_late_starts: bool, outbox: Option<Arc<Outbox>>) -> Self {
        // ShardPair keyed hashes of the system's randomness.
        let half = || u128::from(RandomState::new().hash_one(std::process::id()));
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            instance: half() << 64 | half(),
            totals: Totals::default(),
            tick: AtomicU32::new(0),
            next_to_expire: AtomicUsize::new(0),
            next_to_evict: AtomicUsize::new(0),
            phase: AtomicU8::new(Phase::Open.code()),
            shutdown_reason: AtomicU8::new(0),
            awaited: AtomicUsize::new(0),
            late_from: AtomicU64::new(u64::MAX),
            drained: Notify::new(),
            compaction_lock: RwLock::new(()),
            queue: Queue::new(),
            outbox,
            clock: Clock::new(),
            meters: Meters::new(),
            has_start,
            has_end,
            ends_late_starts,
        }
    }

    #[inline]
    fn hash(&self, id: &[u8]) -> u64 {
        self.hasher.hash_one(id)
    }

    #[inline]
    fn hash_of(&self, generation: &Generation) -> u64 {
        self.hash(generation.id.as_bytes())
    }

    /// Bits that the tables do not look at first.
    fn index(hash: u64) -> usize {
        (hash >> 40) as usize % SHARDS
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        lock(&self.shards[Self::index(hash)])
    }

    pub(crate) fn generation_id(&self, generation: &Generation) -> GenerationId {
        let elsewhere = self.outbox.as_ref().and_then(|_| generation.origin(|origin| origin.generation));
        elsewhere.unwrap_or(GenerationId::new(self.instance, generation.number))
    }

    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        Phase::from_code(self.phase.load(Ordering::SeqCst))
    }

    /// Moves on to `phase`; what is born from `Closing` on ends with `reason`. Never moves back.
    pub(crate) fn advance(&self, phase: Phase, reason: EndReason) {
        if self.phase() < Phase::Closing {
            self.shutdown_reason.store(reason.code() + 1, Ordering::SeqCst);
        }
        self.phase.fetch_max(phase.code(), Ordering::SeqCst);
    }

    /// The reason of the shutdown under way, or that of one to come.
    pub(crate) fn shutdown_reason(&self) -> EndReason {
        self.requested_shutdown().unwrap_or(EndReason::Shutdown)
    }

    /// The reason of the shutdown under way, if one was requested.
    pub(crate) fn requested_shutdown(&self) -> Option<EndReason> {
        self.shutdown_reason.load(Ordering::SeqCst).checked_sub(1).map(EndReason::from_code)
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        loop {
            // The claims first: there are never more of them than generations.
            let claimed = self.totals.claimed.load(Ordering::SeqCst);
            let generations = self.totals.generations.load(Ordering::SeqCst);
            // Else some came and went between the two looks.
            if claimed == self.totals.claimed.load(Ordering::SeqCst) {
                return (generations - claimed) as usize;
            }
        }
    }

    /// How many ends somebody should still wait for.
    pub(crate) fn awaited(&self) -> usize {
        self.awaited.load(Ordering::SeqCst)
    }

    pub(crate) fn find(&self, id: &[u8]) -> Option<Arc<Generation>> {
        let hash = self.hash(id);
        self.shard(hash).find_active(hash, id).cloned()
    }

    /// As [`find`](Self::find), for a request: the session is busy from here on. Under the lock, so that nobody finds it
    /// idle in between.
    pub(crate) fn begin_activity(&self, id: &[u8], tick: Tick) -> Option<Arc<Generation>> {
        let hash = self.hash(id);
        let shard = self.shard(hash);
        let generation = shard.find_active(hash, id)?;
        generation.begin_activity(Activity::Request);
        generation.touch(tick);
        generation.count_request();
        Some(Arc::clone(generation))
    }

    /// The coarse time, as of the last birth or the driver's last step.
    #[inline]
    pub(crate) fn tick(&self) -> Tick {
        self.tick.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_tick(&self, now: Nanos) {
        let tick = Clock::tick(now);
        // Seldom news; a write would take the line from everybody who reads it.
        if self.tick() != tick {
            self.tick.store(tick, Ordering::Relaxed);
        }
    }

    /// True if that was the last: then tell [`drained`](Self::drained), once no lock is held.
    fn no_longer_awaited(&self) -> bool {
        self.awaited.fetch_sub(1, Ordering::SeqCst) == 1
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.meters.on_handle_drop(self.len());
    }
}
