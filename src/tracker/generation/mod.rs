//! One generation of a session, and where its two hooks stand.

mod remote;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub(crate) use self::remote::{Origin, RecordState};
use super::clock::{Clock, Nanos, Tick};
use crate::{
    observability::ReleaseCause,
    session::{EndReason, Session, SessionId},
    sync::{AtomicU8, AtomicU32, Mutex, Ordering, lock},
};

#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) id: SessionId,
    pub(crate) number: u64,
    pub(crate) started_at: Nanos,
    requests: AtomicU32,
    /// When it was last heard of, in ticks.
    last_seen: AtomicU32,
    /// What keeps it busy: [`Activity`].
    activity: AtomicU32,
    claim: AtomicU8,
    stage: AtomicU8,
    /// A report has listed it as unfinished, and nobody waits for it any more.
    given_up: AtomicU8,
    recorded: AtomicU8,
    extra: Mutex<Option<Box<Extra>>>,
}

/// What most sessions at most times have none of.
#[derive(Debug, Default)]
pub(super) struct Extra {
    details: Option<Session>,
    resumed_from: Option<SessionId>,
    /// How many ends have to be over before the start may run.
    pending_predecessors: u32,
    /// Claimed before its start was over.
    deferred: Option<AfterStart>,
    /// Whose starts wait for this end.
    pub(super) successors: Vec<Arc<Generation>>,
    /// Streams that wait for its end, and those of sessions that were compacted into it.
    pub(super) listeners: Vec<CancellationToken>,
    /// Cancelled when the record is written, or given up.
    on_record: Option<CancellationToken>,
    origin: Option<Box<Origin>>,
}

impl Generation {
    #[inline]
    pub(super) fn new(session: Session, number: u64, started_at: Nanos, resumed_from: Option<SessionId>) -> Self {
        let last_seen = Clock::tick(started_at);
        let id = session.id.clone();
        let details = (!session.is_bare()).then_some(session);
        let extra = (details.is_some() || resumed_from.is_some())
            .then(|| Box::new(Extra { details, resumed_from, ..Extra::default() }));
        Self {
            id,
            number,
            started_at,
            requests: AtomicU32::new(0),
            last_seen: AtomicU32::new(last_seen),
            activity: AtomicU32::new(0),
            claim: AtomicU8::new(Claim::Active as u8),
            stage: AtomicU8::new(Stage::Waiting as u8),
            given_up: AtomicU8::new(0),
            recorded: AtomicU8::new(RecordState::None as u8),
            extra: Mutex::new(extra),
        }
    }

    /// One that ended elsewhere, and whose end is to be delivered here.
    pub(super) fn orphan(session: Session, number: u64, now: Nanos) -> Self {
        let generation = Self::new(session, number, now, None);
        generation.set_claim(Claim::Owed);
        generation.set_stage(Stage::Started);
        generation.set_recorded(RecordState::Held);
        generation
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
            4 => Stage::EndRunning,
            _ => Stage::Over,
        }
    }

    #[inline]
    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }

    /// The hook of its end is about to be polled for the first time.
    pub(crate) fn set_end_running(&self) {
        self.set_stage(Stage::EndRunning);
    }

    #[inline]
    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn touch(&self, tick: Tick) {
        self.last_seen.store(tick, Ordering::Relaxed);
    }

    /// How long it has been silent at `now`. Ticks wrap around, after 497 days.
    pub(super) fn idle_for(&self, now: Tick) -> Tick {
        let age = now.wrapping_sub(self.last_seen.load(Ordering::Relaxed));
        // Heard of in a tick that `now` has not come to yet.
        if age > Tick::MAX / 2 { 0 } else { age }
    }

    #[inline]
    pub(crate) fn begin_activity(&self, activity: Activity) {
        self.activity.fetch_add(activity as u32, Ordering::SeqCst);
    }

    /// True if that was the last of its work.
    #[inline]
    pub(crate) fn end_activity(&self, activity: Activity) -> bool {
        let before = self.activity.fetch_sub(activity as u32, Ordering::SeqCst);
        activity == Activity::Request && before & REQUEST_MASK == 1
    }

    pub(crate) fn has_work(&self) -> bool {
        self.activity.load(Ordering::SeqCst) & REQUEST_MASK != 0
    }

    /// Nothing keeps it busy.
    pub(super) fn is_idle(&self) -> bool {
        self.activity.load(Ordering::SeqCst) == 0
    }

    /// Is cancelled when the generation ends, or that into which it is compacted. Look at the claim again after this.
    pub(crate) fn listen(&self) -> CancellationToken {
        self.with_extra(|extra| match extra.listeners.first() {
            Some(shared) => shared.clone(),
            None => {
                extra.listeners.push(CancellationToken::new());
                extra.listeners[0].clone()
            }
        })
    }

    /// To be called after the claim was set.
    pub(super) fn take_listeners(&self) -> Vec<CancellationToken> {
        lock(&self.extra).as_mut().map(|extra| std::mem::take(&mut extra.listeners)).unwrap_or_default()
    }

    pub(super) fn add_listeners(&self, mut listeners: Vec<CancellationToken>) {
        if !listeners.is_empty() {
            self.with_extra(|extra| extra.listeners.append(&mut listeners));
        }
    }

    pub(crate) fn requests(&self) -> u64 {
        u64::from(self.requests.load(Ordering::Relaxed))
    }

    /// The session with the details that were noted last.
    pub(crate) fn session(&self) -> Session {
        let extra = lock(&self.extra);
        match extra.as_ref().and_then(|extra| extra.details.as_ref()) {
            Some(details) => details.clone(),
            None => Session::new(self.id.clone()),
        }
    }

    pub(crate) fn resumed_from(&self) -> Option<SessionId> {
        lock(&self.extra).as_ref().and_then(|extra| extra.resumed_from.clone())
    }

    pub(super) fn set_details(&self, session: Session) {
        let bare = session.is_bare();
        let mut extra = lock(&self.extra);
        match extra.as_mut() {
            Some(extra) => extra.details = (!bare).then_some(session),
            None if bare => {}
            None => *extra = Some(Box::new(Extra { details: Some(session), ..Extra::default() })),
        }
    }

    /// Looks at what there is, if there is anything.
    #[inline]
    pub(super) fn with_existing_extra(&self, f: impl FnOnce(&mut Extra)) {
        if let Some(extra) = lock(&self.extra).as_mut() {
            f(extra);
        }
    }

    fn with_extra<T>(&self, f: impl FnOnce(&mut Extra) -> T) -> T {
        f(lock(&self.extra).get_or_insert_default())
    }

    /// Lets the start of `next` wait for the end of `self`.
    pub(super) fn add_successor(self: &Arc<Self>, next: &Arc<Self>) {
        next.with_extra(|extra| extra.pending_predecessors += 1);
        self.with_extra(|extra| extra.successors.push(Arc::clone(next)));
    }

    /// One of the ends that the start waits for is over; true if it was the last.
    pub(super) fn release_predecessor(&self) -> bool {
        self.with_extra(|extra| {
            extra.pending_predecessors = extra.pending_predecessors.saturating_sub(1);
            extra.pending_predecessors == 0
        })
    }

    pub(super) fn has_predecessors(&self) -> bool {
        lock(&self.extra).as_ref().is_some_and(|extra| extra.pending_predecessors > 0)
    }

    pub(super) fn take_successors(&self) -> Vec<Arc<Self>> {
        lock(&self.extra).as_mut().map(|extra| std::mem::take(&mut extra.successors)).unwrap_or_default()
    }

    pub(super) fn defer(&self, due: AfterStart) {
        self.with_extra(|extra| extra.deferred = Some(due));
    }

    pub(super) fn take_deferred(&self) -> Option<AfterStart> {
        lock(&self.extra).as_mut().and_then(|extra| extra.deferred.take())
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

/// How far the hooks of a generation have come. Written under the shard's lock, but for `PendingEnd`.
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
    EndRunning = 4,
    /// Everything is over.
    Over = 5,
}

/// How a session ended, kept until its hooks can be told.
#[derive(Clone, Debug)]
pub(crate) struct PendingEnd {
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
pub(super) enum AfterStart {
    Nothing,
    RunEnd(PendingEnd),
    /// Its end is not delivered here.
    Release(ReleaseCause),
}

/// What keeps a session busy. Both are counted in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Activity {
    /// A request that is not over; the drain may wait for it. Up to 65,535 at a time.
    Request = 1,
    /// A guard, or a stream that only listens. Up to 65,535 at a time.
    Stream = REQUEST_MASK + 1,
}

const REQUEST_MASK: u32 = (1 << 16) - 1;

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn an_entry_with_an_inline_id_is_small() {
        // With the two counts of its `Arc`, and the allocator's word, this is the 112-byte class of most allocators.
        assert!(size_of::<SessionId>() <= 40, "{}", size_of::<SessionId>());
        assert!(size_of::<Generation>() <= 88, "{}", size_of::<Generation>());
    }
}
