//! One generation of a session, and the progress of its two hooks.

mod remote;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

pub(crate) use self::remote::RecordState;
use self::remote::RegistryView;
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
    /// The tick of its last activity.
    last_seen: AtomicU32,
    /// Requests and streams, both counted in one word: [`Activity`].
    activity: AtomicU32,
    claim: AtomicU8,
    stage: AtomicU8,
    /// A report has listed it as unfinished, and no drain waits for it.
    given_up: AtomicU8,
    record_state: AtomicU8,
    extra: Mutex<Option<Box<Extra>>>,
}

/// Cold fields, boxed because most sessions never need them.
#[derive(Debug, Default)]
pub(super) struct Extra {
    details: Option<Session>,
    resumed_from: Option<SessionId>,
    /// The start waits for this many ends; a pending record counts as one more.
    pending_predecessors: u32,
    /// The step after the start, if the claim came before the start had completed.
    deferred: Option<AfterStart>,
    /// Their starts wait for this generation's end.
    pub(super) successors: Vec<Arc<Generation>>,
    /// Tokens of streams that wait for its end, and of streams of sessions that were compacted into it.
    pub(super) listeners: Vec<CancellationToken>,
    /// Cancelled when the record is written, or the wait for it is given up.
    recorded_signal: Option<CancellationToken>,
    registry_view: Option<Box<RegistryView>>,
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
            claim: AtomicU8::new(ClaimState::Active as u8),
            stage: AtomicU8::new(Stage::Waiting as u8),
            given_up: AtomicU8::new(0),
            record_state: AtomicU8::new(RecordState::None as u8),
            extra: Mutex::new(extra),
        }
    }

    /// A generation that another process ended, and whose end this process delivers.
    pub(super) fn orphan(session: Session, number: u64, now: Nanos) -> Self {
        let generation = Self::new(session, number, now, None);
        generation.set_claim(ClaimState::EndPending);
        generation.set_stage(Stage::Started);
        generation.set_record_state(RecordState::Held);
        generation
    }

    #[inline]
    pub(crate) fn claim(&self) -> ClaimState {
        match self.claim.load(Ordering::Acquire) {
            0 => ClaimState::Active,
            1 => ClaimState::EndPending,
            2 => ClaimState::Compacted,
            _ => ClaimState::Forgotten,
        }
    }

    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.claim() == ClaimState::Active
    }

    pub(crate) fn is_compacted(&self) -> bool {
        self.claim() == ClaimState::Compacted
    }

    #[inline]
    pub(super) fn set_claim(&self, claim: ClaimState) {
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
            _ => Stage::Done,
        }
    }

    #[inline]
    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }

    /// Must be called before the first poll of its end hooks.
    pub(crate) fn set_end_running(&self) {
        self.set_stage(Stage::EndRunning);
    }

    #[inline]
    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes back one [`count_request`](Self::count_request): the request was counted twice.
    #[cfg(feature = "axum")]
    pub(crate) fn uncount_request(&self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn touch(&self, tick: Tick) {
        self.last_seen.store(tick, Ordering::Relaxed);
    }

    /// The time since its last activity.
    pub(super) fn idle_for(&self, now: Tick) -> Tick {
        let age = now.wrapping_sub(self.last_seen.load(Ordering::Relaxed));
        // Ticks wrap around. A large age is an activity in a tick later than `now`.
        if age > Tick::MAX / 2 { 0 } else { age }
    }

    #[inline]
    pub(crate) fn begin_activity(&self, activity: Activity) {
        self.activity.fetch_add(activity as u32, Ordering::SeqCst);
    }

    /// Returns true if that was the last request in flight.
    #[inline]
    pub(crate) fn end_activity(&self, activity: Activity) -> bool {
        let before = self.activity.fetch_sub(activity as u32, Ordering::SeqCst);
        activity == Activity::Request && before & REQUEST_MASK == 1
    }

    /// Whether a request is in flight.
    pub(crate) fn has_work(&self) -> bool {
        self.activity.load(Ordering::SeqCst) & REQUEST_MASK != 0
    }

    /// Whether it has neither a request nor a stream or guard.
    pub(super) fn is_idle(&self) -> bool {
        self.activity.load(Ordering::SeqCst) == 0
    }

    /// A token that is cancelled when the generation ends, or the last of those that it is compacted into. The caller
    /// reads the claim after this call: a claim before it cancels no token.
    pub(crate) fn listen(&self) -> CancellationToken {
        self.with_extra(|extra| match extra.listeners.first() {
            Some(shared) => shared.clone(),
            None => {
                extra.listeners.push(CancellationToken::new());
                extra.listeners[0].clone()
            }
        })
    }

    /// Must be called after the claim is set.
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

    /// Calls `f` if there are cold fields. Allocates none.
    #[inline]
    pub(super) fn with_existing_extra(&self, f: impl FnOnce(&mut Extra)) {
        if let Some(extra) = lock(&self.extra).as_mut() {
            f(extra);
        }
    }

    fn with_extra<T>(&self, f: impl FnOnce(&mut Extra) -> T) -> T {
        f(lock(&self.extra).get_or_insert_default())
    }

    /// Makes the start of `next` wait for the end of `self`.
    pub(super) fn add_successor(self: &Arc<Self>, next: &Arc<Self>) {
        next.with_extra(|extra| extra.pending_predecessors += 1);
        self.with_extra(|extra| extra.successors.push(Arc::clone(next)));
    }

    /// One of the ends that the start waits for has completed. Returns true if it was the last.
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

    pub(super) fn defer(&self, action: AfterStart) {
        self.with_extra(|extra| extra.deferred = Some(action));
    }

    pub(super) fn take_deferred(&self) -> Option<AfterStart> {
        lock(&self.extra).as_mut().and_then(|extra| extra.deferred.take())
    }

    /// Returns true if that is a change.
    pub(super) fn set_given_up(&self, given_up: bool) -> bool {
        self.given_up.swap(u8::from(given_up), Ordering::SeqCst) != u8::from(given_up)
    }

    #[inline]
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::SeqCst) != 0
    }
}

/// Whether a generation is active, and what its claim left to do. Written under the shard's lock only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ClaimState {
    Active = 0,
    /// Claimed with a `session_end`.
    EndPending = 1,
    /// As `EndPending`, by a compaction: its streams wait for the successor.
    Compacted = 2,
    /// Claimed silently.
    Forgotten = 3,
}

/// The progress of a generation's hooks. Written under the shard's lock, except `EndRunning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    /// The start waits for ends of earlier generations, or for the record.
    Waiting = 0,
    /// The start is queued or runs.
    Starting = 1,
    /// The start has completed.
    Started = 2,
    /// The end is queued.
    EndQueued = 3,
    /// The end runs.
    EndRunning = 4,
    /// All hooks have completed.
    Done = 5,
}

/// An end that is to be delivered.
#[derive(Clone, Debug)]
pub(crate) struct PendingEnd {
    pub(crate) reason: EndReason,
    pub(crate) next: Option<Box<Session>>,
    pub(crate) at: Nanos,
    pub(crate) scope: Scope,
}

/// The reach of an end where several replicas hold the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// It ends on all replicas.
    Everywhere,
    /// This process releases it. It ends when the last replica has released it.
    Here,
}

/// The next step of a claimed generation once its start has completed.
#[derive(Debug)]
pub(super) enum AfterStart {
    Nothing,
    RunEnd(PendingEnd),
    /// This process does not deliver its end.
    Release(ReleaseCause),
}

/// What makes a session busy. Both are counted in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Activity {
    /// A request in flight, which the drain may wait for. At most 65,535 at a time.
    Request = 1,
    /// A guard, or an event stream. At most 65,535 at a time.
    Stream = REQUEST_MASK + 1,
}

const REQUEST_MASK: u32 = (1 << 16) - 1;

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_generation_with_an_inline_id_is_at_most_88_bytes() {
        // With the two counts of its `Arc` and the allocator's header that is the 112-byte size class of most
        // allocators.
        assert!(size_of::<SessionId>() <= 40, "{}", size_of::<SessionId>());
        assert!(size_of::<Generation>() <= 88, "{}", size_of::<Generation>());
    }
}
