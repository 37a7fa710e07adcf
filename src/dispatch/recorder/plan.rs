//! What an entry of the ledger is to the registry: the changes to make, and what their answers mean.

use std::sync::Arc;

use super::{Breaker, Pool, Recorder};
use crate::{
    registry::{Applied, Change, EndRecord, Record},
    tracker::{Ending, Entry, NotOurs, Op, Origin, Recorded, Recovery, Scope},
};

impl Pool {
    /// The changes of one entry; none if the registry need not know.
    pub(super) fn plan(&self, op: &Op, changes: &mut Vec<Change>) {
        let tracker = &self.tracker;
        match op {
            Op::Hold(entry) => changes.push(Change::Hold(tracker.record_of(entry))),
            Op::Update(entry) => {
                if entry.recorded() == Recorded::Held && entry.is_active() {
                    changes.push(Change::Update(tracker.record_of(entry)));
                }
            }
            Op::Claimed(entry, ending) => self.plan_claim(entry, ending, changes),
            Op::Late(entry, ending) => {
                let end = tracker.end_record_of(entry, ending);
                changes.push(Change::End { id: entry.id.clone(), event_id: tracker.event_id(entry), end });
            }
            Op::Disowned(entry, kept) => {
                let (id, event_id) = (entry.id.clone(), tracker.event_id(entry));
                if entry.recorded().is_on_record() {
                    changes.push(if *kept { Change::Keep { id, event_id } } else { Change::Forget { id, event_id } });
                }
            }
            Op::Over(entry) => {
                if entry.recorded().is_on_record() {
                    changes.push(Change::Done { event_id: tracker.event_id(entry) });
                }
            }
            Op::GivenUp(_, event_id) => changes.push(Change::Done { event_id: *event_id }),
            Op::Part(record) => {
                let end = EndRecord::new(crate::EndReason::Unknown, None, std::time::SystemTime::now(), 0);
                changes.push(Change::Release { id: record.session.id.clone(), event_id: record.event_id, end });
            }
        }
    }

    fn plan_claim(&self, entry: &Arc<Entry>, ending: &Ending, changes: &mut Vec<Change>) {
        let tracker = &self.tracker;
        let (id, event_id) = (entry.id.clone(), tracker.event_id(entry));
        match entry.recorded() {
            Recorded::Not | Recorded::Apart | Recorded::Taken => return,
            // What the registry has lost, or may never have had, would be `Gone`.
            Recorded::Doubtful => changes.push(Change::Hold(tracker.record_of(entry))),
            Recorded::Pending | Recorded::Held => {}
        }
        let end = tracker.end_record_of(entry, ending);
        changes.push(match ending.scope {
            Scope::Here => Change::Release { id, event_id, end },
            Scope::Everywhere => Change::End { id, event_id, end },
        });
    }

    /// What the answers to [`plan`](Self::plan)'s changes mean; there is one for each.
    pub(super) fn settle(&self, op: Op, answers: &[Applied]) {
        match op {
            Op::Hold(entry) => self.settle_hold(&entry, &answers[0]),
            Op::Claimed(entry, ending) => self.settle_claim(&entry, ending, answers),
            Op::Part(record) => {
                if let Applied::Yours { requests } = answers[0] {
                    self.end_foreign(*record, requests);
                }
            }
            Op::Update(_) | Op::Late(..) | Op::Disowned(..) | Op::Over(_) | Op::GivenUp(..) => {}
        }
    }

    fn settle_hold(&self, entry: &Arc<Entry>, answer: &Applied) {
        let tracker = &self.tracker;
        match answer {
            Applied::Joined(record) if record.event_id != tracker.event_id(entry) => {
                if entry.recorded() == Recorded::Pending {
                    tracker.held(entry, Recorded::Held, Some(record));
                } else {
                    // Its start was delivered, under its own name: so is its end.
                    self.part_from(entry, record);
                }
            }
            _ => tracker.held(entry, Recorded::Held, None),
        }
    }

    fn part_from(&self, entry: &Arc<Entry>, record: &Record) {
        self.tracker.held(entry, Recorded::Apart, None);
        // A later generation of our own is no stranger.
        if let Some(ledger) = &self.tracker.ledger
            && !self.tracker.has(&record.session.id, record.event_id)
        {
            ledger.put_back([Op::Part(Box::new(record.clone()))]);
        }
    }

    fn settle_claim(&self, entry: &Arc<Entry>, ending: Ending, answers: &[Applied]) {
        let tracker = &self.tracker;
        if let [Applied::Joined(record), _] = answers
            && record.event_id != tracker.event_id(entry)
        {
            self.part_from(entry, record);
            return tracker.is_ours(entry, ending);
        }
        match answers.last() {
            // Nothing was asked.
            None if entry.recorded() == Recorded::Taken => tracker.is_not_ours(entry, NotOurs::Gone),
            None => tracker.is_ours(entry, ending),
            Some(Applied::Others) => tracker.is_not_ours(entry, NotOurs::Others),
            Some(Applied::Gone) => tracker.is_not_ours(entry, NotOurs::Gone),
            Some(answer) => {
                if let Applied::Yours { requests } = answer {
                    let Record { event_id, started_at, .. } = tracker.record_of(entry);
                    let origin = || Origin {
                        event_id,
                        started_at,
                        ended_at: None,
                        requests: None,
                        is_joined: false,
                        recovery: None,
                    };
                    entry.set_requests(*requests, origin);
                }
                entry.set_recorded(Recorded::Held);
                tracker.is_ours(entry, ending);
            }
        }
    }

    /// The end of a generation that we held for a moment only, and were the last to.
    fn end_foreign(&self, record: Record, requests: u64) {
        let end = EndRecord::new(crate::EndReason::Unknown, None, std::time::SystemTime::now(), requests);
        self.tracker.adopt(crate::registry::Orphan::new(record, end, 1), &Arc::new(Recovery::default()));
    }

    /// What becomes of it while the registry is out of reach. `tried` if some of it may have got there.
    pub(super) fn go_on_without(&self, recorder: &Recorder, io: &mut Breaker, op: Op, tried: bool) {
        let tracker = &self.tracker;
        match op {
            Op::Hold(entry) => {
                let state = match entry.recorded() {
                    Recorded::Pending | Recorded::Not if tried => Recorded::Doubtful,
                    Recorded::Pending => Recorded::Not,
                    state => state,
                };
                tracker.held(&entry, state, None);
            }
            Op::Claimed(entry, ending) => match entry.recorded() {
                Recorded::Taken => tracker.is_not_ours(&entry, NotOurs::Gone),
                Recorded::Held if recorder.hands_over && ending.scope == Scope::Here && self.is_stopping() => {
                    tracker.is_not_ours(&entry, NotOurs::HandedOver);
                }
                state => {
                    if state.is_on_record() {
                        io.miss(Op::Late(Arc::clone(&entry), ending.clone()));
                    }
                    tracker.is_ours(&entry, ending);
                }
            },
            Op::Update(ref entry) | Op::Late(ref entry, _) | Op::Disowned(ref entry, _) | Op::Over(ref entry) => {
                if entry.recorded().is_on_record() {
                    io.miss(op);
                }
            }
            Op::Part(_) | Op::GivenUp(..) => io.miss(op),
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.tracker.queue.line().gate.stopping
    }
}
