//! What a generation has to do with the registry: whether it stands there, and where it comes from.

use std::{sync::Arc, time::SystemTime};

use tokio_util::sync::CancellationToken;

use super::{AfterStart, Claim, Generation};
use crate::{
    registry::{EndRecord, Record},
    session::GenerationId,
    sync::{Ordering, lock},
    tracker::Recovery,
};

/// Where a generation stands in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordState {
    /// It does not, or there is no registry.
    None = 0,
    /// It is about to be written, and its start waits for that.
    Pending = 1,
    /// This process holds it.
    Held = 2,
    /// It was written, but nobody knows whether it is there.
    Uncertain = 3,
    /// Others have taken it over.
    TakenOver = 4,
    /// Another generation of the id is recorded in its place; this one goes on by itself.
    Detached = 5,
}

impl RecordState {
    /// Others may know of it.
    pub(crate) const fn is_on_record(self) -> bool {
        matches!(self, Self::Held | Self::Uncertain)
    }
}

/// What a generation that began elsewhere, or under another name, has of its own.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) generation: GenerationId,
    pub(crate) started_at: SystemTime,
    /// If it ended elsewhere.
    pub(crate) ended_at: Option<SystemTime>,
    /// All that its holders have seen, once that is known.
    pub(crate) requests: Option<u64>,
    /// Its start was somebody else's.
    pub(crate) is_joined: bool,
    pub(crate) recovery: Option<Arc<Recovery>>,
}

impl Generation {
    pub(crate) fn recorded(&self) -> RecordState {
        match self.recorded.load(Ordering::SeqCst) {
            0 => RecordState::None,
            1 => RecordState::Pending,
            2 => RecordState::Held,
            3 => RecordState::Uncertain,
            4 => RecordState::TakenOver,
            _ => RecordState::Detached,
        }
    }

    /// Returns what it was before.
    pub(crate) fn set_recorded(&self, state: RecordState) -> RecordState {
        let before = self.recorded();
        self.recorded.store(state as u8, Ordering::SeqCst);
        before
    }

    pub(in crate::tracker) fn wait_for_record(&self) {
        self.set_recorded(RecordState::Pending);
        self.with_extra(|extra| extra.pending_predecessors += 1);
    }

    /// Is cancelled when the record is written or given up. Look at [`recorded`](Self::recorded) again after this.
    fn on_record(&self) -> CancellationToken {
        self.with_extra(|extra| extra.on_record.get_or_insert_default().clone())
    }

    /// True once it is on record; false if it will not be, for now.
    pub(crate) async fn until_recorded(&self) -> bool {
        if self.recorded() == RecordState::Pending {
            let told = self.on_record();
            if self.recorded() == RecordState::Pending {
                told.cancelled().await;
            }
        }
        self.recorded() == RecordState::Held
    }

    pub(in crate::tracker) fn tell_recorded(&self) {
        let told = lock(&self.extra).as_mut().and_then(|extra| extra.on_record.take());
        told.into_iter().for_each(|told| told.cancel());
    }

    /// An older generation goes on here.
    pub(in crate::tracker) fn join(&self, record: &Record) {
        let origin = Origin {
            generation: record.generation,
            started_at: record.started_at,
            ended_at: None,
            requests: None,
            is_joined: true,
            recovery: None,
        };
        self.with_extra(|extra| extra.origin = Some(Box::new(origin)));
    }

    /// It has ended elsewhere, and its end is delivered here.
    pub(in crate::tracker) fn end_elsewhere(
        &self,
        record: &Record,
        end: &EndRecord,
        is_joined: bool,
        recovery: Arc<Recovery>,
    ) {
        let Record { generation, started_at, .. } = *record;
        let (ended_at, requests, recovery) = (Some(end.ended_at), Some(end.requests), Some(recovery));
        let origin = Origin { generation, started_at, ended_at, requests, is_joined, recovery };
        self.with_extra(|extra| extra.origin = Some(Box::new(origin)));
    }

    /// Claimed, and to be delivered here, as far as the registry has not said otherwise.
    pub(in crate::tracker) fn is_owed_here(&self) -> bool {
        let is_released =
            || lock(&self.extra).as_ref().is_some_and(|extra| matches!(extra.deferred, Some(AfterStart::Release(_))));
        matches!(self.claim(), Claim::Owed | Claim::Compacted) && self.recorded().is_on_record() && !is_released()
    }

    /// It is a new generation from here on.
    pub(in crate::tracker) fn renew(&self, generation: GenerationId, now: SystemTime) {
        let origin =
            Origin { generation, started_at: now, ended_at: None, requests: None, is_joined: false, recovery: None };
        self.with_extra(|extra| extra.origin = Some(Box::new(origin)));
    }

    pub(in crate::tracker) fn is_joined(&self) -> bool {
        self.origin(|origin| origin.is_joined).unwrap_or_default()
    }

    pub(crate) fn origin<T>(&self, f: impl FnOnce(&Origin) -> T) -> Option<T> {
        lock(&self.extra).as_ref().and_then(|extra| extra.origin.as_deref()).map(f)
    }

    /// What all that have held it have seen together, if that is more than we have.
    pub(crate) fn set_requests(&self, requests: u64, otherwise: impl FnOnce() -> Origin) {
        if requests != self.requests() {
            self.with_extra(|extra| {
                extra.origin.get_or_insert_with(|| Box::new(otherwise())).requests = Some(requests)
            });
        }
    }

    pub(in crate::tracker) fn recovery(&self) -> Option<Arc<Recovery>> {
        self.origin(|origin| origin.recovery.clone()).flatten()
    }
}
