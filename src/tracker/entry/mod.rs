//! One generation of a session, and where its two hooks stand.

mod origin;
mod state;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub(super) use self::state::Due;
use self::state::WORK_MASK;
pub(crate) use self::{
    origin::{Origin, Recorded},
    state::{Claim, Ending, Load, Scope, Stage},
};
use super::clock::{Clock, Nanos, Tick};
use crate::{
    session::{Session, SessionId},
    sync::{AtomicU8, AtomicU32, Mutex, Ordering, lock},
};

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
