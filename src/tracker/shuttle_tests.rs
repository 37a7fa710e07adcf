//! Schedules of the tracker, explored with shuttle: `RUSTFLAGS="--cfg shuttle" cargo test --lib shuttle_tests`.
//!
//! Invariants of every schedule: each generation has one start and one end, in this order; generations of one id do not
//! overlap; no generation stays active, no end pending and no job queued.

mod registry;

use std::{collections::BTreeMap, sync::Arc};

use shuttle::{sync::Mutex, thread};

use super::{Activity, Job, NoteSource, Noted, Outcome, Scope, Tracker, clock::NEVER};
use crate::{
    session::{EndReason, Phase, Session},
    sync::{AtomicUsize, Ordering},
};

/// The number of schedules per scenario and strategy. `SCHEDULES=100000` is a long run.
fn schedules() -> usize {
    std::env::var("SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(2000)
}

/// Explores random schedules, and as many PCT schedules with at most three preemptions.
fn explore(scenario: fn()) {
    shuttle::check_random(scenario, schedules());
    shuttle::check_pct(scenario, schedules(), 3);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    StartBegan,
    StartDone,
    EndBegan,
    EndDone,
}

struct Harness {
    tracker: Tracker,
    log: Mutex<Vec<(String, u64, Step)>>,
    running: AtomicUsize,
}

impl Harness {
    fn new() -> Arc<Self> {
        Self::with_registry(false)
    }

    /// With an outbox. The caller writes it and applies the answers.
    fn with_outbox() -> Arc<Self> {
        Self::with_registry(true)
    }

    fn with_registry(has_registry: bool) -> Arc<Self> {
        let tracker = Tracker::new(true, true, true, has_registry.then(Arc::default));
        Arc::new(Self { tracker, log: Mutex::new(Vec::new()), running: AtomicUsize::new(0) })
    }

    fn note(&self, id: &str) {
        assert!(matches!(
            self.tracker.note(Session::try_from(id).unwrap(), NoteSource::Handle, None),
            Noted::Started(_) | Noted::AlreadyActive(_)
        ));
    }

    fn end(&self, id: &str) -> bool {
        self.tracker.end(id.as_bytes(), EndReason::Reset)
    }

    fn sweep(&self) {
        self.tracker.advance(Phase::Closing, EndReason::Shutdown);
        (0..Tracker::shard_count()).for_each(|shard| {
            self.tracker.sweep(shard, EndReason::Shutdown, false);
        });
    }

    fn spawn(self: &Arc<Self>, f: impl FnOnce(&Self) + Send + 'static) {
        self.running.fetch_add(1, Ordering::SeqCst);
        let harness = Arc::clone(self);
        thread::spawn(move || {
            f(&harness);
            harness.running.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// A hook worker. It exits when all spawned threads have finished and no end is awaited.
    fn run_worker(&self) {
        loop {
            let job = {
                let mut queue = self.tracker.queue.state();
                self.tracker.queue.pop(&mut queue, NEVER - 1)
            };
            let log = |generation: &super::Generation, step| {
                self.log.lock().unwrap().push((generation.id.to_string(), generation.number, step));
            };
            match job {
                Some(Job::Start(generation)) => {
                    log(&generation, Step::StartBegan);
                    thread::yield_now();
                    log(&generation, Step::StartDone);
                    self.tracker.on_start_done(&generation);
                }
                Some(Job::End(generation, _)) => {
                    log(&generation, Step::EndBegan);
                    thread::yield_now();
                    log(&generation, Step::EndDone);
                    self.tracker.on_end_done(&generation, Outcome::Ended);
                }
                None if self.running.load(Ordering::SeqCst) == 0 && self.tracker.awaited() == 0 => break,
                None => thread::yield_now(),
            }
        }
    }

    fn run_two_workers(self: &Arc<Self>) {
        let harness = Arc::clone(self);
        let other_worker = thread::spawn(move || harness.run_worker());
        self.run_worker();
        other_worker.join().unwrap();
    }

    /// Runs two workers until everything is done, and checks the log.
    fn check(self: &Arc<Self>, starts: u64) {
        self.run_two_workers();
        let mut by_id = BTreeMap::<String, Vec<(u64, Step)>>::new();
        for (id, generation, step) in self.log.lock().unwrap().iter() {
            by_id.entry(id.clone()).or_default().push((*generation, *step));
        }
        let mut generations = 0;
        for (id, steps) in &by_id {
            let mut last = 0;
            for generation in steps.chunks(4) {
                let expected = [Step::StartBegan, Step::StartDone, Step::EndBegan, Step::EndDone];
                let number = generation[0].0;
                assert!(number > last, "{id}: {steps:?}");
                assert_eq!(generation, expected.map(|step| (number, step)), "{id}: {steps:?}");
                last = number;
                generations += 1;
            }
        }
        assert_eq!(generations, starts, "{by_id:?}");
        let (counts, unfinished) = self.tracker.collect_unfinished(false);
        assert_eq!((counts.starts, counts.ended), (starts, starts));
        assert_eq!((counts.active, counts.pending_ends, unfinished.len(), self.tracker.len()), (0, 0, 0, 0));
        assert!(self.tracker.queue.is_empty());
    }
}

#[test]
fn g02_two_generations_of_one_id_never_overlap() {
    explore(|| {
        let harness = Harness::new();
        for _ in 0..2 {
            harness.spawn(|harness| {
                harness.note("a");
                harness.end("a");
            });
        }
        // There are one or two generations, depending on the order of the notes and ends.
        harness.run_two_workers();
        let starts = harness.tracker.collect_unfinished(false).0.starts;
        assert!((1..=2).contains(&starts));
        harness.check(starts);
    });
}

#[test]
fn g08_a_note_that_races_with_closing_is_ended_once() {
    explore(|| {
        let harness = Harness::new();
        harness.note("early");
        harness.spawn(|harness| {
            harness.note("a");
            harness.note("b");
        });
        harness.spawn(|harness| harness.sweep());
        harness.check(3);
    });
}

#[test]
fn g01_an_end_that_races_with_the_sweep_fires_once() {
    explore(|| {
        let harness = Harness::new();
        harness.note("a");
        harness.spawn(|harness| {
            harness.end("a");
        });
        harness.spawn(|harness| harness.sweep());
        harness.check(1);
    });
}

#[test]
fn g02_a_compaction_that_races_with_an_end_and_the_sweep_keeps_the_order() {
    explore(|| {
        let harness = Harness::new();
        harness.note("old");
        harness.spawn(|harness| {
            harness.tracker.compact(b"old", None, Session::try_from("new").unwrap(), NoteSource::Handle, None);
        });
        harness.spawn(|harness| {
            harness.end("old");
            harness.sweep();
        });
        harness.check(2);
    });
}

#[test]
fn g09_a_request_that_completes_during_a_sparing_sweep_ends_its_session_once() {
    explore(|| {
        let harness = Harness::new();
        harness.note("a");
        let generation = harness.tracker.begin_request(b"a").unwrap();
        harness.spawn(move |harness| {
            // In the order of `Exchange`: end the activity, then read the phase.
            if generation.end_activity(Activity::Work, || harness.tracker.phase() >= Phase::Closing) {
                harness.tracker.claim(&generation, EndReason::Shutdown, Scope::Here);
            }
        });
        // In the order of a drain: store the phase, then sweep. There is no second sweep.
        harness.spawn(|harness| {
            harness.tracker.advance(Phase::Closing, EndReason::Shutdown);
            for shard in 0..Tracker::shard_count() {
                harness.tracker.sweep(shard, EndReason::Shutdown, true);
            }
        });
        harness.check(1);
    });
}

#[test]
fn g13_an_eviction_that_races_with_a_request_ends_no_busy_session() {
    explore(|| {
        let harness = Harness::new();
        harness.note("a");
        harness.note("b");
        let Noted::Started(new) = harness.tracker.note(Session::try_from("c").unwrap(), NoteSource::Handle, None)
        else {
            panic!()
        };
        harness.spawn(|harness| {
            if let Some(generation) = harness.tracker.begin_request(b"a") {
                thread::yield_now();
                assert!(generation.is_active(), "evicted while it was busy");
                generation.end_activity(Activity::Work, || false);
            }
        });
        harness.spawn(move |harness| {
            harness.tracker.evict(&new);
            assert!(new.is_active());
        });
        harness.run_two_workers();
        harness.sweep();
        harness.check(3);
    });
}

#[test]
fn compactions_in_both_directions_neither_deadlock_nor_lose_an_end() {
    explore(|| {
        let harness = Harness::new();
        harness.note("a");
        harness.note("b");
        harness.spawn(|harness| {
            harness.tracker.compact(b"a", None, Session::try_from("b").unwrap(), NoteSource::Handle, None);
        });
        harness.spawn(|harness| {
            harness.tracker.compact(b"b", None, Session::try_from("a").unwrap(), NoteSource::Handle, None);
        });
        harness.run_two_workers();
        harness.sweep();
        let starts = harness.tracker.collect_unfinished(false).0.starts;
        harness.check(starts);
    });
}
