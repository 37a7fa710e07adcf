//! A generation's record in the registry: its state, and the values that differ from this process's own.

use std::{sync::Arc, time::SystemTime};

use super::{AfterStart, ClaimState, Generation};
use crate::{
    registry::{EndRecord, Record},
    session::GenerationId,
    sync::{Ordering, lock},
    tracker::Recovery,
};

/// The state of a generation's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordState {
    /// There is no record, or no registry.
    None = 0,
    /// The record is queued, and the start waits for it.
    Pending = 1,
    /// The record exists, and this process holds it.
    Held = 2,
    /// The record was written, or its call timed out; whether it exists is unknown.
    Uncertain = 3,
    /// Another process has taken the record over.
    TakenOver = 4,
    /// The id has a record of another generation. This one goes on without a record.
    Detached = 5,
}

impl RecordState {
    /// Whether other processes may have seen the record.
    pub(crate) const fn is_on_record(self) -> bool {
        matches!(self, Self::Held | Self::Uncertain)
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
}

impl RegistryView {
    const fn new(generation: GenerationId, started_at: SystemTime) -> Self {
        Self { generation, started_at, ended_at: None, requests: None, started_elsewhere: false, recovery: None }
    }
}

impl Generation {
    pub(crate) fn record_state(&self) -> RecordState {
        match self.record_state.load(Ordering::SeqCst) {
            0 => RecordState::None,
            1 => RecordState::Pending,
            2 => RecordState::Held,
            3 => RecordState::Uncertain,
            4 => RecordState::TakenOver,
            _ => RecordState::Detached,
        }
    }

    /// Returns the previous state.
    pub(crate) fn set_record_state(&self, state: RecordState) -> RecordState {
        let before = self.record_state();
        self.record_state.store(state as u8, Ordering::SeqCst);
        before
    }

    pub(in crate::tracker) fn wait_for_record(&self) {
        self.set_record_state(RecordState::Pending);
        self.with_extra(|extra| extra.pending_predecessors += 1);
    }

    /// Waits until the record is written, or the wait for it is given up. Returns whether this process holds it.
    pub(crate) async fn until_recorded(&self) -> bool {
        if self.record_state() == RecordState::Pending {
            let signal = self.with_extra(|extra| extra.recorded_signal.get_or_insert_default().clone());
            // Read again: the state may have changed before the signal was created.
            if self.record_state() == RecordState::Pending {
                signal.cancelled().await;
            }
        }
        self.record_state() == RecordState::Held
    }

    pub(in crate::tracker) fn notify_recorded(&self) {
        let signal = lock(&self.extra).as_mut().and_then(|extra| extra.recorded_signal.take());
        signal.into_iter().for_each(|signal| signal.cancel());
    }

    /// Becomes the generation of `record`, which another process started.
    pub(in crate::tracker) fn join_record(&self, record: &Record) {
        let view = RegistryView { started_elsewhere: true, ..RegistryView::new(record.generation, record.started_at) };
        self.set_registry_view(view);
    }

    /// Another process ended it, and this process delivers the end.
    pub(in crate::tracker) fn set_ended_elsewhere(
        &self,
        record: &Record,
        end: &EndRecord,
        started_elsewhere: bool,
        recovery: Arc<Recovery>,
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
        });
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
