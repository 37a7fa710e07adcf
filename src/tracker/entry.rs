//! One generation of a session, and where its two hooks stand.

use std::{sync::Arc, time::SystemTime};

use tokio_util::sync::CancellationToken;

use super::clock::{Clock, Nanos, Tick};
use super::recording::{NotOurs, Recovery};
use crate::{
    registry::{EndRecord, Record},
    session::{EndReason, EventId, Session, SessionId},
    sync::{AtomicU8, AtomicU32, Mutex, Ordering, lock},
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
pub(super) enum Due {
    Nothing,
    End(Ending),
    /// Its end is not ours to deliver.
    NotOurs(NotOurs),
}

/// Where a generation stands in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Recorded {
    /// It does not, or there is no registry.
    Not = 0,
    /// It is about to be written, and its start waits for that.
    Pending = 1,
    /// This process holds it.
    Held = 2,
    /// It was written, but nobody knows whether it is there.
    Doubtful = 3,
    /// Others have taken it over.
    Taken = 4,
    /// Another generation of the id is recorded in its place; this one goes on by itself.
    Apart = 5,
}

impl Recorded {
    /// Others may know of it.
    pub(crate) const fn is_on_record(self) -> bool {
        matches!(self, Self::Held | Self::Doubtful)
    }
}

/// What a generation that began elsewhere, or under another name, has of its own.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) event_id: EventId,
    pub(crate) started_at: SystemTime,
    /// If it ended elsewhere.
    pub(crate) ended_at: Option<SystemTime>,
    /// All that its holders have seen, once that is known.
    pub(crate) requests: Option<u64>,
    /// Its start was somebody else's.
    pub(crate) is_joined: bool,
    pub(crate) recovery: Option<Arc<Recovery>>,
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

const WORK_MASK: u32 = (1 << 16) - 1;

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: SessionId,
    pub(crate) generation: u64,
    pub(crate) born: Nanos,
    requests: AtomicU32,
    /// When it was last heard of, in ticks.
    seen: AtomicU32,
    /// What keeps it busy: [`Load`].
    load: AtomicU32,
    claim: AtomicU8,
    stage: AtomicU8,
    /// A report has listed it as unfinished, and nobody waits for it any more.
    given_up: AtomicU8,
    recorded: AtomicU8,
    rare: Mutex<Option<Box<Rare>>>,
}

/// What most sessions at most times have none of.
#[derive(Debug, Default)]
pub(super) struct Rare {
    details: Option<Session>,
    resumed_from: Option<SessionId>,
    /// How many ends have to be over before the start may run.
    waits: u32,
    /// Claimed before its start was over.
    parked: Option<Due>,
    /// Whose starts wait for this end.
    pub(super) successors: Vec<Arc<Entry>>,
    /// Streams that wait for its end, and those of sessions that were compacted into it.
    pub(super) listeners: Vec<CancellationToken>,
    /// Cancelled when the record is written, or given up.
    on_record: Option<CancellationToken>,
    origin: Option<Box<Origin>>,
}

impl Entry {
    #[inline]
    pub(super) fn new(session: Session, generation: u64, born: Nanos, resumed_from: Option<SessionId>) -> Self {
        let seen = Clock::tick(born);
        let id = session.id.clone();
        let details = (!session.is_bare()).then_some(session);
        let rare = (details.is_some() || resumed_from.is_some())
            .then(|| Box::new(Rare { details, resumed_from, ..Rare::default() }));
        Self {
            id,
            generation,
            born,
            requests: AtomicU32::new(0),
            seen: AtomicU32::new(seen),
            load: AtomicU32::new(0),
            claim: AtomicU8::new(Claim::Active as u8),
            stage: AtomicU8::new(Stage::Waiting as u8),
            given_up: AtomicU8::new(0),
            recorded: AtomicU8::new(Recorded::Not as u8),
            rare: Mutex::new(rare),
        }
    }

    /// One that ended elsewhere, and whose end is to be delivered here.
    pub(super) fn orphan(session: Session, generation: u64, now: Nanos) -> Self {
        let entry = Self::new(session, generation, now, None);
        entry.set_claim(Claim::Owed);
        entry.set_stage(Stage::Started);
        entry.set_recorded(Recorded::Held);
        entry
    }

    #[inline]
    pub(crate) fn claim(&self) -> Claim {
        match self.claim.load(Ordering::Acquire) {
            0 => Claim::Active,
            1 => Claim::Owed,
            2 => Claim::Compacted,
            _ => Claim::Forgotten,
        }
    }

    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.claim() == Claim::Active
    }

    pub(crate) fn is_compacted(&self) -> bool {
        self.claim() == Claim::Compacted
    }

    #[inline]
    pub(super) fn set_claim(&self, claim: Claim) {
        self.claim.store(claim as u8, Ordering::Release);
    }

    #[inline]
    pub(crate) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Waiting,
            1 => Stage::Starting,
            2 => Stage::Started,
            3 => Stage::EndQueued,
            4 => Stage::Ending,
            _ => Stage::Over,
        }
    }

    #[inline]
    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }

    /// The hook of its end is about to be polled for the first time.
    pub(crate) fn set_ending(&self) {
        self.set_stage(Stage::Ending);
    }

    #[inline]
    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn heard_of(&self, tick: Tick) {
        self.seen.store(tick, Ordering::Relaxed);
    }

    /// How long it has been silent at `now`. Ticks wrap around, after 497 days.
    pub(super) fn silent_for(&self, now: Tick) -> Tick {
        let age = now.wrapping_sub(self.seen.load(Ordering::Relaxed));
        // Heard of in a tick that `now` has not come to yet.
        if age > Tick::MAX / 2 { 0 } else { age }
    }

    #[inline]
    pub(crate) fn take_up(&self, load: Load) {
        self.load.fetch_add(load as u32, Ordering::SeqCst);
    }

    /// True if that was the last of its work.
    #[inline]
    pub(crate) fn put_down(&self, load: Load) -> bool {
        let before = self.load.fetch_sub(load as u32, Ordering::SeqCst);
        load == Load::Work && before & WORK_MASK == 1
    }

    pub(crate) fn has_work(&self) -> bool {
        self.load.load(Ordering::SeqCst) & WORK_MASK != 0
    }

    /// Nothing keeps it busy.
    pub(super) fn is_at_rest(&self) -> bool {
        self.load.load(Ordering::SeqCst) == 0
    }

    /// Is cancelled when the generation ends, or that into which it is compacted. Look at the claim again after this.
    pub(crate) fn listen(&self) -> CancellationToken {
        self.with_rare(|rare| match rare.listeners.first() {
            Some(shared) => shared.clone(),
            None => {
                rare.listeners.push(CancellationToken::new());
                rare.listeners[0].clone()
            }
        })
    }

    /// To be called after the claim was set.
    pub(super) fn take_listeners(&self) -> Vec<CancellationToken> {
        lock(&self.rare).as_mut().map(|rare| std::mem::take(&mut rare.listeners)).unwrap_or_default()
    }

    pub(super) fn add_listeners(&self, mut listeners: Vec<CancellationToken>) {
        if !listeners.is_empty() {
            self.with_rare(|rare| rare.listeners.append(&mut listeners));
        }
    }

    pub(crate) fn requests(&self) -> u64 {
        u64::from(self.requests.load(Ordering::Relaxed))
    }

    /// The session with the details that were noted last.
    pub(crate) fn session(&self) -> Session {
        let rare = lock(&self.rare);
        match rare.as_ref().and_then(|rare| rare.details.as_ref()) {
            Some(details) => details.clone(),
            None => Session::new(self.id.clone()),
        }
    }

    pub(crate) fn resumed_from(&self) -> Option<SessionId> {
        lock(&self.rare).as_ref().and_then(|rare| rare.resumed_from.clone())
    }

    pub(super) fn set_details(&self, session: Session) {
        let bare = session.is_bare();
        let mut rare = lock(&self.rare);
        match rare.as_mut() {
            Some(rare) => rare.details = (!bare).then_some(session),
            None if bare => {}
            None => *rare = Some(Box::new(Rare { details: Some(session), ..Rare::default() })),
        }
    }

    /// Looks at what there is, if there is anything.
    #[inline]
    pub(super) fn with_any_rare(&self, f: impl FnOnce(&mut Rare)) {
        if let Some(rare) = lock(&self.rare).as_mut() {
            f(rare);
        }
    }

    fn with_rare<T>(&self, f: impl FnOnce(&mut Rare) -> T) -> T {
        f(lock(&self.rare).get_or_insert_default())
    }

    /// Lets the start of `next` wait for the end of `self`.
    pub(super) fn precede(self: &Arc<Self>, next: &Arc<Self>) {
        next.with_rare(|rare| rare.waits += 1);
        self.with_rare(|rare| rare.successors.push(Arc::clone(next)));
    }

    /// One of the ends that the start waits for is over; true if it was the last.
    pub(super) fn predecessor_is_over(&self) -> bool {
        self.with_rare(|rare| {
            rare.waits = rare.waits.saturating_sub(1);
            rare.waits == 0
        })
    }

    pub(super) fn has_predecessors(&self) -> bool {
        lock(&self.rare).as_ref().is_some_and(|rare| rare.waits > 0)
    }

    pub(super) fn take_successors(&self) -> Vec<Arc<Self>> {
        lock(&self.rare).as_mut().map(|rare| std::mem::take(&mut rare.successors)).unwrap_or_default()
    }

    pub(super) fn park(&self, due: Due) {
        self.with_rare(|rare| rare.parked = Some(due));
    }

    pub(super) fn unpark(&self) -> Option<Due> {
        lock(&self.rare).as_mut().and_then(|rare| rare.parked.take())
    }

    /// Sets whether anybody waits for its end; true if that is a change.
    pub(super) fn set_given_up(&self, given_up: bool) -> bool {
        self.given_up.swap(u8::from(given_up), Ordering::SeqCst) != u8::from(given_up)
    }

    pub(crate) fn recorded(&self) -> Recorded {
        match self.recorded.load(Ordering::SeqCst) {
            0 => Recorded::Not,
            1 => Recorded::Pending,
            2 => Recorded::Held,
            3 => Recorded::Doubtful,
            4 => Recorded::Taken,
            _ => Recorded::Apart,
        }
    }

    /// Returns what it was before.
    pub(crate) fn set_recorded(&self, state: Recorded) -> Recorded {
        let before = self.recorded();
        self.recorded.store(state as u8, Ordering::SeqCst);
        before
    }

    pub(super) fn wait_for_record(&self) {
        self.set_recorded(Recorded::Pending);
        self.with_rare(|rare| rare.waits += 1);
    }

    /// Is cancelled when the record is written or given up. Look at [`recorded`](Self::recorded) again after this.
    fn on_record(&self) -> CancellationToken {
        self.with_rare(|rare| rare.on_record.get_or_insert_default().clone())
    }

    /// True once it is on record; false if it will not be, for now.
    pub(crate) async fn until_recorded(&self) -> bool {
        if self.recorded() == Recorded::Pending {
            let told = self.on_record();
            if self.recorded() == Recorded::Pending {
                told.cancelled().await;
            }
        }
        self.recorded() == Recorded::Held
    }

    pub(super) fn tell_recorded(&self) {
        let told = lock(&self.rare).as_mut().and_then(|rare| rare.on_record.take());
        told.into_iter().for_each(|told| told.cancel());
    }

    /// An older generation goes on here.
    pub(super) fn join(&self, record: &Record) {
        let origin = Origin {
            event_id: record.event_id,
            started_at: record.started_at,
            ended_at: None,
            requests: None,
            is_joined: true,
            recovery: None,
        };
        self.with_rare(|rare| rare.origin = Some(Box::new(origin)));
    }

    /// It has ended elsewhere, and its end is delivered here.
    pub(super) fn end_elsewhere(&self, record: &Record, end: &EndRecord, is_joined: bool, recovery: Arc<Recovery>) {
        let Record { event_id, started_at, .. } = *record;
        let (ended_at, requests, recovery) = (Some(end.ended_at), Some(end.requests), Some(recovery));
        let origin = Origin { event_id, started_at, ended_at, requests, is_joined, recovery };
        self.with_rare(|rare| rare.origin = Some(Box::new(origin)));
    }

    /// Claimed, and to be delivered here, as far as the registry has not said otherwise.
    pub(super) fn is_owed_here(&self) -> bool {
        let is_elsewhere =
            || lock(&self.rare).as_ref().is_some_and(|rare| matches!(rare.parked, Some(Due::NotOurs(_))));
        matches!(self.claim(), Claim::Owed | Claim::Compacted) && self.recorded().is_on_record() && !is_elsewhere()
    }

    /// It is a new generation from here on.
    pub(super) fn renew(&self, event_id: EventId, now: SystemTime) {
        let origin =
            Origin { event_id, started_at: now, ended_at: None, requests: None, is_joined: false, recovery: None };
        self.with_rare(|rare| rare.origin = Some(Box::new(origin)));
    }

    pub(super) fn is_joined(&self) -> bool {
        self.origin(|origin| origin.is_joined).unwrap_or_default()
    }

    pub(crate) fn origin<T>(&self, f: impl FnOnce(&Origin) -> T) -> Option<T> {
        lock(&self.rare).as_ref().and_then(|rare| rare.origin.as_deref()).map(f)
    }

    /// What all that have held it have seen together, if that is more than we have.
    pub(crate) fn set_requests(&self, requests: u64, otherwise: impl FnOnce() -> Origin) {
        if requests != self.requests() {
            self.with_rare(|rare| rare.origin.get_or_insert_with(|| Box::new(otherwise())).requests = Some(requests));
        }
    }

    pub(super) fn recovery(&self) -> Option<Arc<Recovery>> {
        self.origin(|origin| origin.recovery.clone()).flatten()
    }

    #[inline]
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::SeqCst) != 0
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn an_entry_with_an_inline_id_is_small() {
        // With the two counts of its `Arc`, and the allocator's word, this is the 112-byte class of most allocators.
        assert!(size_of::<SessionId>() <= 40, "{}", size_of::<SessionId>());
        assert!(size_of::<Entry>() <= 88, "{}", size_of::<Entry>());
    }
}
