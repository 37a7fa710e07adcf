//! What an entry of the outbox is to the registry: the changes to make, and what their answers mean.

use std::sync::Arc;

use super::{Breaker, Pool, Recorder};
use crate::{
    observability::ReleaseCause,
    registry::{Applied, Change, EndRecord, Record},
    tracker::{Generation, Origin, OutboxEntry, PendingEnd, RecordState, Recovery, Scope},
};

impl Pool {
    /// The changes of one entry; none if the registry need not know.
    pub(super) fn plan(&self, op: &OutboxEntry, changes: &mut Vec<Change>) {
        let tracker = &self.tracker;
        match op {
            OutboxEntry::Hold(generation) => changes.push(Change::Hold(tracker.record_of(generation))),
            OutboxEntry::Update(generation) => {
                if generation.recorded() == RecordState::Held && generation.is_active() {
                    changes.push(Change::Update(tracker.record_of(generation)));
                }
            }
            OutboxEntry::End(generation, ending) => self.plan_claim(generation, ending, changes),
            OutboxEntry::EndDeliveredOffline(generation, ending) => {
                let end = tracker.end_record_of(generation, ending);
                changes.push(Change::End {
                    id: generation.id.clone(),
                    generation: tracker.generation_id(generation),
                    end,
                });
            }
            OutboxEntry::Release(generation, cause) => {
                let (id, generation_id) = (generation.id.clone(), tracker.generation_id(generation));
                if generation.recorded().is_on_record() {
                    changes.push(if *cause == ReleaseCause::Kept {
                        Change::Keep { id, generation: generation_id }
                    } else {
                        Change::Forget { id, generation: generation_id }
                    });
                }
            }
            OutboxEntry::Delivered(generation) => {
                if generation.recorded().is_on_record() {
                    changes.push(Change::Delivered { generation: tracker.generation_id(generation) });
                }
            }
            OutboxEntry::Abandon(_, generation) => changes.push(Change::Delivered { generation: *generation }),
            OutboxEntry::LeaveForeign(record) => {
                let end = EndRecord::new(crate::EndReason::Unknown, None, std::time::SystemTime::now(), 0);
                changes.push(Change::Release { id: record.session.id.clone(), generation: record.generation, end });
            }
        }
    }

    fn plan_claim(&self, generation: &Arc<Generation>, ending: &PendingEnd, changes: &mut Vec<Change>) {
        let tracker = &self.tracker;
        let (id, generation_id) = (generation.id.clone(), tracker.generation_id(generation));
        match generation.recorded() {
            RecordState::None | RecordState::Detached | RecordState::TakenOver => return,
            // What the registry has lost, or may never have had, would be `Gone`.
            RecordState::Uncertain => changes.push(Change::Hold(tracker.record_of(generation))),
            RecordState::Pending | RecordState::Held => {}
        }
        let end = tracker.end_record_of(generation, ending);
        changes.push(match ending.scope {
            Scope::Here => Change::Release { id, generation: generation_id, end },
            Scope::Everywhere => Change::End { id, generation: generation_id, end },
        });
    }

    /// What the answers to [`plan`](Self::plan)'s changes mean; there is one for each.
    pub(super) fn settle(&self, op: OutboxEntry, answers: &[Applied]) {
        match op {
            OutboxEntry::Hold(generation) => self.settle_hold(&generation, &answers[0]),
            OutboxEntry::End(generation, ending) => self.settle_claim(&generation, ending, answers),
            OutboxEntry::LeaveForeign(record) => {
                if let Applied::Owned { requests } = answers[0] {
                    self.end_foreign_record(*record, requests);
                }
            }
            OutboxEntry::Update(_)
            | OutboxEntry::EndDeliveredOffline(..)
            | OutboxEntry::Release(..)
            | OutboxEntry::Delivered(_)
            | OutboxEntry::Abandon(..) => {}
        }
    }

    fn settle_hold(&self, generation: &Arc<Generation>, answer: &Applied) {
        let tracker = &self.tracker;
        match answer {
            Applied::Joined(record) if record.generation != tracker.generation_id(generation) => {
                if generation.recorded() == RecordState::Pending {
                    tracker.held(generation, RecordState::Held, Some(record));
                } else {
                    // Its start was delivered, under its own name: so is its end.
                    self.detach_from(generation, record);
                }
            }
            _ => tracker.held(generation, RecordState::Held, None),
        }
    }

    fn detach_from(&self, generation: &Arc<Generation>, record: &Record) {
        self.tracker.held(generation, RecordState::Detached, None);
        // A later generation of our own is no stranger.
        if let Some(outbox) = &self.tracker.outbox
            && !self.tracker.has(&record.session.id, record.generation)
        {
            outbox.put_back([OutboxEntry::LeaveForeign(Box::new(record.clone()))]);
        }
    }

    fn settle_claim(&self, generation: &Arc<Generation>, ending: PendingEnd, answers: &[Applied]) {
        let tracker = &self.tracker;
        if let [Applied::Joined(record), _] = answers
            && record.generation != tracker.generation_id(generation)
        {
            self.detach_from(generation, record);
            return tracker.resolve_owned(generation, ending);
        }
        match answers.last() {
            // Nothing was asked.
            None if generation.recorded() == RecordState::TakenOver => {
                tracker.resolve_released(generation, ReleaseCause::EndedElsewhere)
            }
            None => tracker.resolve_owned(generation, ending),
            Some(Applied::HeldElsewhere) => tracker.resolve_released(generation, ReleaseCause::HeldElsewhere),
            Some(Applied::NotFound) => tracker.resolve_released(generation, ReleaseCause::EndedElsewhere),
            Some(answer) => {
                if let Applied::Owned { requests } = answer {
                    let Record { generation: id, started_at, .. } = tracker.record_of(generation);
                    let origin = || Origin {
                        generation: id,
                        started_at,
                        ended_at: None,
                        requests: None,
                        is_joined: false,
                        recovery: None,
                    };
                    generation.set_requests(*requests, origin);
                }
                generation.set_recorded(RecordState::Held);
                tracker.resolve_owned(generation, ending);
            }
        }
    }

    /// The end of a generation that we held for a moment only, and were the last to.
    fn end_foreign_record(&self, record: Record, requests: u64) {
        let end = EndRecord::new(crate::EndReason::Unknown, None, std::time::SystemTime::now(), requests);
        self.tracker.adopt(crate::registry::Orphan::new(record, end, 1), &Arc::new(Recovery::default()));
    }

    /// What becomes of it while the registry is out of reach. `tried` if some of it may have got there.
    pub(super) fn apply_degraded(&self, recorder: &Recorder, io: &mut Breaker, op: OutboxEntry, tried: bool) {
        let tracker = &self.tracker;
        match op {
            OutboxEntry::Hold(generation) => {
                let state = match generation.recorded() {
                    RecordState::Pending | RecordState::None if tried => RecordState::Uncertain,
                    RecordState::Pending => RecordState::None,
                    state => state,
                };
                tracker.held(&generation, state, None);
            }
            OutboxEntry::End(generation, ending) => match generation.recorded() {
                RecordState::TakenOver => tracker.resolve_released(&generation, ReleaseCause::EndedElsewhere),
                RecordState::Held if recorder.hands_over && ending.scope == Scope::Here && self.is_stopping() => {
                    tracker.resolve_released(&generation, ReleaseCause::HandedOver);
                }
                state => {
                    if state.is_on_record() {
                        io.miss(OutboxEntry::EndDeliveredOffline(Arc::clone(&generation), ending.clone()));
                    }
                    tracker.resolve_owned(&generation, ending);
                }
            },
            OutboxEntry::Update(ref generation)
            | OutboxEntry::EndDeliveredOffline(ref generation, _)
            | OutboxEntry::Release(ref generation, _)
            | OutboxEntry::Delivered(ref generation) => {
                if generation.recorded().is_on_record() {
                    io.miss(op);
                }
            }
            OutboxEntry::LeaveForeign(_) | OutboxEntry::Abandon(..) => io.miss(op),
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.tracker.queue.state().limits.stopping
    }
}
