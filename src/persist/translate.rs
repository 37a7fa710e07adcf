//! Translates outbox entries to changes of the registry, and applies the answers to the tracker.

use std::{sync::Arc, time::SystemTime};

use super::{Persister, breaker::Backlog};
use crate::{
    observability::ReleaseCause,
    registry::{Applied, Change, EndRecord, Orphan, Record},
    session::EndReason,
    tracker::{Generation, Outbox, OutboxEntry, PendingEnd, RecordState, Recovery, Scope, Tracker},
};

/// Appends the changes of one entry: none, one or two.
pub(super) fn changes_of(tracker: &Tracker, entry: &OutboxEntry, changes: &mut Vec<Change>) {
    match entry {
        OutboxEntry::Hold(generation) => {
            changes.push(Change::Hold { record: tracker.record_of(generation), may_join: true })
        }
        OutboxEntry::Update(generation) => {
            if generation.record_state() == RecordState::Held && generation.is_active() {
                changes.push(Change::Update(tracker.record_of(generation)));
            }
        }
        OutboxEntry::End(generation, end) => changes_of_end(tracker, generation, end, changes),
        OutboxEntry::EndDeliveredOffline(ended, end) => {
            let (id, generation) = (ended.id.clone(), tracker.generation_id(ended));
            changes.push(Change::End { id, generation, end: tracker.end_record_of(ended, end) });
        }
        OutboxEntry::Release(released, cause) => {
            let (id, generation) = (released.id.clone(), tracker.generation_id(released));
            if released.record_state().is_on_record() {
                let is_kept = *cause == ReleaseCause::Kept;
                changes.push(if is_kept { Change::Keep { id, generation } } else { Change::Forget { id, generation } });
            }
        }
        OutboxEntry::Delivered(generation) => {
            if generation.record_state().is_on_record() {
                changes.push(Change::Delivered { generation: tracker.generation_id(generation) });
            }
        }
        OutboxEntry::Abandon(_, generation) => changes.push(Change::Delivered { generation: *generation }),
        OutboxEntry::LeaveForeign(record) => {
            let end = EndRecord::new(EndReason::Unknown, None, SystemTime::now(), 0);
            changes.push(Change::Release { id: record.session.id.clone(), generation: record.generation, end });
        }
    }
}

fn changes_of_end(tracker: &Tracker, ended: &Arc<Generation>, end: &PendingEnd, changes: &mut Vec<Change>) {
    match ended.record_state() {
        RecordState::None | RecordState::Detached | RecordState::TakenOver => return,
        // A record that the registry has lost, or never had, would be answered `NotFound`.
        RecordState::Uncertain => changes.push(Change::Hold { record: tracker.record_of(ended), may_join: true }),
        RecordState::Pending | RecordState::Held => {}
    }
    let (id, generation) = (ended.id.clone(), tracker.generation_id(ended));
    let scope = end.scope;
    let end = tracker.end_record_of(ended, end);
    changes.push(match scope {
        Scope::Here => Change::Release { id, generation, end },
        Scope::Everywhere => Change::End { id, generation, end },
    });
}

/// Applies the answers to the changes of one entry, one answer for each change.
pub(super) fn apply_answers(tracker: &Tracker, outbox: &Outbox, entry: OutboxEntry, answers: &[Applied]) {
    match entry {
        OutboxEntry::Hold(generation) => apply_hold_answer(tracker, outbox, &generation, &answers[0]),
        OutboxEntry::End(generation, end) => apply_end_answer(tracker, outbox, &generation, end, answers),
        OutboxEntry::LeaveForeign(record) => {
            if let Applied::Owned { requests } = answers[0] {
                end_foreign_record(tracker, *record, requests);
            }
        }
        OutboxEntry::Update(_)
        | OutboxEntry::EndDeliveredOffline(..)
        | OutboxEntry::Release(..)
        | OutboxEntry::Delivered(_)
        | OutboxEntry::Abandon(..) => {}
    }
}

fn apply_hold_answer(tracker: &Tracker, outbox: &Outbox, generation: &Arc<Generation>, answer: &Applied) {
    match answer {
        Applied::Joined(record) if record.generation != tracker.generation_id(generation) => {
            if generation.record_state() == RecordState::Pending {
                tracker.on_hold_recorded(generation, RecordState::Held, Some(record));
            } else {
                // Its start was delivered with its own generation id, and so is its end.
                detach_from(tracker, outbox, generation, record);
            }
        }
        _ => tracker.on_hold_recorded(generation, RecordState::Held, None),
    }
}

/// The generation goes on without a record, and this process leaves the record that it has joined.
fn detach_from(tracker: &Tracker, outbox: &Outbox, generation: &Arc<Generation>, record: &Record) {
    tracker.on_hold_recorded(generation, RecordState::Detached, None);
    // The record may be that of a later generation of this process.
    if !tracker.has_generation(&record.session.id, record.generation) {
        outbox.put_back([OutboxEntry::LeaveForeign(Box::new(record.clone()))]);
    }
}

fn apply_end_answer(
    tracker: &Tracker,
    outbox: &Outbox,
    generation: &Arc<Generation>,
    end: PendingEnd,
    answers: &[Applied],
) {
    if let [Applied::Joined(record), _] = answers
        && record.generation != tracker.generation_id(generation)
    {
        detach_from(tracker, outbox, generation, record);
        return tracker.resolve_owned(generation, end);
    }
    match answers.last() {
        // The entry had no changes.
        None if generation.record_state() == RecordState::TakenOver => {
            tracker.resolve_released(generation, ReleaseCause::EndedElsewhere);
        }
        None => tracker.resolve_owned(generation, end),
        Some(Applied::HeldElsewhere) => tracker.resolve_released(generation, ReleaseCause::HeldElsewhere),
        Some(Applied::Gone) => tracker.resolve_released(generation, ReleaseCause::EndedElsewhere),
        Some(answer) => {
            if let Applied::Owned { requests } = answer {
                let record = tracker.record_of(generation);
                generation.set_requests(*requests, &record);
            }
            generation.set_record_state(RecordState::Held);
            tracker.resolve_owned(generation, end);
        }
    }
}

/// This process was the last holder of a record that it has left again: it delivers the end.
fn end_foreign_record(tracker: &Tracker, record: Record, requests: u64) {
    let end = EndRecord::new(EndReason::Unknown, None, SystemTime::now(), requests);
    tracker.take_over(Orphan::new(record, end, 1), &Arc::new(Recovery::default()));
}

/// Applies an entry while the registry is unavailable. `tried`: the registry may have applied some of its changes.
pub(super) fn apply_degraded(persister: &Persister, backlog: &mut Backlog, entry: OutboxEntry, tried: bool) {
    let tracker = &persister.tracker;
    match entry {
        OutboxEntry::Hold(generation) => {
            let state = match generation.record_state() {
                RecordState::Pending | RecordState::None if tried => RecordState::Uncertain,
                RecordState::Pending => RecordState::None,
                state => state,
            };
            tracker.on_hold_recorded(&generation, state, None);
        }
        OutboxEntry::End(generation, end) => match generation.record_state() {
            RecordState::TakenOver => tracker.resolve_released(&generation, ReleaseCause::EndedElsewhere),
            RecordState::Held
                if persister.hand_over_on_outage && end.scope == Scope::Here && persister.is_draining() =>
            {
                tracker.resolve_released(&generation, ReleaseCause::HandedOver);
            }
            state => {
                if state.is_on_record() {
                    backlog.push(OutboxEntry::EndDeliveredOffline(Arc::clone(&generation), end.clone()));
                }
                tracker.resolve_owned(&generation, end);
            }
        },
        OutboxEntry::Update(ref generation)
        | OutboxEntry::EndDeliveredOffline(ref generation, _)
        | OutboxEntry::Release(ref generation, _)
        | OutboxEntry::Delivered(ref generation) => {
            if generation.record_state().is_on_record() {
                backlog.push(entry);
            }
        }
        OutboxEntry::LeaveForeign(_) | OutboxEntry::Abandon(..) => backlog.push(entry),
    }
}
