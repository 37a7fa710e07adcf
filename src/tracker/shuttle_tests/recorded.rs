//! Schedules with a outbox: a writer that answers late, beside notes, ends, sweeps, lost leases and lost records.
//!
//! What must hold in each: nothing is left active, owed, queued or unwritten; no start and no end comes twice or out of
//! order, but where a lost lease makes a new generation of an old one.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use shuttle::thread;

use super::{Step, World, explore};
use crate::{
    observability::ReleaseCause,
    registry::Record,
    session::{GenerationId, Phase, Session},
    sync::{AtomicUsize, Mutex, Ordering, lock},
    tracker::{Counts, Generation, NoteSource, OutboxEntry, RecordState, Tracker},
};

/// What the registry says to a change; `false` for the answer that everybody gets.
type Answer = fn(&Tracker, &OutboxEntry) -> bool;

const USUAL: Answer = |_, _| false;

struct Desk {
    world: Arc<World>,
    answer: Answer,
    /// One call of the registry at a time, and what it means is settled before the next.
    io: Mutex<()>,
    /// Claims that were answered: their ends are nobody else's to find.
    claims: AtomicUsize,
}

impl Desk {
    fn new(answer: Answer) -> Arc<Self> {
        Arc::new(Self { world: World::recorded(), answer, io: Mutex::new(()), claims: AtomicUsize::new(0) })
    }

    fn spawn(self: &Arc<Self>, f: impl FnOnce(&Self) + Send + 'static) {
        let desk = Arc::clone(self);
        self.world.spawn(move |_| f(&desk));
    }

    /// Held before anything else happens.
    fn hold(&self, id: &str) {
        self.world.note(id);
        self.write_some();
    }

    fn write_some(&self) -> bool {
        let tracker = &self.world.tracker;
        let ops = tracker.outbox.as_ref().unwrap().take(2);
        let _io = lock(&self.io);
        for op in &ops {
            if matches!(op, OutboxEntry::End(..)) {
                self.claims.fetch_add(1, Ordering::SeqCst);
            }
            if (self.answer)(tracker, op) {
                continue;
            }
            match op {
                OutboxEntry::Hold(generation) => tracker.on_hold_recorded(generation, RecordState::Held, None),
                OutboxEntry::End(generation, _) if generation.record_state() == RecordState::TakenOver => {
                    tracker.resolve_released(generation, ReleaseCause::EndedElsewhere);
                }
                OutboxEntry::End(generation, end) => tracker.resolve_owned(generation, end.clone()),
                _ => {}
            }
        }
        !ops.is_empty()
    }

    fn write(&self) {
        let tracker = &self.world.tracker;
        loop {
            let has_written = self.write_some();
            let is_over = self.world.busy.load(Ordering::SeqCst) == 0 && tracker.awaited() == 0;
            if !has_written && is_over && tracker.queue.is_empty() {
                break;
            }
            thread::yield_now();
        }
    }

    fn fence(&self) {
        let _io = lock(&self.io);
        self.world.tracker.restart_all();
    }

    fn forget(&self) {
        let _io = lock(&self.io);
        self.world.tracker.mark_records_uncertain();
    }

    /// ShardPair workers and a writer, until all is over; then the balance.
    fn check(self: &Arc<Self>) -> Counts {
        let desk = Arc::clone(self);
        let writer = thread::spawn(move || desk.write());
        let world = Arc::clone(&self.world);
        let worker = thread::spawn(move || world.work());
        self.world.work();
        worker.join().unwrap();
        writer.join().unwrap();
        // What only these last changes have set free.
        self.write_some();
        self.world.work();
        let (counts, unfinished) = self.world.tracker.collect_unfinished(false);
        assert_eq!((counts.active, counts.pending_ends, unfinished.len(), self.world.tracker.len()), (0, 0, 0, 0));
        assert_eq!(
            counts.starts,
            counts.ended + counts.held_elsewhere + counts.ended_elsewhere + counts.handed_over + counts.forgotten
        );
        assert!(self.world.tracker.queue.is_empty());
        self.order();
        counts
    }

    /// Of each entry the starts come before its one end, and those of one id come one after the other.
    fn order(&self) {
        let mut by_id = BTreeMap::<String, Vec<(u64, Step)>>::new();
        for (id, generation, step) in self.world.log.lock().unwrap().iter() {
            by_id.entry(id.clone()).or_default().push((*generation, *step));
        }
        for (id, steps) in &by_id {
            assert!(steps.is_sorted_by_key(|(generation, _)| *generation), "{id}: {steps:?}");
            for generation in steps.chunk_by(|one, other| one.0 == other.0) {
                let pairs: Vec<_> = generation.chunks(2).map(|pair| (pair[0].1, pair[1].1)).collect();
                let (last, before) = pairs.split_last().unwrap();
                let is_start = |pair: &(Step, Step)| *pair == (Step::StartBegins, Step::StartOver);
                assert!(before.iter().all(is_start), "{id}: {steps:?}");
                assert!(is_start(last) || *last == (Step::EndBegins, Step::EndOver), "{id}: {steps:?}");
            }
        }
    }

    fn count(&self, step: Step) -> usize {
        self.world.log.lock().unwrap().iter().filter(|(_, _, other)| *other == step).count()
    }
}

fn sweep(desk: &Desk) {
    desk.world.sweep();
}

#[test]
fn g15_an_end_that_comes_before_the_answer_to_the_birth_waits_for_its_start() {
    explore(|| {
        let desk = Desk::new(USUAL);
        desk.spawn(|desk| {
            desk.world.note("a");
            desk.world.end("a");
        });
        desk.spawn(|desk| {
            desk.write_some();
        });
        desk.spawn(sweep);
        let counts = desk.check();
        assert_eq!((counts.starts, counts.ended), (1, 1));
        assert_eq!((desk.count(Step::StartBegins), desk.count(Step::EndBegins)), (1, 1));
    });
}

#[test]
fn g02_generations_of_one_id_do_not_overlap_while_their_records_are_late() {
    explore(|| {
        let desk = Desk::new(USUAL);
        for _ in 0..2 {
            desk.spawn(|desk| {
                desk.world.note("a");
                desk.world.end("a");
            });
        }
        let counts = desk.check();
        assert!((1..=2).contains(&counts.starts) && counts.ended == counts.starts);
        assert_eq!(desk.count(Step::StartBegins) as u64, counts.starts);
    });
}

#[test]
fn g16_a_session_that_was_there_already_has_no_start_here_and_one_end() {
    explore(|| {
        let desk = Desk::new(|tracker, op| {
            let OutboxEntry::Hold(generation) = op else { return false };
            let record =
                Record::new(Session::new(generation.id.clone()), GenerationId::new(7, 7), SystemTime::UNIX_EPOCH);
            tracker.on_hold_recorded(generation, RecordState::Held, Some(&record));
            true
        });
        desk.spawn(|desk| desk.world.note("a"));
        desk.spawn(|desk| {
            desk.world.end("a");
            desk.world.sweep();
        });
        let counts = desk.check();
        assert_eq!((counts.starts, counts.ended), (1, 1));
        assert_eq!((desk.count(Step::StartBegins), desk.count(Step::EndBegins)), (0, 1));
    });
}

#[test]
fn g16_what_others_still_hold_has_its_start_here_and_no_end() {
    explore(|| {
        let desk = Desk::new(|tracker, op| {
            let OutboxEntry::End(generation, _) = op else { return false };
            tracker.resolve_released(generation, ReleaseCause::HeldElsewhere);
            true
        });
        desk.spawn(|desk| desk.world.note("a"));
        desk.spawn(|desk| {
            desk.world.end("a");
            desk.world.note("a");
        });
        desk.spawn(sweep);
        let counts = desk.check();
        assert_eq!(counts.held_elsewhere, counts.starts);
        assert_eq!(desk.count(Step::EndBegins), 0);
        assert_eq!(desk.count(Step::StartOver) as u64, counts.starts);
    });
}

#[test]
fn g16_a_lease_that_is_lost_beside_notes_and_ends_leaves_nothing_behind() {
    explore(|| {
        let desk = Desk::new(USUAL);
        desk.hold("a");
        desk.hold("b");
        desk.spawn(|desk| {
            desk.world.end("a");
            desk.world.note("a");
        });
        desk.spawn(Desk::fence);
        desk.spawn(|desk| {
            desk.write_some();
            desk.world.tracker.compact(b"b", None, Session::try_from("c").unwrap(), NoteSource::Handle, None);
        });
        desk.spawn(sweep);
        let counts = desk.check();
        // Each generation has one end, here or elsewhere.
        assert_eq!(desk.count(Step::EndBegins) as u64, counts.ended);
    });
}

#[test]
fn records_that_are_lost_beside_a_sweep_change_no_count() {
    explore(|| {
        let desk = Desk::new(USUAL);
        desk.hold("a");
        desk.world.note("b");
        desk.spawn(Desk::forget);
        desk.spawn(|desk| {
            desk.world.note("c");
            desk.world.end("a");
        });
        desk.spawn(sweep);
        let counts = desk.check();
        assert_eq!((counts.starts, counts.ended), (3, 3));
        assert_eq!((desk.count(Step::StartBegins), desk.count(Step::EndBegins)), (3, 3));
    });
}

#[test]
fn g17_a_birth_that_is_given_up_and_recorded_later_starts_once() {
    explore(|| {
        // Nothing is recorded until somebody asks again.
        let desk = Desk::new(|tracker, op| {
            let OutboxEntry::Hold(generation) = op else { return false };
            let is_first = generation.record_state() == RecordState::Pending;
            tracker.on_hold_recorded(generation, if is_first { RecordState::None } else { RecordState::Held }, None);
            true
        });
        desk.world.note("a");
        desk.spawn(|desk| {
            let _io = lock(&desk.io);
            desk.world.tracker.rehold_unrecorded();
        });
        desk.spawn(|desk| desk.world.note("b"));
        desk.spawn(sweep);
        let counts = desk.check();
        assert_eq!((counts.starts, counts.ended), (2, 2));
        assert_eq!(desk.count(Step::StartBegins), 2);
    });
}

#[test]
fn g16_an_end_for_all_that_a_dead_holder_left_behind_is_delivered_once() {
    explore(|| {
        let desk = Desk::new(USUAL);
        desk.hold("a");
        let generation: Arc<Generation> = desk.world.tracker.find(b"a").unwrap();
        let record = desk.world.tracker.record_of(&generation);
        let end = crate::registry::EndRecord::new(crate::EndReason::Deleted, None, SystemTime::UNIX_EPOCH, 0);
        desk.spawn(move |desk| {
            let _io = lock(&desk.io);
            if desk.claims.load(Ordering::SeqCst) == 0 {
                let recovery = Arc::default();
                desk.world.tracker.take_over(crate::registry::Orphan::new(record, end, 1), &recovery);
            }
        });
        desk.spawn(|desk| {
            desk.world.end("a");
        });
        desk.spawn(|desk| {
            assert!(desk.world.tracker.phase() <= Phase::Closing);
            desk.world.sweep();
        });
        let counts = desk.check();
        assert_eq!((counts.starts, counts.ended), (1, 1));
        assert_eq!(desk.count(Step::EndBegins), 1);
    });
}
