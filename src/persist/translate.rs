//! Translates outbox entries to changes of the registry, and applies the answers to the tracker.

use std::{sync::Arc, time::Duration};

use super::{Persister, backlog::Withheld};
use crate::{
    observability::ReleaseCause,
    registry::{Applied, Change, Notice},
    tracker::{
        CalledEnd, Generation, Origin, OutboxEntry, Outcome, PendingEnd, Queued, RecordState, Scope, Stage, Tracker,
    },
};

/// The change that an entry stands for now, and that the caller sends. Without one, the entry is applied without an answer.
/// An end whose record may not exist holds it first.
pub(super) fn change_of(persister: &Persister, entry: &OutboxEntry) -> Option<Change> {
    let tracker = &*persister.tracker;
    let ids = |generation: &Generation| (generation.id.clone(), tracker.generation_id(generation));
    Some(match entry {
        OutboxEntry::Hold(generation) => return hold_of(persister, generation),
        OutboxEntry::Update(generation) => {
            generation.take_queued_update();
            if generation.record_state() != RecordState::Held || !generation.is_active() {
                return None;
            }
            Change::Update(tracker.record_of(generation))
        }
        OutboxEntry::End(generation, end) => match generation.record_state() {
            RecordState::None | RecordState::TakenOver => return None,
            RecordState::Unsent | RecordState::Sent => return hold_of(persister, generation),
            RecordState::Held => {
                let (scope, (id, generation_id)) = (end.scope, ids(generation));
                let end = tracker.end_record_of(generation, end);
                match scope {
                    Scope::Here => Change::Release { id, generation: generation_id, end },
                    Scope::Everywhere => Change::End { id, generation: generation_id, end },
                }
            }
        },
        OutboxEntry::EndDeliveredOffline(ended, end) => {
            let (id, generation) = ids(ended);
            Change::End { id, generation, end: tracker.end_record_of(ended, end) }
        }
        OutboxEntry::Release(released, cause) => {
            let (id, generation) = ids(released);
            match released.record_state() {
                // It may have joined another generation's record.
                RecordState::Sent if released.waits_for_record() => return hold_of(persister, released),
                state if !state.is_on_record() => return None,
                _ if *cause == ReleaseCause::Kept => Change::Keep { id, generation },
                _ => Change::Forget { id, generation },
            }
        }
        OutboxEntry::Attempted(generation, attempts, _) => {
            Change::Attempted { generation: tracker.generation_id(generation), attempts: *attempts }
        }
        OutboxEntry::Delivered(generation) => Change::Delivered { generation: tracker.generation_id(generation) },
        OutboxEntry::Commit(called) => match (called.generation.record_state(), called.outcome) {
            (RecordState::Held, Outcome::Ended) => {
                Change::Delivered { generation: tracker.generation_id(&called.generation) }
            }
            // The other hooks are called again, so the record stays.
            (RecordState::Held, _) => Change::Commit { generation: tracker.generation_id(&called.generation) },
            _ => return None,
        },
        OutboxEntry::DeadLetter(_, generation, error) => {
            Change::DeadLetter { generation: *generation, error: error.clone() }
        }
        OutboxEntry::Acknowledge(id, generation) => Change::Acknowledge { id: id.clone(), generation: *generation },
    })
}

fn hold_of(persister: &Persister, generation: &Arc<Generation>) -> Option<Change> {
    let mode = generation.hold_mode(persister.finds_first());
    generation.send_record().then(|| Change::Hold { record: persister.tracker.record_of(generation), mode })
}

/// Applies an entry without a change.
pub(super) fn apply_skipped(tracker: &Tracker, entry: OutboxEntry) -> Next {
    match entry {
        // Another process has taken the record over.
        OutboxEntry::Commit(called) => return Next::Committed(called, None),
        OutboxEntry::End(generation, end) => match generation.record_state() {
            RecordState::TakenOver => tracker.resolve_released(&generation, ReleaseCause::EndedElsewhere),
            _ => tracker.resolve_owned(&generation, end),
        },
        // Its record was never written, and the next generation of its id waits for it.
        OutboxEntry::Release(generation, _) => tracker.skip_start(&generation),
        _ => {}
    }
    Next::Nothing
}

/// What the writer does after an answer.
#[must_use]
pub(super) enum Next {
    Nothing,
    /// The hold of this generation is repeated later.
    HoldLater(Arc<Generation>),
    /// This end, which has no record, is written later.
    Postpone(Queued),
    /// The transaction hook has returned, with this error.
    Committed(Box<CalledEnd>, Option<String>),
}

/// Applies the answer to an entry.
pub(super) fn apply_answer(persister: &Persister, queued: Queued, answer: &Applied) -> Next {
    let tracker = &persister.tracker;
    let Queued { entry, place } = queued;
    match entry {
        OutboxEntry::Hold(generation) if *answer == Applied::NotFound => {
            // It is not on record. Another entry of the same generation asks again, and creates none either.
            generation.set_record_state(RecordState::Unsent);
            persister.on_not_found();
            // No head waits for it.
            generation.notify_recorded();
            return Next::HoldLater(generation);
        }
        OutboxEntry::Hold(generation) => apply_hold_answer(tracker, &generation, answer),
        OutboxEntry::End(ref generation, _) if *answer == Applied::NotFound => {
            generation.set_record_state(RecordState::Unsent);
            persister.on_not_found();
            return Next::Postpone(Queued { entry, place });
        }
        OutboxEntry::Release(generation, _) if *answer == Applied::NotFound => {
            generation.set_record_state(RecordState::Unsent);
            tracker.skip_start(&generation);
        }
        OutboxEntry::End(generation, end) if generation.record_state() != RecordState::Held => {
            apply_hold_answer(tracker, &generation, answer);
            persister.outbox.put_back([Queued { entry: OutboxEntry::End(generation, end), place }]);
        }
        OutboxEntry::End(generation, end) => apply_end_answer(tracker, &generation, end, answer),
        OutboxEntry::Release(generation, cause)
            if generation.record_state() == RecordState::Sent && generation.waits_for_record() =>
        {
            tracker.skip_start(&generation);
            apply_hold_answer(tracker, &generation, answer);
            persister.outbox.put_back([Queued { entry: OutboxEntry::Release(generation, cause), place }]);
        }
        OutboxEntry::Attempted(_, _, Some(counted)) => {
            let _ = counted.send(());
        }
        OutboxEntry::Commit(called) => {
            let error = match answer {
                Applied::Failed(error) => Some(error.clone()),
                _ => None,
            };
            if error.is_none() && called.outcome == Outcome::Ended {
                // The record was removed.
                called.generation.set_record_state(RecordState::None);
            }
            return Next::Committed(called, error);
        }
        // The hook has failed when nothing waited for it. It is not called for this record until an operator asks for it.
        OutboxEntry::Delivered(generation) if matches!(answer, Applied::Failed(_)) => {
            if let Applied::Failed(error) = answer {
                let (id, generation_id) = (generation.id.clone(), tracker.generation_id(&generation));
                persister.make_dead_letter(id, generation_id, None, error.clone());
            }
        }
        // The next heartbeat says when it ended.
        OutboxEntry::Update(_) if *answer == Applied::Gone => persister.expect_notices(),
        OutboxEntry::EndDeliveredOffline(generation, _) | OutboxEntry::Release(generation, _) => {
            tracker.renew_joined(&generation);
        }
        OutboxEntry::Update(_)
        | OutboxEntry::Attempted(..)
        | OutboxEntry::Delivered(_)
        | OutboxEntry::DeadLetter(..)
        | OutboxEntry::Acknowledge(..) => {}
    }
    Next::Nothing
}

fn apply_hold_answer(tracker: &Tracker, generation: &Arc<Generation>, answer: &Applied) {
    match answer {
        Applied::Joined(record) if record.generation != tracker.generation_id(generation) => {
            tracker.on_held(generation, Some(record));
        }
        Applied::Gone => tracker.on_gone(&generation.id, tracker.generation_id(generation), None),
        _ => tracker.on_held(generation, None),
    }
}

fn apply_end_answer(tracker: &Tracker, generation: &Arc<Generation>, end: PendingEnd, answer: &Applied) {
    match answer {
        Applied::HeldElsewhere => tracker.resolve_released(generation, ReleaseCause::HeldElsewhere),
        Applied::Gone => {
            generation.set_record_state(RecordState::TakenOver);
            tracker.resolve_released(generation, ReleaseCause::EndedElsewhere);
        }
        answer => {
            if let Applied::Owned { requests } = answer {
                generation.set_requests(*requests, &tracker.record_of(generation));
            }
            tracker.resolve_owned(generation, end);
        }
    }
    tracker.renew_joined(generation);
}

/// Another process has ended a session that this one may still have.
pub(super) fn apply_notice(persister: &Persister, notice: Notice) {
    let Notice { id, generation, age } = notice;
    // One more millisecond: the store may round the time of the end down.
    persister.tracker.on_gone(&id, generation, Some(age + Duration::from_millis(1)));
    persister.outbox.push(OutboxEntry::Acknowledge(id, generation));
}

/// Applies an entry while the registry is unavailable.
///
/// A session that the host has just made starts. The end of a session that is on record, or may be, is withheld: another
/// process may hold the session. In a drain it is handed over.
pub(super) fn apply_degraded(persister: &Persister, queued: Queued) {
    let tracker = &persister.tracker;
    let Queued { entry, place } = queued;
    let keep = |entry| persister.backlog().push(Queued { entry, place });
    match entry {
        OutboxEntry::Hold(generation) => {
            if persister.may_start_unrecorded(&generation) {
                tracker.start_unrecorded(&generation);
            }
            // Once the registry answers, it is held anew if it is active. Until then no head waits for it.
            generation.notify_recorded();
            // An end that has failed, and was not on record.
            if generation.stage() == Stage::Done {
                keep(OutboxEntry::Hold(generation));
            }
        }
        // Once the registry answers, its record is written with the present details. Until then no other update is queued.
        OutboxEntry::Update(ref generation) => {
            if generation.record_state() == RecordState::Held && generation.is_active() {
                keep(entry);
            } else {
                generation.take_queued_update();
            }
        }
        OutboxEntry::End(generation, end) => end_degraded(persister, generation, end, place),
        OutboxEntry::Release(ref generation, _) => {
            // It was claimed before it started, and no hook is called.
            tracker.skip_start(generation);
            if generation.record_state().is_on_record() {
                keep(entry);
            }
        }
        OutboxEntry::Attempted(generation, attempts, counted) => {
            if let Some(counted) = counted {
                let _ = counted.send(());
            }
            keep(OutboxEntry::Attempted(generation, attempts, None));
        }
        OutboxEntry::Commit(called) => {
            if let Some(called) = persister.withhold_commit(called, place)
                && called.end.redelivery.is_none()
            {
                // The next process calls its hooks again.
                tracker.on_end_done(&called.generation, Outcome::Aborted);
            }
        }
        OutboxEntry::EndDeliveredOffline(..) | OutboxEntry::Delivered(_) | OutboxEntry::DeadLetter(..) => keep(entry),
        // The heartbeats return the notice again.
        OutboxEntry::Acknowledge(..) => {}
    }
}

fn end_degraded(persister: &Persister, generation: Arc<Generation>, end: PendingEnd, place: u64) {
    let tracker = &persister.tracker;
    if persister.may_start_unrecorded(&generation) {
        tracker.start_unrecorded(&generation);
    }
    // A transaction hook sees each session, and what waits for an earlier end is recorded, unless the process stops without the
    // registry.
    let may_cancel = persister.transaction_hook.is_none() && !generation.has_predecessors();
    if (may_cancel || persister.is_draining()) && generation.cancel_record() {
        return tracker.resolve_owned(&generation, end);
    }
    if generation.waits_for_record() {
        // A process that has made the id in this outage may not have recorded it when the registry is back.
        generation.find_again();
    }
    match generation.record_state() {
        RecordState::TakenOver => return tracker.resolve_released(&generation, ReleaseCause::EndedElsewhere),
        RecordState::None => return tracker.resolve_owned(&generation, end),
        RecordState::Unsent | RecordState::Sent | RecordState::Held => {}
    }
    let (generation, end) = match persister.withhold(generation, end, place) {
        Withheld::Yes => return,
        Withheld::No(generation, end) => (generation, end),
    };
    // Its end would be lost with this process if the record does not exist.
    let may_be_unrecorded = generation.record_state() != RecordState::Held && !generation.waits_for_record();
    if generation.waits_for_record() || (persister.hand_over_on_outage && !may_be_unrecorded) {
        tracker.resolve_released(&generation, ReleaseCause::HandedOver);
    } else {
        let entry = OutboxEntry::EndDeliveredOffline(Arc::clone(&generation), end.clone());
        persister.backlog().push(Queued { entry, place });
        tracker.resolve_owned(&generation, end);
    }
}

impl Persister {
    /// Whether a session that waits for its record starts while the registry is unavailable. What was noted waits until the
    /// drain. So does a session whose record was sent: it may be on record by now, and another process may end it.
    /// With no replicas, each starts.
    fn may_start_unrecorded(&self, generation: &Generation) -> bool {
        let state = generation.record_state();
        let may_start = match generation.origin() {
            Origin::Made => state == RecordState::Unsent || self.is_draining(),
            Origin::Noted => self.is_draining(),
            Origin::Carried => false,
        };
        generation.waits_for_record() && state != RecordState::TakenOver && (may_start || !self.hand_over_on_outage)
    }
}
