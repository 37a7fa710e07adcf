//! Who is active: a sharded map from ids to generations, and the order of their hooks.
//!
//! The one rule that makes everything else safe: **claim = remove**. A generation leaves the set of the active by
//! `Active -> Owed` or `Active -> Forgotten`, under its shard's lock, once; whoever made that step owes its one
//! `session_end`, and hands the job over under the same lock. No user code runs under a lock.
//!
//! A claimed generation stays findable in its shard until its hooks are over, beside the active ones, so that the next
//! generation of the id queues behind it.

mod chain;
pub(crate) mod clock;
mod compact;
mod entry;
#[cfg(all(test, not(shuttle)))]
mod keyed;
pub(crate) mod ledger;
pub(crate) mod queue;
pub(crate) mod recording;
#[cfg(all(test, shuttle))]
mod schedules;
mod shard;
mod survey;
mod sweep;
mod telling;
mod tombstones;
mod two;

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use hashbrown::DefaultHashBuilder;
use tokio::sync::Notify;

pub(crate) use self::{
    chain::Outcome,
    entry::{Ending, Entry, Load, Origin, Recorded, Scope, Stage},
    ledger::{Ledger, Op},
    queue::{Job, Queue},
    recording::{NotOurs, Recovery},
    shard::Counts,
};
use self::{
    chain::Released,
    clock::{Clock, Nanos, Tick},
    shard::Shard,
};
use crate::{
    observability::Meters,
    session::{EndReason, EventId, Phase, Session},
    sync::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, RwLock, lock},
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
    tick: AtomicU32,
    next_to_expire: AtomicUsize,
    next_to_evict: AtomicUsize,
    phase: AtomicU8,
    /// The reason that what is born in `Closing` ends with.
    stop_reason: AtomicU8,
    active: AtomicUsize,
    /// Ends that are owed, not over, and that no report has given up.
    awaited: AtomicUsize,
    /// From this generation on the drain waits for nobody: `finish` does.
    late_from: AtomicU64,
    /// Told when `awaited` comes to zero.
    pub(crate) quiet: Notify,
    /// Compactions hold it shared, so that who holds it alone sees the old or the new, always one.
    moving: RwLock<()>,
    pub(crate) queue: Queue,
    /// Where there is a registry.
    pub(crate) ledger: Option<Ledger>,
    pub(crate) clock: Clock,
    pub(crate) meters: Meters,
    has_start: bool,
    has_end: bool,
    /// Whether what is born in `Closing` ends under the same lock; if not, its noter sees to it.
    ends_births: bool,
}

/// Who says that a session is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Voice {
    /// The host, by a note: the details are replaced, by none if there are none.
    Host,
    /// The host, by a signal or a guard: as above, but none replace no details.
    Said,
    /// A head in which the id stands: as above, and it does not wake the dead.
    Head,
}

/// Who ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The host has declared it over.
    Host,
    /// We have found it out.
    Us,
    /// This process lets go of it; other replicas may go on.
    LettingGo,
}

/// What came of a note.
#[derive(Debug)]
pub(crate) enum Note {
    /// It made this generation.
    Born(Arc<Entry>),
    /// The id was active, and has its new details.
    Known(Arc<Entry>),
    /// It was a head's word only, and the session is over.
    Dead,
    /// The handle is closed.
    Refused,
}

impl Tracker {
    /// `has_start` and `has_end` say whether there is a hook to call; `ends_births`, whether whatever is born in
    /// [`Phase::Closing`] ends at once; `is_recorded`, whether there is a registry.
    pub(crate) fn new(has_start: bool, has_end: bool, ends_births: bool, is_recorded: bool) -> Self {
        // Two keyed hashes of the system's randomness.
        let half = || u128::from(RandomState::new().hash_one(std::process::id()));
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            instance: half() << 64 | half(),
            generations: AtomicU64::new(1),
            tick: AtomicU32::new(0),
            next_to_expire: AtomicUsize::new(0),
            next_to_evict: AtomicUsize::new(0),
            phase: AtomicU8::new(Phase::Open.code()),
            stop_reason: AtomicU8::new(EndReason::Shutdown.code()),
            active: AtomicUsize::new(0),
            awaited: AtomicUsize::new(0),
            late_from: AtomicU64::new(u64::MAX),
            quiet: Notify::new(),
            moving: RwLock::new(()),
            queue: Queue::new(),
            ledger: is_recorded.then(Ledger::default),
            clock: Clock::new(),
            meters: Meters::new(),
            has_start,
            has_end,
            ends_births,
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
        let elsewhere = self.ledger.as_ref().and_then(|_| entry.origin(|origin| origin.event_id));
        elsewhere.unwrap_or(EventId::new(self.instance, entry.generation))
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

    /// As [`find`](Self::find), for a request: the session is busy from here on. Under the lock, so that nobody finds it
    /// idle in between.
    pub(crate) fn take_up(&self, id: &[u8], tick: Tick) -> Option<Arc<Entry>> {
        let hash = self.hash(id);
        let shard = self.shard(hash);
        let entry = shard.find_active(hash, id)?;
        entry.take_up(Load::Work);
        entry.heard_of(tick);
        entry.count_request();
        Some(Arc::clone(entry))
    }

    /// The coarse time, as of the last birth or the driver's last step.
    pub(crate) fn tick(&self) -> Tick {
        self.tick.load(Ordering::Relaxed)
    }

    pub(crate) fn set_tick(&self, now: Nanos) {
        self.tick.store(Clock::tick(now), Ordering::Relaxed);
    }

    /// With `load`, the session is busy from here on: under the lock, so that nobody finds it at rest in between.
    pub(crate) fn note(&self, session: Session, voice: Voice, load: Option<Load>) -> Note {
        let busy = |entry: &Entry| load.into_iter().for_each(|load| entry.take_up(load));
        let hash = self.hash(session.id.as_bytes());
        let mut released = Released::default();
        let note = {
            let mut shard = self.shard(hash);
            if let Some(entry) = shard.find_active(hash, session.id.as_bytes()) {
                if voice == Voice::Host || !session.is_bare() {
                    self.replace_details(entry, session);
                }
                busy(entry);
                return Note::Known(Arc::clone(entry));
            }
            // Read after the lock was taken: a sweep that has passed this shard has stored the phase before.
            if self.phase() == Phase::Closed {
                return Note::Refused;
            }
            if voice == Voice::Head && shard.tombstones.has(hash, Clock::tick(self.clock.now())) {
                return Note::Dead;
            }
            if voice != Voice::Head {
                shard.tombstones.clear(hash);
            }
            let entry = self.birth(session, None);
            busy(&entry);
            shard.insert(hash, &entry, |entry| self.hash_of(entry));
            self.settle_birth(&mut shard, &entry, &mut released);
            Note::Born(entry)
        };
        self.release(released);
        note
    }

    /// Replaces the details of this very generation, unless it is over or there are none.
    pub(crate) fn set_details(&self, entry: &Arc<Entry>, session: Session) {
        if !session.is_bare() {
            let _claims_wait = self.shard(self.hash_of(entry));
            if entry.is_active() {
                self.replace_details(entry, session);
            }
        }
    }

    /// Under the shard's lock.
    fn replace_details(&self, entry: &Arc<Entry>, session: Session) {
        if self.ledger.is_some() && entry.session() != session {
            entry.set_details(session);
            self.record_details(entry);
        } else {
            entry.set_details(session);
        }
    }

    fn birth(&self, session: Session, resumed_from: Option<crate::session::SessionId>) -> Arc<Entry> {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        self.active.fetch_add(1, Ordering::SeqCst);
        let now = self.clock.now();
        self.set_tick(now);
        Arc::new(Entry::new(session, generation, now, resumed_from))
    }

    /// The part of a birth after the insertion: its start, and in `Closing` its end.
    fn settle_birth(&self, shard: &mut Shard, entry: &Arc<Entry>, released: &mut Released) {
        released.telling.born(entry);
        self.record_birth(entry);
        if !entry.has_predecessors() {
            self.begin(shard, entry, released);
        }
        if self.phase() >= Phase::Closing {
            if self.is_late(entry) {
                entry.set_given_up(true);
            }
            if self.ends_births {
                self.owe(shard, entry, self.ending(self.stop_reason(), Scope::Here), released);
            }
        }
    }

    /// Whether it was born after the drain had begun, in front of a server whose `finish` waits for it. Else a steady
    /// stream of births would use up the drain's time.
    pub(crate) fn is_late(&self, entry: &Entry) -> bool {
        entry.generation >= self.late_from.load(Ordering::SeqCst)
    }

    /// What is born from now on is not the drain's to wait for.
    pub(crate) fn begin_late(&self) {
        let next = self.generations.load(Ordering::SeqCst);
        let _ = self.late_from.compare_exchange(u64::MAX, next, Ordering::SeqCst, Ordering::SeqCst);
    }

    fn ending(&self, reason: EndReason, scope: Scope) -> Ending {
        Ending { reason, next: None, at: self.clock.now(), scope }
    }

    /// Ends this very generation; false if somebody else has claimed it. What [`By::Host`] declares leaves a
    /// tombstone.
    pub(crate) fn claim(&self, entry: &Arc<Entry>, reason: EndReason, by: By) -> bool {
        self.claim_if(entry, reason, by, |_| true)
    }

    /// As [`claim`](Self::claim), if `condition` holds under the lock.
    fn claim_if(&self, entry: &Arc<Entry>, reason: EndReason, by: By, condition: impl FnOnce(&Entry) -> bool) -> bool {
        // Most late comers need no lock.
        if !entry.is_active() {
            return false;
        }
        let mut released = Released::default();
        let claimed = {
            let hash = self.hash_of(entry);
            let mut shard = self.shard(hash);
            entry.is_active() && condition(entry) && {
                let scope = if by == By::LettingGo { Scope::Here } else { Scope::Everywhere };
                let ending = self.ending(reason, scope);
                if by == By::Host {
                    shard.tombstones.set(hash, Clock::tick(ending.at));
                }
                self.owe(&mut shard, entry, ending, &mut released);
                true
            }
        };
        self.release(released);
        claimed
    }

    /// Ends the present generation of `id`; false if there is none.
    pub(crate) fn end(&self, id: &[u8], reason: EndReason) -> bool {
        self.find(id).is_some_and(|entry| self.claim(&entry, reason, By::Host))
    }

    /// Claims the present generation of `id` silently; false if there is none.
    pub(crate) fn forget(&self, id: &[u8]) -> bool {
        let hash = self.hash(id);
        let mut released = Released::default();
        let forgotten = {
            let mut shard = self.shard(hash);
            let entry = shard.find_active(hash, id).cloned();
            entry.is_some_and(|entry| {
                shard.tombstones.set(hash, Clock::tick(self.clock.now()));
                self.disown(&mut shard, &entry, false, &mut released);
                true
            })
        };
        self.release(released);
        forgotten
    }

    /// True if that was the last: then tell [`quiet`](Self::quiet), once no lock is held.
    fn no_longer_awaited(&self) -> bool {
        self.awaited.fetch_sub(1, Ordering::SeqCst) == 1
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.meters.is_dropped(self.len());
    }
}
