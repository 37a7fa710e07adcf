//! Schedules with an outbox: a writer with late answers races with notes, ends, sweeps, lost leases and lost records.
//!
//! Invariants of every schedule: no generation stays active, no end pending, no job queued and no entry unwritten. Starts
//! and ends are in order and happen once; only a lost lease starts a generation again, as a new one.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use shuttle::thread;

use super::{Harness, Step, explore};
use crate::{
    observability::ReleaseCause,
    registry::{EndRecord, Orphan, Record},
    session::{EndReason, GenerationId, Phase, Session},
    sync::{AtomicUsize, Mutex, Ordering, lock},
    tracker::{Counts, Generation, NoteSource, OutboxEntry, RecordState, Tracker},
};

/// Answers an entry. `false`: the default answer applies.
type Answer = fn(&Tracker, &OutboxEntry) -> bool;

const DEFAULT_ANSWER: Answer = |_, _| false;

struct RegistryStub {
    harness: Arc<Harness>,
    answer: Answer,
    /// One call of the registry at a time. Its answers are applied before the next call.
    registry_lock: Mutex<()>,
    /// Ends that were answered. A recovery does not find these.
    claims: AtomicUsize,
}

impl RegistryStub {
    fn new(answer: Answer) -> Arc<Self> {
        Arc::new(Self {
            harness: Harness::with_outbox(),
            answer,
            registry_lock: Mutex::new(()),
            claims: AtomicUsize::new(0),
        })
    }

    fn spawn(self: &Arc<Self>, f: impl FnOnce(&Self) + Send + 'static) {
        let stub = Arc::clone(self);
        self.harness.spawn(move |_| f(&stub));
    }

    /// Notes `id` and records it.
    fn hold(&self, id: &str) {
        self.harness.note(id);
        self.write_batch();
    }

    fn write_batch(&self) -> bool {
        let tracker = &self.harness.tracker;
        let entries = tracker.outbox.as_ref().unwrap().take(2);
        let _registry = lock(&self.registry_lock);
        for entry in &entries {
            if matches!(entry, OutboxEntry::End(..)) {
                self.claims.fetch_add(1, Ordering::SeqCst);
            }
            if (self.answer)(tracker, entry) {
                continue;
            }
            match entry {
                OutboxEntry::Hold(generation) => tracker.on_hold_recorded(generation, RecordState::Held, None),
                OutboxEntry::End(generation, _) if generation.record_state() == RecordState::TakenOver => {
                    tracker.resolve_released(generation, ReleaseCause::EndedElsewhere);
                }
                OutboxEntry::End(generation, end) => tracker.resolve_owned(generation, end.clone()),
                _ => {}
            }
        }
        !entries.is_empty()
    }

    fn run_writer(&self) {
        let tracker = &self.harness.tracker;
        loop {
            let has_written = self.write_batch();
            let is_done = self.harness.running.load(Ordering::SeqCst) == 0 && tracker.awaited() == 0;
            if !has_written && is_done && tracker.queue.is_empty() {
                break;
            }
            thread::yield_now();
        }
    }

    fn lose_lease(&self) {
        let _registry = lock(&self.registry_lock);
        self.harness.tracker.restart_all();
    }

    fn lose_records(&self) {
        let _registry = lock(&self.registry_lock);
        self.harness.tracker.mark_records_uncertain();
    }

    /// Runs two workers and a writer until everything is done, and checks the counts and the order.
    fn check(self: &Arc<Self>) -> Counts {
        let stub = Arc::clone(self);
        let writer = thread::spawn(move || stub.run_writer());
        let harness = Arc::clone(&self.harness);
        let worker = thread::spawn(move || harness.run_worker());
        self.harness.run_worker();
        worker.join().unwrap();
        writer.join().unwrap();
        // Entries and jobs that the last answers have queued.
        self.write_batch();
        self.harness.run_worker();
        let (counts, unfinished) = self.harness.tracker.collect_unfinished(false);
        assert_eq!((counts.active, counts.pending_ends, unfinished.len(), self.harness.tracker.len()), (0, 0, 0, 0));
        assert_eq!(
            counts.starts,
            counts.ended + counts.held_elsewhere + counts.ended_elsewhere + counts.handed_over + counts.forgotten
        );
        assert!(self.harness.tracker.queue.is_empty());
        self.check_order();
        counts
    }

    /// Each generation's starts come before its one end, and generations of one id do not overlap.
    fn check_order(&self) {
        let mut by_id = BTreeMap::<String, Vec<(u64, Step)>>::new();
        for (id, generation, step) in self.harness.log.lock().unwrap().iter() {
            by_id.entry(id.clone()).or_default().push((*generation, *step));
        }
        for (id, steps) in &by_id {
            assert!(steps.is_sorted_by_key(|(generation, _)| *generation), "{id}: {steps:?}");
            for generation in steps.chunk_by(|one, other| one.0 == other.0) {
                let pairs: Vec<_> = generation.chunks(2).map(|pair| (pair[0].1, pair[1].1)).collect();
                let (last, before) = pairs.split_last().unwrap();
                let is_start = |pair: &(Step, Step)| *pair == (Step::StartBegan, Step::StartDone);
                assert!(before.iter().all(is_start), "{id}: {steps:?}");
                assert!(is_start(last) || *last == (Step::EndBegan, Step::EndDone), "{id}: {steps:?}");
            }
        }
    }

    fn count(&self, step: Step) -> usize {
        self.harness.log.lock().unwrap().iter().filter(|(_, _, other)| *other == step).count()
    }
}

fn sweep(stub: &RegistryStub) {
    stub.harness.sweep();
}

#[test]
fn g15_an_end_that_comes_before_the_answer_to_the_hold_waits_for_the_start() {
    explore(|| {
        let stub = RegistryStub::new(DEFAULT_ANSWER);
        stub.spawn(|stub| {
            stub.harness.note("a");
            stub.harness.end("a");
        });
        stub.spawn(|stub| {
            stub.write_batch();
        });
        stub.spawn(sweep);
        let counts = stub.check();
        assert_eq!((counts.starts, counts.ended), (1, 1));
        assert_eq!((stub.count(Step::StartBegan), stub.count(Step::EndBegan)), (1, 1));
    });
}

#[test]
fn g02_generations_of_one_id_do_not_overlap_while_their_records_are_late() {
    explore(|| {
        let stub = RegistryStub::new(DEFAULT_ANSWER);
        for _ in 0..2 {
            stub.spawn(|stub| {
                stub.harness.note("a");
                stub.harness.end("a");
            });
        }
        let counts = stub.check();
        assert!((1..=2).contains(&counts.starts) && counts.ended == counts.starts);
        assert_eq!(stub.count(Step::StartBegan) as u64, counts.starts);
    });
}

#[test]
fn g16_a_session_that_another_process_started_has_no_start_here_and_one_end() {
    explore(|| {
        let stub = RegistryStub::new(|tracker, entry| {
            let OutboxEntry::Hold(generation) = entry else { return false };
            let record =
                Record::new(Session::new(generation.id.clone()), GenerationId::new(7, 7), SystemTime::UNIX_EPOCH);
            tracker.on_hold_recorded(generation, RecordState::Held, Some(&record));
            true
        });
        stub.spawn(|stub| stub.harness.note("a"));
        stub.spawn(|stub| {
            stub.harness.end("a");
            stub.harness.sweep();
        });
        let counts = stub.check();
        assert_eq!((counts.starts, counts.ended), (1, 1));
        assert_eq!((stub.count(Step::StartBegan), stub.count(Step::EndBegan)), (0, 1));
    });
}

#[test]
fn g16_a_session_that_others_still_hold_has_a_start_here_and_no_end() {
    explore(|| {
        let stub = RegistryStub::new(|tracker, entry| {
            let OutboxEntry::End(generation, _) = entry else { return false };
            tracker.resolve_released(generation, ReleaseCause::HeldElsewhere);
            true
        });
        stub.spawn(|stub| stub.harness.note("a"));
        stub.spawn(|stub| {
            stub.harness.end("a");
            stub.harness.note("a");
        });
        stub.spawn(sweep);
        let counts = stub.check();
        assert_eq!(counts.held_elsewhere, counts.starts);
        assert_eq!(stub.count(Step::EndBegan), 0);
        assert_eq!(stub.count(Step::StartDone) as u64, counts.starts);
    });
}

#[test]
fn g16_a_lost_lease_that_races_with_notes_and_ends_leaves_no_generation_behind() {
    explore(|| {
        let stub = RegistryStub::new(DEFAULT_ANSWER);
        stub.hold("a");
        stub.hold("b");
        stub.spawn(|stub| {
            stub.harness.end("a");
            stub.harness.note("a");
        });
        stub.spawn(RegistryStub::lose_lease);
        stub.spawn(|stub| {
            stub.write_batch();
            stub.harness.tracker.compact(b"b", None, Session::try_from("c").unwrap(), NoteSource::Handle, None);
        });
        stub.spawn(sweep);
        let counts = stub.check();
        // Each generation has one end, in this process or in another.
        assert_eq!(stub.count(Step::EndBegan) as u64, counts.ended);
    });
}

#[test]
fn lost_records_that_race_with_a_sweep_change_no_count() {
    explore(|| {
        let stub = RegistryStub::new(DEFAULT_ANSWER);
        stub.hold("a");
        stub.harness.note("b");
        stub.spawn(RegistryStub::lose_records);
        stub.spawn(|stub| {
            stub.harness.note("c");
            stub.harness.end("a");
        });
        stub.spawn(sweep);
        let counts = stub.check();
        assert_eq!((counts.starts, counts.ended), (3, 3));
        assert_eq!((stub.count(Step::StartBegan), stub.count(Step::EndBegan)), (3, 3));
    });
}

#[test]
fn g17_a_start_whose_record_is_late_starts_once() {
    explore(|| {
        // The first hold is not recorded.
        let stub = RegistryStub::new(|tracker, entry| {
            let OutboxEntry::Hold(generation) = entry else { return false };
            let is_first = generation.record_state() == RecordState::Pending;
            tracker.on_hold_recorded(generation, if is_first { RecordState::None } else { RecordState::Held }, None);
            true
        });
        stub.harness.note("a");
        stub.spawn(|stub| {
            let _registry = lock(&stub.registry_lock);
            stub.harness.tracker.rehold_unrecorded();
        });
        stub.spawn(|stub| stub.harness.note("b"));
        stub.spawn(sweep);
        let counts = stub.check();
        assert_eq!((counts.starts, counts.ended), (2, 2));
        assert_eq!(stub.count(Step::StartBegan), 2);
    });
}

#[test]
fn g16_an_orphaned_end_of_an_active_session_is_delivered_once() {
    explore(|| {
        let stub = RegistryStub::new(DEFAULT_ANSWER);
        stub.hold("a");
        let generation: Arc<Generation> = stub.harness.tracker.find(b"a").unwrap();
        let record = stub.harness.tracker.record_of(&generation);
        let end = EndRecord::new(EndReason::Deleted, None, SystemTime::UNIX_EPOCH, 0);
        stub.spawn(move |stub| {
            let _registry = lock(&stub.registry_lock);
            if stub.claims.load(Ordering::SeqCst) == 0 {
                let recovery = Arc::default();
                stub.harness.tracker.take_over(Orphan::new(record, end, 1), &recovery);
            }
        });
        stub.spawn(|stub| {
            stub.harness.end("a");
        });
        stub.spawn(|stub| {
            assert!(stub.harness.tracker.phase() <= Phase::Closing);
            stub.harness.sweep();
        });
        let counts = stub.check();
        assert_eq!((counts.starts, counts.ended), (1, 1));
        assert_eq!(stub.count(Step::EndBegan), 1);
    });
}
