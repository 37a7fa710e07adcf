//! What a generation has to do with the registry: whether it stands there, and where it comes from.

use std::{sync::Arc, time::SystemTime};

use tokio_util::sync::CancellationToken;

use super::{Claim, Due, Entry};
use crate::{
    registry::{EndRecord, Record},
    session::EventId,
    sync::{Ordering, lock},
    tracker::Recovery,
};

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

impl Entry {
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

    pub(in crate::tracker) fn wait_for_record(&self) {
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

    pub(in crate::tracker) fn tell_recorded(&self) {
        let told = lock(&self.rare).as_mut().and_then(|rare| rare.on_record.take());
        told.into_iter().for_each(|told| told.cancel());
    }

    /// An older generation goes on here.
    pub(in crate::tracker) fn join(&self, record: &Record) {
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
    pub(in crate::tracker) fn end_elsewhere(
        &self,
        record: &Record,
        end: &EndRecord,
        is_joined: bool,
        recovery: Arc<Recovery>,
    ) {
        let Record { event_id, started_at, .. } = *record;
        let (ended_at, requests, recovery) = (Some(end.ended_at), Some(end.requests), Some(recovery));
        let origin = Origin { event_id, started_at, ended_at, requests, is_joined, recovery };
        self.with_rare(|rare| rare.origin = Some(Box::new(origin)));
    }

    /// Claimed, and to be delivered here, as far as the registry has not said otherwise.
    pub(in crate::tracker) fn is_owed_here(&self) -> bool {
        let is_elsewhere =
            || lock(&self.rare).as_ref().is_some_and(|rare| matches!(rare.parked, Some(Due::NotOurs(_))));
        matches!(self.claim(), Claim::Owed | Claim::Compacted) && self.recorded().is_on_record() && !is_elsewhere()
    }

    /// It is a new generation from here on.
    pub(in crate::tracker) fn renew(&self, event_id: EventId, now: SystemTime) {
        let origin =
            Origin { event_id, started_at: now, ended_at: None, requests: None, is_joined: false, recovery: None };
        self.with_rare(|rare| rare.origin = Some(Box::new(origin)));
    }

    pub(in crate::tracker) fn is_joined(&self) -> bool {
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

    pub(in crate::tracker) fn recovery(&self) -> Option<Arc<Recovery>> {
        self.origin(|origin| origin.recovery.clone()).flatten()
    }
}
