//! Schedules of the tracker, explored with shuttle: `RUSTFLAGS="--cfg shuttle" cargo test --lib schedules`.
//!
//! What must hold in each: every generation gets one start and one end, its start before its end, and the generations
//! of one id one after the other; nothing is left active, owed or queued.

mod recorded;

use std::{collections::BTreeMap, sync::Arc};

use shuttle::{sync::Mutex, thread};

use super::{Activity, EndedBy, Job, NoteSource, Noted, Outcome, Tracker, clock::NEVER};
use crate::{
    session::{EndReason, Phase, Session},
    sync::{AtomicUsize, Ordering},
};

/// `SCHEDULES=100000` for a long run.
fn schedules() -> usize {
    std::env::var("SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(2000)
}

/// Random schedules, and as many with few but well-placed preemptions.
fn explore(scenario: fn()) {
    shuttle::check_random(scenario, schedules());
    shuttle::check_pct(scenario, schedules(), 3);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    StartBegins,
    StartOver,
    EndBegins,
    EndOver,
}

struct World {
    tracker: Tracker,
    log: Mutex<Vec<(String, u64, Step)>>,
    busy: AtomicUsize,
}

impl World {
    fn new() -> Arc<Self> {
        Self::with(false)
    }

    /// With a registry, whose answers are somebody else's.
    fn recorded() -> Arc<Self> {
        Self::with(true)
    }

    fn with(is_recorded: bool) -> Arc<Self> {
        let tracker = Tracker::new(true, true, true, is_recorded.then(Arc::default));
        Arc::new(Self { tracker, log: Mutex::new(Vec::new()), busy: AtomicUsize::new(0) })
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
        self.busy.fetch_add(1, Ordering::SeqCst);
        let world = Arc::clone(self);
        thread::spawn(move || {
            f(&world);
            world.busy.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// A hook worker, until everybody else is done and nothing is left to do.
    fn work(&self) {
        loop {
            let job = {
                let mut line = self.tracker.queue.state();
                self.tracker.queue.pop(&mut line, NEVER - 1)
            };
            let log = |generation: &super::Generation, step| {
                self.log.lock().unwrap().push((generation.id.to_string(), generation.number, step));
            };
            match job {
                Some(Job::Start(generation)) => {
                    log(&generation, Step::StartBegins);
                    thread::yield_now();
                    log(&generation, Step::StartOver);
                    self.tracker.on_start_done(&generation);
                }
                Some(Job::End(generation, _)) => {
                    log(&generation, Step::EndBegins);
                    thread::yield_now();
                    log(&generation, Step::EndOver);
                    self.tracker.on_end_done(&generation, Outcome::Ended);
                }
                None if self.busy.load(Ordering::SeqCst) == 0 && self.tracker.awaited() == 0 => break,
                None => thread::yield_now(),
            }
        }
    }

    /// Runs two workers to the end, and checks the log.
    fn check(self: &Arc<Self>, starts: u64) {
        let other = Arc::clone(self);
        let second = thread::spawn(move || other.work());
        self.work();
        second.join().unwrap();

        let mut by_id = BTreeMap::<String, Vec<(u64, Step)>>::new();
        for (id, generation, step) in self.log.lock().unwrap().iter() {
            by_id.entry(id.clone()).or_default().push((*generation, *step));
        }
        let mut seen = 0;
        for (id, steps) in &by_id {
            let mut last = 0;
            for generation in steps.chunks(4) {
                let expected = [Step::StartBegins, Step::StartOver, Step::EndBegins, Step::EndOver];
                let number = generation[0].0;
                assert!(number > last, "{id}: {steps:?}");
                assert_eq!(generation, expected.map(|step| (number, step)), "{id}: {steps:?}");
                last = number;
                seen += 1;
            }
        }
        assert_eq!(seen, starts, "{by_id:?}");
        let (counts, unfinished) = self.tracker.collect_unfinished(false);
        assert_eq!((counts.starts, counts.ended), (starts, starts));
        assert_eq!((counts.active, counts.pending_ends, unfinished.len(), self.tracker.len()), (0, 0, 0, 0));
        assert!(self.tracker.queue.is_empty());
    }
}

#[test]
fn g02_two_generations_of_one_id_never_overlap() {
    explore(|| {
        let world = World::new();
        for _ in 0..2 {
            world.spawn(|world| {
                world.note("a");
                world.end("a");
            });
        }
        // Whoever comes first decides whether there are one or two.
        let other = Arc::clone(&world);
        let second = thread::spawn(move || other.work());
        world.work();
        second.join().unwrap();
        let starts = world.tracker.collect_unfinished(false).0.starts;
        assert!((1..=2).contains(&starts));
        world.check(starts);
    });
}

#[test]
fn g08_a_note_that_races_with_the_close_is_ended_once() {
    explore(|| {
        let world = World::new();
        world.note("early");
        world.spawn(|world| {
            world.note("a");
            world.note("b");
        });
        world.spawn(|world| world.sweep());
        world.check(3);
    });
}

#[test]
fn g01_an_end_that_races_with_the_sweep_fires_once() {
    explore(|| {
        let world = World::new();
        world.note("a");
        world.spawn(|world| {
            world.end("a");
        });
        world.spawn(|world| world.sweep());
        world.check(1);
    });
}

#[test]
fn g02_a_compaction_that_races_with_an_end_and_the_sweep_keeps_the_order() {
    explore(|| {
        let world = World::new();
        world.note("old");
        world.spawn(|world| {
            world.tracker.compact(b"old", None, Session::try_from("new").unwrap(), NoteSource::Handle, None);
        });
        world.spawn(|world| {
            world.end("old");
            world.sweep();
        });
        world.check(2);
    });
}

#[test]
fn g09_a_request_that_is_over_while_the_drain_spares_work_ends_its_session_once() {
    explore(|| {
        let world = World::new();
        world.note("a");
        let generation = world.tracker.begin_activity(b"a", 0).unwrap();
        world.spawn(move |world| {
            // As an exchange does at its end: first put down, then read the phase.
            if generation.end_activity(Activity::Request) && world.tracker.phase() >= Phase::Closing {
                world.tracker.claim(&generation, EndReason::Shutdown, EndedBy::Policy);
            }
        });
        // As a drain does: first the phase, then the sweep. Nobody sweeps again.
        world.spawn(|world| {
            world.tracker.advance(Phase::Closing, EndReason::Shutdown);
            for shard in 0..Tracker::shard_count() {
                world.tracker.sweep(shard, EndReason::Shutdown, true);
            }
        });
        world.check(1);
    });
}

#[test]
fn g13_an_eviction_that_races_with_a_request_ends_nobody_who_is_busy() {
    explore(|| {
        let world = World::new();
        world.note("a");
        world.note("b");
        let Noted::Started(newcomer) = world.tracker.note(Session::try_from("c").unwrap(), NoteSource::Handle, None)
        else {
            panic!()
        };
        world.spawn(|world| {
            if let Some(generation) = world.tracker.begin_activity(b"a", 1) {
                thread::yield_now();
                assert!(generation.is_active(), "evicted while it was busy");
                generation.end_activity(Activity::Request);
            }
        });
        world.spawn(move |world| {
            world.tracker.evict(&newcomer);
            assert!(newcomer.is_active());
        });
        let other = Arc::clone(&world);
        let second = thread::spawn(move || other.work());
        world.work();
        second.join().unwrap();
        world.sweep();
        world.check(3);
    });
}

#[test]
fn compactions_in_both_directions_neither_deadlock_nor_lose_an_end() {
    explore(|| {
        let world = World::new();
        world.note("a");
        world.note("b");
        world.spawn(|world| {
            world.tracker.compact(b"a", None, Session::try_from("b").unwrap(), NoteSource::Handle, None);
        });
        world.spawn(|world| {
            world.tracker.compact(b"b", None, Session::try_from("a").unwrap(), NoteSource::Handle, None);
        });
        let other = Arc::clone(&world);
        let second = thread::spawn(move || other.work());
        world.work();
        second.join().unwrap();
        world.sweep();
        let starts = world.tracker.collect_unfinished(false).0.starts;
        world.check(starts);
    });
}
