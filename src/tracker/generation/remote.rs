//! A generation's record in the registry: its state, and the values that differ from this process's own.

use std::{sync::Arc, time::SystemTime};

use super::{AfterStart, ClaimState, Generation};
use crate::{
    registry::{EndRecord, HoldMode, Record},
    session::GenerationId,
    sync::{Ordering, lock},
    tracker::{Origin, Recovery, clock::Nanos},
};

/// The state of a generation's record.
///
/// The writer alone sends a record. A claim of a record that was never sent, and whose start does not wait for it, cancels
/// it: both are one exchange of an atomic word, so one of them wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordState {
    /// There is no record and there will be none: there is no registry, or the record was cancelled.
    None = 0,
    /// The record has not been sent.
    Unsent = 1,
    /// The record was sent, or the registry has lost its records since. Whether it exists is unknown.
    Sent = 2,
    /// The record exists, and this process holds it.
    Held = 3,
    /// Another process has ended the session, or has taken the record over.
    TakenOver = 4,
}

/// The bits of the [`RecordState`].
const STATE: u8 = 0x07;
/// The registry was asked for a record to join, and there is none.
const NOT_FOUND: u8 = 0x08;
/// The start waits for the record.
const WAITS: u8 = 0x10;
/// The [`Origin`].
const MADE: u8 = 0x20;
const CARRIED: u8 = 0x40;
/// An update of the details is queued.
const UPDATE_QUEUED: u8 = 0x80;

impl RecordState {
    /// Whether other processes may have seen the record.
    pub(crate) const fn is_on_record(self) -> bool {
        matches!(self, Self::Held | Self::Sent)
    }

    const fn from_bits(bits: u8) -> Self {
        match bits & STATE {
            0 => Self::None,
            1 => Self::Unsent,
            2 => Self::Sent,
            3 => Self::Held,
            _ => Self::TakenOver,
        }
    }
}

/// The registry's values for a generation, where they differ from this process's own: it started in another process, or
/// goes on under a new id after a lost lease.
#[derive(Debug)]
pub(crate) struct RegistryView {
    pub(crate) generation: GenerationId,
    pub(crate) started_at: SystemTime,
    /// `Some` if another process ended it.
    pub(crate) ended_at: Option<SystemTime>,
    /// The requests of all its holders, once known.
    pub(crate) requests: Option<u64>,
    /// Another process ran its start hooks.
    started_elsewhere: bool,
    recovery: Option<Arc<Recovery>>,
    /// The calls of end hooks by other processes.
    attempts: u32,
}

impl RegistryView {
    const fn new(generation: GenerationId, started_at: SystemTime) -> Self {
        Self {
            generation,
            started_at,
            ended_at: None,
            requests: None,
            started_elsewhere: false,
            recovery: None,
            attempts: 0,
        }
    }
}

impl Generation {
    pub(crate) fn record_state(&self) -> RecordState {
        RecordState::from_bits(self.record_state.load(Ordering::SeqCst))
    }

    /// Returns the previous state.
    pub(crate) fn set_record_state(&self, state: RecordState) -> RecordState {
        self.change_record(|bits| Some(bits & !STATE | state as u8)).unwrap_or(state)
    }

    /// The new generation waits for its record before it starts.
    pub(in crate::tracker) fn wait_for_record(&self, origin: Origin) {
        let origin = match origin {
            Origin::Made => MADE,
            Origin::Noted => 0,
            Origin::Carried => CARRIED,
        };
        self.change_record(|_| Some(RecordState::Unsent as u8 | WAITS | origin));
        self.with_extra(|extra| extra.pending_predecessors += 1);
    }

    /// Whether its start waits for the record.
    pub(crate) fn waits_for_record(&self) -> bool {
        self.record_state.load(Ordering::SeqCst) & WAITS != 0
    }

    pub(crate) fn origin(&self) -> Origin {
        match self.record_state.load(Ordering::SeqCst) & (MADE | CARRIED) {
            0 => Origin::Noted,
            MADE => Origin::Made,
            _ => Origin::Carried,
        }
    }

    /// Must be called before the record is sent. Returns whether it is to be sent: it may not exist, and was not cancelled.
    pub(crate) fn send_record(&self) -> bool {
        self.change_record(|bits| match RecordState::from_bits(bits) {
            RecordState::Unsent | RecordState::Sent => Some(bits & !STATE | RecordState::Sent as u8),
            RecordState::None | RecordState::Held | RecordState::TakenOver => None,
        })
        .is_some()
    }

    /// How the record is to be sent. With `finds_first`, a record that another process may be about to write is to be
    /// joined first.
    pub(crate) fn hold_mode(&self, finds_first: bool) -> HoldMode {
        let bits = self.record_state.load(Ordering::SeqCst);
        match (bits & WAITS != 0, bits & (CARRIED | NOT_FOUND)) {
            // Its start hooks have been called: it cannot become another generation.
            (false, _) => HoldMode::Create,
            // After a compaction, the start of the successor waits for this end, and its record does not.
            (true, CARRIED) if finds_first && self.claim() != ClaimState::Compacted => HoldMode::Join,
            (true, _) => HoldMode::JoinOrCreate,
        }
    }

    /// There was no record to join. It is not on record.
    pub(crate) fn set_not_found(&self) {
        self.change_record(|bits| Some(bits & !STATE | RecordState::Unsent as u8 | NOT_FOUND));
    }

    /// Its record may be created from now on, if there is still none to join.
    pub(crate) fn stop_finding(&self) {
        self.change_record_bits(|bits| Some(bits | NOT_FOUND));
    }

    /// It is asked for a record to join again, after an outage.
    pub(crate) fn find_again(&self) {
        self.change_record_bits(|bits| Some(bits & !NOT_FOUND));
    }

    /// Cancels a record that was never sent and that no start waits for. Returns false if there is none.
    pub(crate) fn cancel_record(&self) -> bool {
        self.change_record(|bits| {
            let is_unsent = RecordState::from_bits(bits) == RecordState::Unsent && bits & WAITS == 0;
            is_unsent.then_some(bits & !STATE)
        })
        .is_some()
    }

    /// Cancels a record that was never sent, of a session that no other process can hold. The start does not wait for it from
    /// now on, as with [`stop_waiting_for_record`](Self::stop_waiting_for_record).
    pub(in crate::tracker) fn cancel_waiting_record(&self) -> bool {
        self.change_record(|bits| {
            let is_unsent = RecordState::from_bits(bits) == RecordState::Unsent;
            (is_unsent && bits & WAITS != 0 && bits & MADE != 0).then_some(bits & !(STATE | WAITS))
        })
        .is_some()
    }

    /// The start does not wait for the record from now on. Returns whether it did: the caller then calls
    /// [`release_predecessor`](Self::release_predecessor).
    pub(in crate::tracker) fn stop_waiting_for_record(&self) -> bool {
        self.change_record_bits(|bits| (bits & WAITS != 0).then_some(bits & !WAITS)).is_some()
    }

    /// Returns false if an update of the details is queued already.
    pub(in crate::tracker) fn queue_update(&self) -> bool {
        self.change_record_bits(|bits| (bits & UPDATE_QUEUED == 0).then_some(bits | UPDATE_QUEUED)).is_some()
    }

    /// Must be called before the details are read for an update.
    pub(crate) fn take_queued_update(&self) {
        self.change_record_bits(|bits| Some(bits & !UPDATE_QUEUED));
    }

    /// Returns the previous state if `change` changed it.
    fn change_record(&self, change: impl FnMut(u8) -> Option<u8>) -> Option<RecordState> {
        self.change_record_bits(change).map(RecordState::from_bits)
    }

    fn change_record_bits(&self, change: impl FnMut(u8) -> Option<u8>) -> Option<u8> {
        self.record_state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change).ok()
    }

    /// Waits until the record is written, or the wait for it is given up. Returns whether this process holds it.
    pub(crate) async fn until_recorded(&self) -> bool {
        let is_waiting = || self.waits_for_record() && self.record_state() != RecordState::None;
        if is_waiting() {
            let signal = self.with_extra(|extra| extra.recorded_signal.get_or_insert_default().clone());
            // Read again: the state may have changed before the signal was created.
            if is_waiting() {
                signal.cancelled().await;
            }
        }
        self.record_state() == RecordState::Held
    }

    pub(crate) fn notify_recorded(&self) {
        let signal = lock(&self.extra).as_mut().and_then(|extra| extra.recorded_signal.take());
        signal.into_iter().for_each(|signal| signal.cancel());
    }

    /// The host says, not by an answer to a request of the session, that it is active.
    pub(in crate::tracker) fn note_again(&self, now: Nanos) {
        self.with_extra(|extra| extra.noted_at = now);
    }

    /// Whether the host has noted it again after this moment.
    pub(in crate::tracker) fn is_noted_since(&self, at: Nanos) -> bool {
        lock(&self.extra).as_ref().is_some_and(|extra| extra.noted_at > at)
    }

    /// Becomes the generation of `record`, which another process started.
    pub(in crate::tracker) fn join_record(&self, record: &Record) {
        let view = RegistryView { started_elsewhere: true, ..RegistryView::new(record.generation, record.started_at) };
        self.set_registry_view(view);
    }

    /// No hook is called for its start.
    pub(in crate::tracker) fn skip_start(&self, record: &Record) {
        self.join_record(record);
    }

    /// Another process ended it, and this process delivers the end.
    pub(in crate::tracker) fn set_ended_elsewhere(
        &self,
        record: &Record,
        end: &EndRecord,
        started_elsewhere: bool,
        recovery: Arc<Recovery>,
        attempts: u32,
    ) {
        let Record { generation, started_at, .. } = *record;
        let (ended_at, requests, recovery) = (Some(end.ended_at), Some(end.requests), Some(recovery));
        self.set_registry_view(RegistryView {
            generation,
            started_at,
            ended_at,
            requests,
            started_elsewhere,
            recovery,
            attempts,
        });
    }

    /// The calls of its end hooks by other processes; `None` if it is not recovered.
    pub(crate) fn recovered_attempts(&self) -> Option<u32> {
        self.registry_view(|view| view.recovery.as_ref().map(|_| view.attempts)).flatten()
    }

    /// Goes on as a new generation.
    pub(in crate::tracker) fn restart_as(&self, generation: GenerationId, now: SystemTime) {
        self.set_registry_view(RegistryView::new(generation, now));
    }

    fn set_registry_view(&self, view: RegistryView) {
        self.with_extra(|extra| extra.registry_view = Some(Box::new(view)));
    }

    /// Whether it is claimed and recorded, and the registry has not released its end.
    pub(in crate::tracker) fn has_pending_end_here(&self) -> bool {
        let is_released =
            || lock(&self.extra).as_ref().is_some_and(|extra| matches!(extra.deferred, Some(AfterStart::Release(_))));
        matches!(self.claim(), ClaimState::EndPending | ClaimState::Compacted)
            && self.record_state().is_on_record()
            && !is_released()
    }

    pub(in crate::tracker) fn started_elsewhere(&self) -> bool {
        self.registry_view(|view| view.started_elsewhere).unwrap_or_default()
    }

    pub(crate) fn registry_view<T>(&self, f: impl FnOnce(&RegistryView) -> T) -> Option<T> {
        lock(&self.extra).as_ref().and_then(|extra| extra.registry_view.as_deref()).map(f)
    }

    /// Sets the requests of all its holders, if they differ from this process's own. `record` is its record.
    pub(crate) fn set_requests(&self, requests: u64, record: &Record) {
        if requests != self.requests() {
            let view = || Box::new(RegistryView::new(record.generation, record.started_at));
            self.with_extra(|extra| extra.registry_view.get_or_insert_with(view).requests = Some(requests));
        }
    }

    pub(in crate::tracker) fn recovery(&self) -> Option<Arc<Recovery>> {
        self.registry_view(|view| view.recovery.clone()).flatten()
    }
}
