//! Schedules of the tracker, explored with shuttle: `RUSTFLAGS="--cfg shuttle" cargo test --lib shuttle_tests`.
//!
//! Invariants of every schedule: each generation has one start and one end, in this order; generations of one id do not
//! overlap; no generation stays active, no end pending, no job queued, and no child linked.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use shuttle::{sync::Mutex, thread};

use super::{Activity, ExpiryLimits, Generation, Job, NoteSource, Noted, Outcome, Scope, Tracker, clock::NEVER};
use crate::{
    session::{EndReason, Phase, Session},
    sync::{AtomicUsize, Ordering, lock},
};

/// The number of schedules per scenario and strategy. `SCHEDULES=100000` is a long run.
fn schedules() -> usize {
    std::env::var("SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(2000)
}

/// Explores random schedules, and as many PCT schedules with at most three preemptions.
pub(crate) fn explore(scenario: fn()) {
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
    /// The reason of each end, by generation.
    reasons: Mutex<BTreeMap<u64, EndReason>>,
    running: AtomicUsize,
}

impl Harness {
    fn new() -> Arc<Self> {
        let tracker = Tracker::new(true, true, true, None);
        Arc::new(Self { tracker, log: Mutex::default(), reasons: Mutex::default(), running: AtomicUsize::new(0) })
    }

    fn note(&self, id: &str) {
        self.generation(id);
    }

    /// Notes the session.
    fn generation(&self, id: &str) -> Arc<Generation> {
        self.note_session(Session::try_from(id).unwrap())
    }

    fn note_child(&self, id: &str, parent: &str) -> Arc<Generation> {
        self.note_session(Session::try_from(id).unwrap().with_parent(parent))
    }

    fn note_session(&self, session: Session) -> Arc<Generation> {
        match self.tracker.note(session, NoteSource::Handle, None) {
            Noted::Started(generation) | Noted::AlreadyActive(generation) => generation,
            Noted::Tombstoned | Noted::Closed => panic!("not noted"),
        }
    }

    fn compact(&self, old: &str, new: &str) {
        let new = Session::try_from(new).unwrap();
        if let Some(old) = self.tracker.compact(old.as_bytes(), None, new, NoteSource::Handle, None).worked {
            self.end_work(&old);
        }
    }

    /// As `Housekeeper::end_activity` does.
    fn end_work(&self, generation: &Arc<Generation>) {
        let is_closing = || self.tracker.phase() >= Phase::Closing;
        let mut over = generation.end_activity(Activity::Work, is_closing).then(|| Arc::clone(generation));
        while let Some(generation) = over.take() {
            over = generation
                .take_successor_with_work()
                .filter(|successor| successor.end_activity(Activity::Work, is_closing));
            if is_closing() {
                self.tracker.claim_in_drain(&generation, self.tracker.shutdown_reason(), true);
            } else {
                self.tracker.expire_overdue(&generation);
            }
        }
    }

    /// Each session is older than its lifetime.
    fn expire_all(&self) {
        let limits =
            ExpiryLimits { idle_timeout: None, max_lifetime: Some(Duration::ZERO), streams_are_activity: true };
        self.tracker.expire(Tracker::shard_count(), self.tracker.clock.now(), &limits);
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
                Some(Job::End(generation, end)) => {
                    self.reasons.lock().unwrap().insert(generation.number, end.reason);
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
        let (counts, unfinished) = self.tracker.collect_unfinished(false, 10);
        assert_eq!((counts.starts, counts.ended), (starts, starts));
        assert_eq!((counts.active, counts.pending_ends, unfinished.count, self.tracker.len()), (0, 0, 0, 0));
        assert!(self.tracker.queue.is_empty());
        assert!(self.tracker.shards.iter().all(|shard| lock(shard).children.is_empty()), "a child is still linked");
        self.check_children();
    }

    /// The end of a child begins after that of its parent is done: of the `p` that was declared to have ended.
    fn check_children(&self) {
        let log = self.log.lock().unwrap();
        for (index, (_, number, step)) in log.iter().enumerate() {
            if *step == Step::EndBegan && self.reason(*number) == EndReason::Parent {
                let is_parent_done = |(id, number, step): &(String, u64, Step)| {
                    id.starts_with('p') && *step == Step::EndDone && self.reason(*number) == EndReason::Reset
                };
                assert!(log[..index].iter().any(is_parent_done), "{log:?}");
            }
        }
    }

    fn reason(&self, number: u64) -> EndReason {
        self.reasons.lock().unwrap()[&number]
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
        let starts = harness.tracker.collect_unfinished(false, 10).0.starts;
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
fn g21_a_guard_that_is_dropped_once_the_drain_has_begun_ends_with_the_reason_of_the_shutdown() {
    explore(|| {
        let harness = Harness::new();
        let closing = Arc::new(AtomicUsize::new(0));
        // One is dropped when its task hears of the drain, the other at any moment.
        for id in ["a", "b"] {
            let guarded = harness.generation(id);
            guarded.begin_activity(Activity::Guard);
            let closing = Arc::clone(&closing);
            harness.spawn(move |harness| {
                while id == "a" && closing.load(Ordering::SeqCst) == 0 {
                    thread::yield_now();
                }
                let has_begun = closing.load(Ordering::SeqCst) == 1;
                // In the order of `SessionGuard`.
                if harness.tracker.phase() >= Phase::Closing {
                    harness.tracker.claim_in_drain(&guarded, harness.tracker.shutdown_reason(), true);
                } else {
                    harness.tracker.claim(&guarded, EndReason::Unknown, Scope::Here);
                    assert!(!has_begun);
                }
                guarded.end_activity(Activity::Guard, || true);
            });
        }
        // In the order of a drain: store the phase, tell the tasks, then sweep.
        harness.spawn(move |harness| {
            harness.tracker.advance(Phase::Closing, EndReason::Restart);
            closing.store(1, Ordering::SeqCst);
            for shard in 0..Tracker::shard_count() {
                harness.tracker.sweep(shard, EndReason::Restart, false);
            }
        });
        harness.check(2);
        assert_eq!(harness.reason(1), EndReason::Restart);
        assert!([EndReason::Unknown, EndReason::Restart].contains(&harness.reason(2)));
    });
}

#[test]
fn g20_a_session_whose_success_came_after_the_doubt_is_not_ended_by_that_doubt() {
    explore(|| {
        let harness = Harness::new();
        let session = harness.generation("a");
        let (doubted, trusted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        harness.spawn({
            let (session, doubted) = (Arc::clone(&session), Arc::clone(&doubted));
            move |harness| {
                harness.tracker.doubt(&session);
                doubted.store(1, Ordering::SeqCst);
            }
        });
        harness.spawn({
            let trusted = Arc::clone(&trusted);
            move |harness| {
                let Some(session) = harness.tracker.begin_request(b"a") else { return };
                thread::yield_now();
                let was_doubted = doubted.load(Ordering::SeqCst);
                session.trust();
                assert!(session.is_active(), "ended while it was at work");
                trusted.store(was_doubted, Ordering::SeqCst);
                session.end_activity(Activity::Work, || false);
            }
        });
        harness.spawn(|harness| harness.tracker.resolve_doubts(Duration::ZERO, true));
        harness.run_two_workers();
        let is_trusted = trusted.load(Ordering::SeqCst) == 1;
        assert!(!(is_trusted && session.is_doubted()));
        harness.tracker.resolve_doubts(Duration::ZERO, true);
        assert!(!session.is_active() || !session.is_doubted());
        assert_eq!(harness.tracker.oldest_doubt(), None);
        if is_trusted {
            assert!(session.is_active());
        }
        harness.sweep();
        harness.check(1);
    });
}

/// A child of `p1` starts beside the end of `parent`, and beside `other`.
fn parent_ends_beside_child_note(parent: &'static str, other: fn(&Harness)) {
    let harness = Harness::new();
    harness.note("p1");
    let (started, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let child = Arc::new(Mutex::new(None));
    // Whether the child had started before the end began, and the other way round.
    let (child_first, parent_first) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    harness.spawn({
        let (started, ended) = (Arc::clone(&started), Arc::clone(&ended));
        let (child, parent_first) = (Arc::clone(&child), Arc::clone(&parent_first));
        move |harness| {
            parent_first.store(ended.load(Ordering::SeqCst), Ordering::SeqCst);
            *child.lock().unwrap() = Some(harness.note_child("c", "p1"));
            started.store(1, Ordering::SeqCst);
        }
    });
    harness.spawn({
        let child_first = Arc::clone(&child_first);
        move |harness| {
            let has_started = started.load(Ordering::SeqCst);
            if harness.end(parent) {
                child_first.store(has_started, Ordering::SeqCst);
                ended.store(1, Ordering::SeqCst);
            }
        }
    });
    harness.spawn(other);
    harness.run_two_workers();
    let child = child.lock().unwrap().take().unwrap();
    // A child that starts after the compaction of its parent is not one of the successor.
    if parent == "p1" && child_first.load(Ordering::SeqCst) == 1 {
        assert!(!child.is_active(), "it outlives its parent");
    }
    if parent_first.load(Ordering::SeqCst) == 1 && !child.is_active() {
        assert_ne!(harness.reason(child.number), EndReason::Parent, "an end of before ended it");
    }
    if let Some(link) = child.parent_link().filter(|_| child.is_active()) {
        let hash = harness.tracker.hash(link.parent.as_bytes());
        assert!(!harness.tracker.shard(hash).tombstones.claimed_since(hash, link.since), "it outlives its parent");
    }
    harness.sweep();
    let starts = harness.tracker.collect_unfinished(false, 10).0.starts;
    harness.check(starts);
}

#[test]
fn g22_a_child_that_starts_beside_the_end_of_its_parent_does_not_outlive_it() {
    explore(|| parent_ends_beside_child_note("p1", |_| {}));
}

#[test]
fn g22_a_child_that_ends_beside_its_parent_ends_once() {
    explore(|| {
        parent_ends_beside_child_note("p1", |harness| {
            harness.end("c");
        });
    });
}

#[test]
fn g22_a_child_that_starts_beside_the_compaction_of_its_parent_ends_with_the_successor() {
    explore(|| parent_ends_beside_child_note("p2", |harness| harness.compact("p1", "p2")));
}

#[test]
fn g22_a_child_that_starts_beside_the_compaction_and_the_end_of_its_parent_has_one_end() {
    explore(|| parent_ends_beside_child_note("p1", |harness| harness.compact("p1", "p2")));
}

#[test]
fn g22_a_child_that_is_compacted_beside_the_end_of_its_parent_ends_with_it() {
    explore(|| {
        let harness = Harness::new();
        harness.note("p1");
        harness.note_child("c1", "p1");
        harness.spawn(|harness| {
            harness.end("p1");
        });
        harness.spawn(|harness| harness.compact("c1", "c2"));
        harness.run_two_workers();
        // The parent has ended before the compaction, or after it: the note of an unknown id starts it anew.
        if let Some(child) = harness.tracker.find(b"c2") {
            assert_eq!(child.parent_link().map(|link| link.parent), None, "it outlives its parent");
        }
        harness.sweep();
        let starts = harness.tracker.collect_unfinished(false, 10).0.starts;
        harness.check(starts);
    });
}

#[test]
fn g22_a_child_that_ends_beside_the_compaction_of_its_parent_is_unlinked() {
    explore(|| {
        let harness = Harness::new();
        harness.note("p1");
        harness.note_child("c", "p1");
        harness.spawn(|harness| harness.compact("p1", "p2"));
        harness.spawn(|harness| {
            harness.end("c");
        });
        harness.run_two_workers();
        harness.sweep();
        harness.check(3);
    });
}

#[test]
fn g22_a_child_that_is_compacted_beside_the_compaction_of_its_parent_ends_with_the_successor() {
    explore(|| {
        let harness = Harness::new();
        harness.note("p1");
        harness.note_child("c1", "p1");
        harness.spawn(|harness| harness.compact("p1", "p2"));
        harness.spawn(|harness| harness.compact("c1", "c2"));
        harness.run_two_workers();
        assert!(harness.end("p2"));
        assert_eq!(harness.tracker.len(), 0);
        harness.check(4);
    });
}

#[test]
fn g13_a_session_whose_last_work_ends_beside_the_end_of_its_lifetime_expires() {
    explore(|| {
        let harness = Harness::new();
        let session = harness.generation("a");
        for _ in 0..2 {
            let work = harness.tracker.begin_work(b"a").unwrap();
            harness.spawn(move |harness| harness.end_work(&work));
        }
        harness.spawn(|harness| harness.expire_all());
        harness.check(1);
        assert!(!session.has_work());
        assert_eq!(harness.reason(1), EndReason::Expired);
    });
}

#[test]
fn g09_work_that_ends_beside_a_compaction_is_counted_once() {
    explore(|| {
        let harness = Harness::new();
        let old = harness.generation("a");
        let work = harness.tracker.begin_work(b"a").unwrap();
        harness.spawn(move |harness| harness.end_work(&work));
        harness.spawn(|harness| harness.compact("a", "b"));
        harness.spawn(|harness| harness.expire_all());
        harness.run_two_workers();
        let new = harness.tracker.find(b"b");
        for generation in [&old].into_iter().chain(&new) {
            assert!(!generation.has_work());
            assert!(!(generation.is_active() && generation.is_overdue()), "overdue, and still active");
        }
        assert!(!old.is_active());
        harness.expire_all();
        harness.check(2);
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
            harness.tracker.evict(&new, true);
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
        let starts = harness.tracker.collect_unfinished(false, 10).0.starts;
        harness.check(starts);
    });
}

/// No hook of any generation is left to run, and no generation waits for one.
pub(crate) fn assert_nothing_is_left(tracker: &Tracker) {
    let (counts, unfinished) = tracker.collect_unfinished(false, 10);
    assert_eq!((counts.active, counts.pending_ends, tracker.len(), tracker.awaited()), (0, 0, 0, 0), "{unfinished:?}");
    assert!(unfinished.count == 0, "{unfinished:?}");
    assert!(tracker.queue.is_empty());
    for shard in &tracker.shards {
        let shard = lock(shard);
        assert!(!shard.has_claimed(), "a claimed generation is left");
        assert!(shard.children.is_empty(), "a child is still linked");
    }
    let ended = counts.ended + counts.failed + counts.forgotten + counts.kept + counts.aborted;
    let released = counts.held_elsewhere + counts.ended_elsewhere + counts.handed_over;
    assert_eq!(counts.starts, ended + released, "{counts:?}");
}
