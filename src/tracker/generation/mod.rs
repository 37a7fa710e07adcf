//! One generation of a session, and the progress of its two hooks.

mod remote;

use std::sync::{Arc, PoisonError};

use tokio_util::sync::CancellationToken;

pub(crate) use self::remote::RecordState;
use self::remote::RegistryView;
use super::{
    clock::{Clock, Nanos, Tick},
    order::Outcome,
    tombstones::ClaimNumber,
};
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
    /// The count of its work, and flags: [`WORK_MASK`] and the constants after it.
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
    /// [`Activity::Stream`]s and [`Activity::Guard`]s.
    streams: i32,
    guards: i32,
    /// When its host first answered as if the session did not exist, if it is doubted.
    pub(super) doubted_at: Option<Nanos>,
    /// It is in the queue of doubts.
    pub(super) doubt_queued: bool,
    pub(super) parent: Option<ParentLink>,
    /// What it was compacted into.
    pub(super) successor: Option<Arc<Generation>>,
    /// Cancelled when the record is written, or the wait for it is given up.
    recorded_signal: Option<CancellationToken>,
    /// When the host noted it again, with a registry.
    noted_at: Nanos,
    registry_view: Option<Box<RegistryView>>,
}

impl Generation {
    #[inline]
    pub(super) fn new(session: Session, number: u64, started_at: Nanos, resumed_from: Option<SessionId>) -> Self {
        let last_seen = Clock::tick(started_at);
        let id = session.id.clone();
        let details = (!session.is_bare() || session.parent.is_some()).then_some(session);
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
        match activity {
            Activity::Work => drop(self.activity.fetch_add(1, Ordering::SeqCst)),
            Activity::Stream => self.count_streams(1),
            Activity::Guard => self.count_guards(1),
        }
    }

    /// Returns true if that was the last work and something waits for that: a drain (`is_closing` says so, and is read
    /// after the work has ended), [`await_quiet`](Self::await_quiet) or a successor.
    #[inline]
    pub(crate) fn end_activity(&self, activity: Activity, is_closing: impl FnOnce() -> bool) -> bool {
        match activity {
            Activity::Work => {
                let before = self.activity.fetch_sub(1, Ordering::SeqCst);
                before & WORK_MASK == 1 && (before >= AWAITED || is_closing())
            }
            Activity::Stream => {
                self.count_streams(-1);
                false
            }
            Activity::Guard => {
                self.count_guards(-1);
                false
            }
        }
    }

    #[inline(never)]
    fn count_guards(&self, change: i32) {
        self.with_extra(|extra| {
            extra.guards += change;
            self.set_flag(HAS_GUARDS, extra.guards > 0);
        });
    }

    /// A successor of a compaction has one stream more while this generation has any.
    #[inline(never)]
    fn count_streams(&self, change: i32) {
        // No lock is held between two steps. The sums are right in any order.
        let mut successor = self.add_streams(change);
        while let Some(generation) = successor {
            successor = generation.add_streams(change);
        }
    }

    /// Returns the successor if it has one stream more or less by that.
    fn add_streams(&self, change: i32) -> Option<Arc<Self>> {
        self.with_extra(|extra| {
            let had_streams = extra.streams > 0;
            extra.streams += change;
            let has_streams = extra.streams > 0;
            // The flag and the count change under one lock.
            self.set_flag(HAS_STREAMS, has_streams);
            if had_streams == has_streams { None } else { extra.successor.clone() }
        })
    }

    fn set_flag(&self, flag: u32, is_set: bool) {
        match is_set {
            true => self.activity.fetch_or(flag, Ordering::SeqCst),
            false => self.activity.fetch_and(!flag, Ordering::SeqCst),
        };
    }

    /// Whether it has work: a request in flight, or a `WorkGuard`.
    pub(crate) fn has_work(&self) -> bool {
        self.activity.load(Ordering::SeqCst) & WORK_MASK != 0
    }

    /// Whether it has work that a drain waits for.
    pub(crate) fn keeps_drain_waiting(&self) -> bool {
        let activity = self.activity.load(Ordering::SeqCst);
        activity & WORK_MASK != 0 && activity & EXEMPT == 0
    }

    /// From now on no drain waits for its work.
    pub(crate) fn exempt_work(&self) {
        self.activity.fetch_or(EXEMPT, Ordering::SeqCst);
    }

    /// Whether it has no work and no guard, and no listening stream if these count as activity.
    pub(super) fn is_idle(&self, streams_are_activity: bool) -> bool {
        let streams = if streams_are_activity { HAS_STREAMS } else { 0 };
        self.activity.load(Ordering::SeqCst) & (WORK_MASK | HAS_GUARDS | streams) == 0
    }

    /// Whether it has no work. If it has, the end of the last one returns true.
    pub(super) fn await_quiet(&self) -> bool {
        // The flag is set before the count is read: either this call sees no work, or the last work sees the flag.
        self.activity.fetch_or(OVERDUE, Ordering::SeqCst) & WORK_MASK == 0
    }

    pub(super) fn is_overdue(&self) -> bool {
        self.activity.load(Ordering::SeqCst) & OVERDUE != 0
    }

    /// Makes the successor of a compaction have work for as long as this generation has. The caller has begun work of
    /// this generation for that, and ends it afterwards.
    pub(super) fn pass_on_work(&self, successor: &Arc<Self>) {
        // Before the flag is set: the end of the last work takes it away again.
        successor.begin_activity(Activity::Work);
        self.activity.fetch_or(PASSED_ON, Ordering::SeqCst);
    }

    /// It is compacted into this one, which has a stream for as long as this generation has. Must be called before the
    /// claim, so that whoever sees the claim finds the successor.
    pub(super) fn set_successor(&self, successor: &Arc<Self>) {
        if self.activity.load(Ordering::SeqCst) & EXEMPT != 0 {
            successor.exempt_work();
        }
        let has_streams = self.with_extra(|extra| {
            extra.successor = Some(Arc::clone(successor));
            extra.streams > 0
        });
        if has_streams {
            successor.count_streams(1);
        }
    }

    /// The successor that had work because this generation had, once that has none. One call alone returns it: a compaction
    /// may begin work again after the last one has ended, so that two callers see their work end.
    pub(crate) fn take_successor_with_work(&self) -> Option<Arc<Self>> {
        let take = |activity| (activity & PASSED_ON != 0 && activity & WORK_MASK == 0).then_some(activity & !PASSED_ON);
        self.activity.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).ok()?;
        self.successor()
    }

    pub(super) fn parent_link(&self) -> Option<ParentLink> {
        lock(&self.extra).as_ref().and_then(|extra| extra.parent.clone())
    }

    pub(super) fn parent(&self) -> Option<SessionId> {
        self.parent_link().map(|link| link.parent)
    }

    /// The successor of a compaction is a child for as long as `old` was one.
    pub(super) fn inherit_parent_since(&self, since: ClaimNumber) {
        self.with_extra(|extra| extra.parent.iter_mut().for_each(|link| link.since = since));
    }

    /// What it was compacted into.
    pub(crate) fn successor(&self) -> Option<Arc<Self>> {
        lock(&self.extra).as_ref().and_then(|extra| extra.successor.clone())
    }

    #[inline]
    pub(crate) fn is_doubted(&self) -> bool {
        self.activity.load(Ordering::SeqCst) & DOUBTED != 0
    }

    /// Returns true if it has to be queued: it was not doubted before, and is not in the queue. Like the next two, must be
    /// called under the lock of the queue.
    pub(super) fn doubt(&self, now: Nanos) -> bool {
        self.with_extra(|extra| {
            if extra.doubted_at.is_some() {
                return false;
            }
            extra.doubted_at = Some(now);
            self.activity.fetch_or(DOUBTED, Ordering::SeqCst);
            !std::mem::replace(&mut extra.doubt_queued, true)
        })
    }

    /// It was taken out of the queue. Returns since when it is doubted, if it is.
    pub(super) fn take_queued_doubt(&self) -> Option<Nanos> {
        self.with_extra(|extra| {
            extra.doubt_queued = false;
            extra.doubted_at
        })
    }

    pub(super) fn requeue_doubt(&self) {
        self.with_extra(|extra| extra.doubt_queued = true);
    }

    /// Takes the doubt back, if there is one.
    #[inline]
    pub(crate) fn trust(&self) {
        if self.is_doubted() {
            self.with_extra(|extra| {
                extra.doubted_at = None;
                self.activity.fetch_and(!DOUBTED, Ordering::SeqCst);
            });
        }
    }

    /// Takes a doubt of this moment back, and no later one.
    pub(super) fn trust_since(&self, at: Nanos) {
        self.with_extra(|extra| {
            if extra.doubted_at.take_if(|doubted_at| *doubted_at == at).is_some() {
                self.activity.fetch_and(!DOUBTED, Ordering::SeqCst);
            }
        });
    }

    /// Whether it is doubted since this moment.
    pub(super) fn is_doubted_since(&self, at: Nanos) -> bool {
        lock(&self.extra).as_ref().is_some_and(|extra| extra.doubted_at == Some(at))
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
        let Some(extra) = extra.as_ref() else { return Session::new(self.id.clone()) };
        let mut session = extra.details.clone().unwrap_or_else(|| Session::new(self.id.clone()));
        // A compaction of the parent changes the link alone.
        if let Some(link) = &extra.parent {
            session.parent = Some(link.parent.clone());
        }
        session
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

    pub(super) fn with_extra<T>(&self, f: impl FnOnce(&mut Extra) -> T) -> T {
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

    pub(crate) fn has_predecessors(&self) -> bool {
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
    /// `Some` if its hooks have failed, and it is delivered again.
    pub(crate) redelivery: Option<Arc<Redelivery>>,
}

/// An end whose hooks have failed. Its generation has left the tracker.
#[derive(Debug)]
pub(crate) struct Redelivery {
    /// The calls of its hooks so far.
    pub(crate) attempts: u32,
    /// The hooks that failed.
    pub(crate) hooks: Vec<usize>,
}

/// The hooks of an end that have failed.
#[derive(Debug)]
pub(crate) struct FailedDelivery {
    /// Their numbers: hooks for one end, then batch hooks. The transaction hook has none.
    pub(crate) hooks: Vec<usize>,
    /// The transaction hook has failed.
    pub(crate) is_uncommitted: bool,
    /// The last error.
    pub(crate) error: String,
}

/// An end whose hooks have been called, but for the transaction hook.
#[derive(Debug)]
pub(crate) struct CalledEnd {
    pub(crate) generation: Arc<Generation>,
    pub(crate) end: PendingEnd,
    pub(crate) outcome: Outcome,
    pub(crate) failure: Option<FailedDelivery>,
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

/// What makes a session busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// A request in flight, or a `WorkGuard`: the drain may wait for it.
    Work,
    /// A listening stream.
    Stream,
    /// A guard.
    Guard,
}

/// The count of the work in [`Generation::activity`]: 67 million at a time, which no memory holds.
const WORK_MASK: u32 = (1 << 26) - 1;
/// A drain does not wait for its work.
const EXEMPT: u32 = 1 << 26;
/// It has a listening stream.
const HAS_STREAMS: u32 = 1 << 27;
/// It has a guard.
const HAS_GUARDS: u32 = 1 << 28;
const DOUBTED: u32 = 1 << 29;
/// It is older than `max_lifetime`, and ends when its last work does.
const OVERDUE: u32 = 1 << 30;
/// It was compacted, and its work counts as work of its successor.
const PASSED_ON: u32 = 1 << 31;
/// With one of the flags from here on, something waits for the end of the last work.
const AWAITED: u32 = OVERDUE;

impl Drop for Generation {
    fn drop(&mut self) {
        let successor_of = |generation: &mut Self| {
            let extra = generation.extra.get_mut().unwrap_or_else(PoisonError::into_inner);
            extra.as_mut().and_then(|extra| extra.successor.take())
        };
        // A guard may have kept a long chain of compactions alive, and a recursive drop would use up the stack.
        let mut successor = successor_of(self);
        while let Some(mut generation) = successor.and_then(Arc::into_inner) {
            successor = successor_of(&mut generation);
        }
    }
}

/// The parent of a generation.
#[derive(Clone, Debug)]
pub(super) struct ParentLink {
    pub(super) parent: SessionId,
    /// An end of the parent that is claimed after this many claims ends the child.
    pub(super) since: ClaimNumber,
}

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
