//! The active sessions: a sharded map from ids to generations, and the order of their hooks.
//!
//! The rule that the guarantees rest on is **claim = remove**. A generation leaves the active ones once, under its
//! shard's lock. The caller that removed it queues its one `session_end` under the same lock. No user code runs under a
//! lock.
//!
//! A claimed generation stays in its shard, beside the active ones, until its hooks have completed: the next generation
//! of the id starts after it.
//!
//! Why no map from a crate: the claim, the count and the queued hook have to change under one lock, of two shards in a
//! compaction. The shards take 54 to 67 ns per read and 80 to 84 ns per write (dashmap 122 to 129 and 109 to 122,
//! papaya 91 to 101 and 196 to 263, scc 81 and 102 to 109; 20,000 ids, 99 % reads, half inserts and half removes).

mod children;
mod claim;
pub(crate) mod clock;
mod compact;
mod doubt;
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
pub(crate) mod shuttle_tests;
mod snapshot;
mod sweep;
mod tombstones;

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use hashbrown::DefaultHashBuilder;
use tokio::sync::Notify;

use self::{
    clock::{Clock, Nanos, Tick},
    shard::Shard,
};
pub(crate) use self::{
    compact::Compacted,
    generation::{Activity, CalledEnd, FailedDelivery, Generation, PendingEnd, RecordState, Redelivery, Scope, Stage},
    note::{NoteSource, Noted, Origin},
    order::Outcome,
    outbox::{Outbox, OutboxEntry, Queued},
    queue::{Job, Queue},
    recovery::Recovery,
    shard::Counts,
    sweep::ExpiryLimits,
    tombstones::ClaimNumber,
};
use crate::{
    observability::Meters,
    session::{EndReason, GenerationId, Phase},
    sync::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, RwLock, lock},
};

/// A table grows under its shard's lock. With 16 shards that paused notes for up to 22 ms. With 2,048 shards and ten
/// million sessions, no step moves more than 3,584 entries.
#[cfg(not(any(shuttle, few_shards)))]
const SHARDS: usize = 2048;
/// For tests of many short lives, which would spend their time on empty shards.
#[cfg(all(few_shards, not(shuttle)))]
const SHARDS: usize = 16;
/// Every lock is a point where schedules branch.
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
    /// Sessions that start in `Closing` end with this reason.
    shutdown_reason: AtomicU8,
    /// Pending ends that no report has given up.
    awaited: AtomicUsize,
    /// The drain does not wait for this generation and later ones; `finish` does.
    first_late_number: AtomicU64,
    /// The sessions that started before `Closing` have numbers up to this one.
    last_open_number: AtomicU64,
    /// Doubted generations, and when each doubt began, in order.
    doubts: Mutex<VecDeque<(Arc<Generation>, Nanos)>>,
    /// A copy of the length of `doubts`, so an empty queue is not locked.
    doubt_count: AtomicUsize,
    /// Notified when a generation is doubted.
    pub(crate) doubted: Notify,
    /// Notified when `awaited` or the number of active sessions becomes 0.
    pub(crate) drained: Notify,
    /// Compactions hold it shared. A snapshot holds it exclusively, so it sees either the old session or the new one.
    compaction_lock: RwLock<()>,
    pub(crate) queue: Queue,
    /// `Some` with a registry.
    outbox: Option<Arc<Outbox>>,
    pub(crate) clock: Clock,
    pub(crate) meters: Meters,
    has_start: bool,
    has_end: bool,
    /// Whether a session that starts in `Closing` ends under the same lock. Otherwise the caller of `note` ends it.
    ends_late_starts: bool,
}

/// Every start and every claim writes these, so they have a cache line of their own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Totals {
    /// Generations so far. They are numbered from 1.
    generations: AtomicU64,
    /// Claims so far.
    claimed: AtomicU64,
}

impl Tracker {
    /// `has_start` and `has_end`: there are hooks to call. `ends_late_starts`: a session that starts in
    /// [`Phase::Closing`] ends at once. `outbox`: `Some` with a registry.
    pub(crate) fn new(has_start: bool, has_end: bool, ends_late_starts: bool, outbox: Option<Arc<Outbox>>) -> Self {
        // Each half is a hash with a random key of the system.
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
            first_late_number: AtomicU64::new(u64::MAX),
            last_open_number: AtomicU64::new(0),
            doubts: Mutex::default(),
            doubt_count: AtomicUsize::new(0),
            doubted: Notify::new(),
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

    pub(crate) fn find(&self, id: &[u8]) -> Option<Arc<Generation>> {
        let hash = self.hash(id);
        self.shard(hash).find_active(hash, id).cloned()
    }

    /// As [`find`](Self::find), and begins a request. Both happen under the lock, so no sweep sees the session idle in
    /// between.
    pub(crate) fn begin_request(&self, id: &[u8]) -> Option<Arc<Generation>> {
        let hash = self.hash(id);
        let shard = self.shard(hash);
        let generation = shard.find_active(hash, id)?;
        // Its last activity is written when this one ends: until then it is not idle.
        generation.begin_activity(Activity::Work);
        generation.count_request();
        Some(Arc::clone(generation))
    }

    /// Begins work of the active generation of `id`.
    pub(crate) fn begin_work(&self, id: &[u8]) -> Option<Arc<Generation>> {
        self.begin_work_of(&self.find(id)?)
    }

    /// Begins work of this generation, or of the one that it was compacted into.
    pub(crate) fn begin_work_of(&self, generation: &Arc<Generation>) -> Option<Arc<Generation>> {
        let mut generation = Arc::clone(generation);
        loop {
            {
                // No work begins once it is claimed.
                let _shard = self.shard(self.hash_of(&generation));
                if generation.is_active() {
                    generation.begin_activity(Activity::Work);
                    generation.trust();
                    return Some(generation);
                }
            }
            generation = generation.successor()?;
        }
    }

    /// The number of claims so far: the moment at which a request begins.
    #[inline]
    pub(crate) fn claim_number(&self) -> ClaimNumber {
        self.totals.claimed.load(Ordering::SeqCst)
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        loop {
            // Claims are read first, so they are never more than the generations.
            let claimed = self.totals.claimed.load(Ordering::SeqCst);
            let generations = self.totals.generations.load(Ordering::SeqCst);
            // A claim between the two loads would make the difference wrong.
            if claimed == self.totals.claimed.load(Ordering::SeqCst) {
                return (generations - claimed) as usize;
            }
        }
    }

    /// The number of pending ends that a drain waits for.
    pub(crate) fn awaited(&self) -> usize {
        self.awaited.load(Ordering::SeqCst)
    }

    pub(crate) fn generation_id(&self, generation: &Generation) -> GenerationId {
        let recorded = self.outbox.as_ref().and_then(|_| generation.registry_view(|view| view.generation));
        recorded.unwrap_or(GenerationId::new(self.instance, generation.number))
    }

    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        Phase::from_code(self.phase.load(Ordering::SeqCst))
    }

    /// Moves on to `phase`, never back. Sessions that start from `Closing` on end with `reason`.
    pub(crate) fn advance(&self, phase: Phase, reason: EndReason) {
        if self.phase() < Phase::Closing {
            self.shutdown_reason.store(reason.code() + 1, Ordering::SeqCst);
            if phase == Phase::Closing {
                self.last_open_number.store(self.totals.generations.load(Ordering::SeqCst), Ordering::SeqCst);
            }
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

    /// The coarse time of the last start, or of the driver's last step.
    #[inline]
    pub(crate) fn tick(&self) -> Tick {
        self.tick.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_tick(&self, now: Nanos) {
        let tick = Clock::tick(now);
        // Avoid the store when unchanged, so readers keep the cache line shared.
        if self.tick() != tick {
            self.tick.store(tick, Ordering::Relaxed);
        }
    }

    /// Returns true if that was the last awaited end. The caller then notifies [`drained`](Self::drained), with no lock
    /// held.
    fn decrement_awaited(&self) -> bool {
        self.awaited.fetch_sub(1, Ordering::SeqCst) == 1
    }

    #[inline]
    fn hash(&self, id: &[u8]) -> u64 {
        self.hasher.hash_one(id)
    }

    #[inline]
    fn hash_of(&self, generation: &Generation) -> u64 {
        self.hash(generation.id.as_bytes())
    }

    /// Uses other bits of the hash than the tables do.
    fn index(hash: u64) -> usize {
        (hash >> 40) as usize % SHARDS
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        lock(&self.shards[Self::index(hash)])
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.meters.on_handle_drop(self.len());
    }
}
