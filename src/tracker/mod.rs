//! Who is active: a sharded map from ids to generations, and the order of their hooks.
//!
//! The one rule that makes everything else safe: **claim = remove**. A generation leaves the set of the active by
//! `Active -> Owed` or `Active -> Forgotten`, under its shard's lock, once; whoever made that step owes its one
//! `session_end`, and hands the job over under the same lock. No user code runs under a lock.
//!
//! A claimed generation stays findable in its shard until its hooks are over, so that the next generation of the id
//! queues behind it.

mod chain;
pub(crate) mod clock;
mod entry;
pub(crate) mod queue;
#[cfg(all(test, shuttle))]
mod schedules;
mod shard;

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Arc, PoisonError},
};

use hashbrown::DefaultHashBuilder;
use tokio::sync::Notify;

pub(crate) use self::{
    chain::Outcome,
    entry::{Ending, Entry, Stage},
    queue::{Job, Queue},
    shard::Counts,
};
use self::{chain::Released, clock::Clock, shard::Shard};
use crate::{
    session::{EndReason, EventId, Phase, Session},
    sync::{AtomicU8, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, RwLock, lock},
};

/// Many, because a table that grows does so under its lock.
#[cfg(not(shuttle))]
const SHARDS: usize = 512;
/// Few, because every lock is a point where schedules branch.
#[cfg(shuttle)]
const SHARDS: usize = 2;

#[derive(Debug)]
pub(crate) struct Tracker {
    shards: Box<[Mutex<Shard>]>,
    hasher: DefaultHashBuilder,
    instance: u128,
    generations: AtomicU64,
    phase: AtomicU8,
    /// The reason that what is born in `Closing` ends with.
    stop_reason: AtomicU8,
    active: AtomicUsize,
    /// Ends that are owed, not over, and that no report has given up.
    awaited: AtomicUsize,
    /// Told when `awaited` comes to zero.
    pub(crate) quiet: Notify,
    /// Compactions hold it shared, so that who holds it alone sees the old or the new, always one.
    moving: RwLock<()>,
    pub(crate) queue: Queue,
    pub(crate) clock: Clock,
    has_start: bool,
    has_end: bool,
}

/// What came of a note.
#[derive(Debug)]
pub(crate) enum Note {
    /// It made this generation.
    Born(Arc<Entry>),
    /// The id was active, and has its new details.
    Known(Arc<Entry>),
    /// The handle is closed.
    Refused,
}

impl Tracker {
    /// `has_start` and `has_end` say whether there is a hook to call.
    pub(crate) fn new(has_start: bool, has_end: bool) -> Self {
        // Two keyed hashes of the system's randomness.
        let half = || u128::from(RandomState::new().hash_one(std::process::id()));
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            instance: half() << 64 | half(),
            generations: AtomicU64::new(1),
            phase: AtomicU8::new(Phase::Open.code()),
            stop_reason: AtomicU8::new(EndReason::Shutdown.code()),
            active: AtomicUsize::new(0),
            awaited: AtomicUsize::new(0),
            quiet: Notify::new(),
            moving: RwLock::new(()),
            queue: Queue::new(),
            clock: Clock::new(),
            has_start,
            has_end,
        }
    }

    fn hash(&self, id: &[u8]) -> u64 {
        self.hasher.hash_one(id)
    }

    fn hash_of(&self, entry: &Entry) -> u64 {
        self.hash(entry.id.as_bytes())
    }

    /// Bits that the tables do not look at first.
    fn index(hash: u64) -> usize {
        (hash >> 40) as usize % SHARDS
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        lock(&self.shards[Self::index(hash)])
    }

    pub(crate) fn event_id(&self, entry: &Entry) -> EventId {
        EventId::new(self.instance, entry.generation)
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::from_code(self.phase.load(Ordering::SeqCst))
    }

    /// Moves on to `phase`; what is born from `Closing` on ends with `reason`. Never moves back.
    pub(crate) fn advance(&self, phase: Phase, reason: EndReason) {
        if self.phase() < Phase::Closing {
            self.stop_reason.store(reason.code(), Ordering::SeqCst);
        }
        self.phase.fetch_max(phase.code(), Ordering::SeqCst);
    }

    pub(crate) fn stop_reason(&self) -> EndReason {
        EndReason::from_code(self.stop_reason.load(Ordering::SeqCst))
    }

    pub(crate) fn len(&self) -> usize {
        self.active.load(Ordering::SeqCst)
    }

    /// How many ends somebody should still wait for.
    pub(crate) fn awaited(&self) -> usize {
        self.awaited.load(Ordering::SeqCst)
    }

    pub(crate) fn find(&self, id: &[u8]) -> Option<Arc<Entry>> {
        let hash = self.hash(id);
        self.shard(hash).find_active(hash, id).cloned()
    }

    /// Notes a session; `replace` says what becomes of the details of one that is active already.
    pub(crate) fn note(&self, session: Session, replace: bool) -> Note {
        let hash = self.hash(session.id.as_bytes());
        let mut released = Released::default();
        let note = {
            let mut shard = self.shard(hash);
            if let Some(entry) = shard.find_active(hash, session.id.as_bytes()) {
                if replace {
                    entry.set_details(session);
                }
                return Note::Known(Arc::clone(entry));
            }
            // Read after the lock was taken: a sweep that has passed this shard has stored the phase before.
            if self.phase() == Phase::Closed {
                return Note::Refused;
            }
            let entry = self.birth(session, None);
            shard.insert(hash, &entry, |entry| self.hash_of(entry));
            self.settle_birth(&mut shard, &entry, &mut released);
            Note::Born(entry)
        };
        self.release(released);
        note
    }

    /// Replaces the details of this very generation, unless it is over or there are none.
    pub(crate) fn set_details(&self, entry: &Entry, session: Session) {
        if !session.is_bare() {
            entry.set_details(session);
        }
    }

    fn birth(&self, session: Session, resumed_from: Option<crate::session::SessionId>) -> Arc<Entry> {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        self.active.fetch_add(1, Ordering::SeqCst);
        Arc::new(Entry::new(session, generation, self.clock.now(), resumed_from))
    }

    /// The part of a birth after the insertion: its start, and in `Closing` its end.
    fn settle_birth(&self, shard: &mut Shard, entry: &Arc<Entry>, released: &mut Released) {
        if !entry.has_predecessors() {
            self.begin(shard, entry, released);
        }
        if self.phase() >= Phase::Closing {
            self.owe(shard, entry, self.ending(self.stop_reason()), released);
        }
    }

    fn ending(&self, reason: EndReason) -> Ending {
        Ending { reason, next: None, at: self.clock.now() }
    }

    /// Ends this very generation; false if somebody else has claimed it.
    pub(crate) fn claim(&self, entry: &Arc<Entry>, reason: EndReason) -> bool {
        // Most late comers need no lock.
        if !entry.is_active() {
            return false;
        }
        let mut released = Released::default();
        let claimed = {
            let mut shard = self.shard(self.hash_of(entry));
            entry.is_active() && {
                self.owe(&mut shard, entry, self.ending(reason), &mut released);
                true
            }
        };
        self.release(released);
        claimed
    }

    /// Ends the present generation of `id`; false if there is none.
    pub(crate) fn end(&self, id: &[u8], reason: EndReason) -> bool {
        self.find(id).is_some_and(|entry| self.claim(&entry, reason))
    }

    /// Claims the present generation of `id` silently; false if there is none.
    pub(crate) fn forget(&self, id: &[u8]) -> bool {
        let hash = self.hash(id);
        let mut released = Released::default();
        let forgotten = {
            let mut shard = self.shard(hash);
            let entry = shard.find_active(hash, id).cloned();
            entry.is_some_and(|entry| {
                self.disown(&mut shard, &entry, &mut released);
                true
            })
        };
        self.release(released);
        forgotten
    }

    /// Claims every active generation silently, and says how many there were.
    pub(crate) fn forget_all(&self) -> usize {
        self.claim_each(0..SHARDS, |tracker, shard, entry, released| tracker.disown(shard, entry, released))
    }

    /// The number of shards, for [`sweep`](Self::sweep).
    pub(crate) const fn shards() -> usize {
        SHARDS
    }

    /// Ends every active generation of one shard, and says how many there were.
    pub(crate) fn sweep(&self, shard: usize, reason: EndReason) -> usize {
        self.claim_each(shard..shard + 1, |tracker, shard, entry, released| {
            tracker.owe(shard, entry, tracker.ending(reason), released);
        })
    }

    fn claim_each(
        &self,
        shards: std::ops::Range<usize>,
        claim: impl Fn(&Self, &mut Shard, &Arc<Entry>, &mut Released),
    ) -> usize {
        let mut claimed = 0;
        for shard in &self.shards[shards] {
            let mut released = Released::default();
            {
                let mut shard = lock(shard);
                let active: Vec<_> = shard.active().cloned().collect();
                claimed += active.len();
                for entry in &active {
                    claim(self, &mut shard, entry, &mut released);
                }
            }
            self.release(released);
        }
        claimed
    }

    /// Ends `old` with reason `compaction` and notes `new`, in one step. With `generation`, only that generation of
    /// `old` counts. Says whether `old` was tracked, and what came of `new`.
    pub(crate) fn compact(&self, old: &[u8], generation: Option<&Arc<Entry>>, new: Session) -> (bool, Note) {
        let _moving = self.moving.read().unwrap_or_else(PoisonError::into_inner);
        let (old_hash, new_hash) = (self.hash(old), self.hash(new.id.as_bytes()));
        let mut released = Released::default();
        let result = {
            let mut shards = Two::lock(&self.shards, Self::index(old_hash), Self::index(new_hash));
            let is_meant = |entry: &&Arc<Entry>| generation.is_none_or(|meant| Arc::ptr_eq(meant, entry));
            let old = shards.first().find_active(old_hash, old).filter(is_meant).cloned();
            let ending = Ending { next: Some(Box::new(new.clone())), ..self.ending(EndReason::Compaction) };
            let known = shards.second().find_active(new_hash, new.id.as_bytes()).cloned();
            let note = match known {
                Some(entry) => {
                    if old.as_ref().is_some_and(|old| Arc::ptr_eq(old, &entry)) {
                        return (true, Note::Known(entry)); // to itself: nothing to do
                    }
                    entry.set_details(new);
                    Note::Known(entry)
                }
                None if self.phase() == Phase::Closed => return (false, Note::Refused),
                None => {
                    let entry = self.birth(new, old.as_ref().map(|old| old.id.clone()));
                    shards.second().insert(new_hash, &entry, |entry| self.hash_of(entry));
                    if let Some(old) = &old {
                        old.precede(&entry);
                    }
                    Note::Born(entry)
                }
            };
            if let Some(old) = &old {
                self.owe(shards.first(), old, ending, &mut released);
            }
            if let Note::Born(entry) = &note {
                self.settle_birth(shards.second(), entry, &mut released);
            }
            (old.is_some(), note)
        };
        self.release(released);
        result
    }

    /// A copy of what is active at one moment.
    pub(crate) fn snapshot(&self) -> Vec<Session> {
        let _still = self.moving.write().unwrap_or_else(PoisonError::into_inner);
        let mut sessions = Vec::with_capacity(self.len());
        for shard in &self.shards {
            sessions.extend(lock(shard).active().map(|entry| entry.session()));
        }
        sessions
    }

    /// The sum of all shards' counts: each shard balances at the moment it is read, and so does the sum. From now on
    /// somebody waits for every end that is owed.
    pub(crate) fn counts_and_await_all(&self) -> Counts {
        let mut sum = Counts::default();
        for shard in &self.shards {
            let shard = lock(shard);
            sum.add(&shard.counts);
            let adopted = shard.owed().filter(|entry| entry.set_given_up(false)).count();
            self.awaited.fetch_add(adopted, Ordering::SeqCst);
        }
        sum
    }

    /// The sum of all shards' counts, with every generation whose end is not over. With `give_up`, nobody waits for those
    /// any more.
    pub(crate) fn counts_and_unfinished(&self, give_up: bool) -> (Counts, Vec<(Arc<Entry>, Stage)>) {
        let mut sum = Counts::default();
        let mut unfinished = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            sum.add(&shard.counts);
            for entry in shard.owed() {
                if give_up && entry.set_given_up(true) {
                    self.no_longer_awaited();
                }
                unfinished.push((Arc::clone(entry), entry.stage()));
            }
            unfinished.extend(shard.aborted.iter().map(|entry| (Arc::clone(entry), Stage::Ending)));
        }
        (sum, unfinished)
    }

    fn no_longer_awaited(&self) {
        if self.awaited.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.quiet.notify_waiters();
        }
    }
}

/// The locks of two shards, or of one that is both.
struct Two<'a> {
    first: MutexGuard<'a, Shard>,
    second: Option<MutexGuard<'a, Shard>>,
}

impl<'a> Two<'a> {
    /// Always in the order of the indices, so that two of these never wait for each other.
    fn lock(shards: &'a [Mutex<Shard>], first: usize, second: usize) -> Self {
        if first == second {
            return Self { first: lock(&shards[first]), second: None };
        }
        let low = lock(&shards[first.min(second)]);
        let high = lock(&shards[first.max(second)]);
        if first < second { Self { first: low, second: Some(high) } } else { Self { first: high, second: Some(low) } }
    }

    fn first(&mut self) -> &mut Shard {
        &mut self.first
    }

    fn second(&mut self) -> &mut Shard {
        self.second.as_mut().unwrap_or(&mut self.first)
    }
}
