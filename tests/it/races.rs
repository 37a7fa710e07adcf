//! Races, one by one: generations, order, runtimes that go away, hooks that call back.

use std::{
    future::pending,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::recorder::{Event, Recorder};
use tokio::runtime::Runtime;
use tower_session_end::{ActiveSessions, EndReason, EndStage, Phase, SessionEnd, SessionGuard};

#[tokio::test]
async fn g01_a_guard_of_generation_1_that_is_dropped_after_generation_2_was_noted_ends_nothing_of_it() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let guard = sessions.guard("a").unwrap();
    sessions.end("a", EndReason::Reset);
    sessions.note("a");
    drop(guard);
    assert!(sessions.contains("a"));
    let _ = sessions.drain(EndReason::Shutdown).await;
    let reasons: Vec<_> = recorder.ends().iter().map(|end| end.reason).collect();
    assert_eq!(reasons, [EndReason::Reset, EndReason::Shutdown]);
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn g02_the_start_of_a_generation_waits_for_the_slow_end_of_the_last_one() {
    let recorder = Recorder::default();
    // The first end is the slowest: without the order the later ones would overtake it.
    let ends = recorder.clone();
    let delay = move |_: &SessionEnd| Duration::from_millis(100 / (1 + ends.ends().len() as u64));
    let sessions = recorder.slow_builder(delay).build().unwrap();
    for _ in 0..5 {
        sessions.note("a");
        sessions.end("a", EndReason::Reset);
    }
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
    assert_eq!(recorder.order("a"), "+-+-+-+-+-");
}

#[tokio::test(start_paused = true)]
async fn g02_an_end_never_starts_before_its_slow_start_is_over() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let (starts, ends) = (Arc::clone(&log), Arc::clone(&log));
    let sessions = ActiveSessions::builder()
        .on_session_start(move |_| {
            let log = Arc::clone(&starts);
            async move {
                log.lock().unwrap().push("start begins");
                tokio::time::sleep(Duration::from_millis(300)).await;
                log.lock().unwrap().push("start over");
            }
        })
        .on_session_end(move |_| {
            ends.lock().unwrap().push("end");
            async {}
        })
        .build()
        .unwrap();
    sessions.note("a");
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
    assert_eq!(*log.lock().unwrap(), ["start begins", "start over", "end"]);
}

#[tokio::test(start_paused = true)]
async fn g02_a_compaction_orders_its_hooks_across_both_ids_and_their_earlier_generations() {
    let recorder = Recorder::default();
    let delay = |end: &SessionEnd| if end.reason == EndReason::Compaction { 50 } else { 100 };
    let sessions = recorder.slow_builder(move |end| Duration::from_millis(delay(end))).build().unwrap();
    // The successor's id has an earlier generation whose end is still running: its start has two predecessors.
    sessions.note("new");
    sessions.end("new", EndReason::Deleted);
    sessions.note("old");
    sessions.compact("old", "new");
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
    assert_eq!(recorder.order("new"), "+-+-");
    let position = |id: &str, start: bool, nth: usize| {
        let is = |event: &Event| event.id() == id && matches!(event, Event::Start(_)) == start;
        recorder.events().iter().enumerate().filter(|(_, event)| is(event)).nth(nth).unwrap().0
    };
    assert!(position("old", false, 0) < position("new", true, 1), "{:?}", recorder.events());
}

#[test]
fn g02_a_snapshot_taken_while_compactions_run_sees_the_old_or_the_new_always_one() {
    let sessions = ActiveSessions::builder().build().unwrap();
    sessions.note("s0");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..20_000 {
                assert!(sessions.compact(format!("s{n}"), format!("s{}", n + 1)).ended_old());
            }
            done.store(true, Ordering::SeqCst);
        });
        let mut seen = 0;
        while !done.load(Ordering::SeqCst) || seen == 0 {
            assert_eq!(sessions.snapshot().len(), 1);
            seen += 1;
        }
    });
}

#[test]
fn notes_and_ends_from_a_bare_thread_wait_for_the_drain() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let other = sessions.clone();
    std::thread::spawn(move || {
        other.note("a");
        other.note("b");
        other.end("a", EndReason::Reset);
        drop(other.guard("c").unwrap());
    })
    .join()
    .unwrap();
    assert!(recorder.events().is_empty());
    let report = Runtime::new().unwrap().block_on(sessions.drain(EndReason::Shutdown));
    assert_eq!((report.active, report.already_ending, report.ended), (1, 2, 3));
    assert_eq!(recorder.order("a"), "+-");
}

#[test]
fn calls_from_a_bare_thread_use_the_runtime_that_the_handle_was_built_in() {
    let recorder = Recorder::default();
    let runtime = Runtime::new().unwrap();
    let sessions = {
        let _inside = runtime.enter();
        recorder.builder().build().unwrap()
    };
    sessions.note("a");
    sessions.end("a", EndReason::Reset);
    for _ in 0..10_000 {
        if recorder.ends().len() == 1 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the hook was not called");
}

/// Ends its session when a runtime that goes down drops it.
struct DropsLate(#[allow(dead_code, reason = "held for its drop")] SessionGuard);

#[test]
fn a_guard_that_is_dropped_while_its_runtime_goes_down_neither_panics_nor_loses_its_end() {
    let recorder = Recorder::default();
    let runtime = Runtime::new().unwrap();
    let sessions = {
        let _inside = runtime.enter();
        recorder.builder().build().unwrap()
    };
    let late = DropsLate(sessions.guard("a").unwrap());
    runtime.spawn(async move {
        let _held = late;
        pending::<()>().await;
    });
    let very_late = sessions.guard("b").unwrap();
    runtime.shutdown_timeout(Duration::from_secs(5));
    drop(very_late);
    sessions.note("c");
    assert_eq!(sessions.len(), 1);
    let before = recorder.ends().len() as u64;
    let report = Runtime::new().unwrap().block_on(sessions.drain(EndReason::Shutdown));
    // The dying runtime may still have told the end of "a".
    assert!(before <= 1, "{before} told before the drain");
    assert_eq!(before + report.ended, 3, "{report}");
    let mut told: Vec<_> = recorder.ends().iter().map(|end| end.session.id.to_string()).collect();
    told.sort();
    assert_eq!(told, ["a", "b", "c"]);
}

#[test]
fn a_hook_that_a_dying_runtime_drops_counts_as_unfinished_and_lets_the_next_generation_go() {
    let recorder = Recorder::default();
    let hang = Arc::new(AtomicBool::new(true));
    let (ends, hangs) = (recorder.clone(), Arc::clone(&hang));
    let sessions = ActiveSessions::builder()
        .on_session_end(move |end| {
            ends.push(Event::End(end));
            let hang = hangs.load(Ordering::SeqCst);
            async move {
                if hang {
                    pending::<()>().await;
                }
            }
        })
        .build()
        .unwrap();
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        sessions.note("a");
        sessions.end("a", EndReason::Reset);
        while recorder.ends().is_empty() {
            tokio::task::yield_now().await;
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    hang.store(false, Ordering::SeqCst);
    sessions.note("a");
    let report = Runtime::new().unwrap().block_on(sessions.drain(EndReason::Shutdown));
    assert_eq!((report.active, report.already_ending, report.ended), (1, 1, 1), "{report}");
    assert_eq!(report.unfinished[0].stage, EndStage::Running);
    assert_eq!(recorder.ends().len(), 2);
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn a_hook_may_call_note_end_compact_and_drain() {
    let recorder = Recorder::default();
    let handle = Arc::new(OnceLock::<ActiveSessions>::new());
    let (inside, ends) = (Arc::clone(&handle), recorder.clone());
    let sessions = ActiveSessions::builder()
        .drain_timeout(Duration::from_millis(200))
        .on_session_end(move |end: SessionEnd| {
            let (sessions, id) = (inside.get().unwrap().clone(), end.session.id.clone());
            ends.push(Event::End(end));
            async move {
                match id.as_str() {
                    "notes" => drop(sessions.note("child")),
                    "ends" => assert!(sessions.end("victim", EndReason::Deleted)),
                    "compacts" => assert!(sessions.compact("child", "grandchild").ended_old()),
                    // Waits for its own end: that is bounded by the budget, as every drain is.
                    "drains" => assert!(sessions.drain(EndReason::Restart).await.timed_out),
                    _ => {}
                }
            }
        })
        .build()
        .unwrap();
    handle.set(sessions.clone()).unwrap();
    sessions.note("notes");
    sessions.note("victim");
    for id in ["notes", "ends", "compacts"] {
        sessions.note(id);
        sessions.end(id, EndReason::Reset);
        while !recorder.ends().iter().any(|end| end.session.id == id) {
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }
    assert!(sessions.contains("grandchild") && !sessions.contains("victim"));
    sessions.note("drains");
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.unfinished.len(), 1, "{report}");
    recorder.assert_no_generation_ended_twice();
    let mut ids: Vec<_> = recorder.ends().iter().map(|end| end.session.id.to_string()).collect();
    ids.sort();
    assert_eq!(ids, ["child", "compacts", "drains", "ends", "grandchild", "notes", "victim"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g01_many_threads_that_end_the_same_sessions_end_each_once() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let won = Arc::new(AtomicUsize::new(0));
    for n in 0..2000 {
        sessions.note(format!("s{n}"));
    }
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (sessions, won) = (sessions.clone(), Arc::clone(&won));
            std::thread::spawn(move || {
                for n in 0..2000 {
                    won.fetch_add(usize::from(sessions.end(format!("s{n}"), EndReason::Deleted)), Ordering::SeqCst);
                }
            })
        })
        .collect();
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(recorder.ends().len(), 2000);
    recorder.assert_no_generation_ended_twice();
    let deleted = recorder.ends().iter().filter(|end| end.reason == EndReason::Deleted).count();
    assert_eq!(deleted, won.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g08_notes_that_race_with_the_close_are_all_ended() {
    for round in 0..50 {
        let recorder = Recorder::default();
        let sessions = recorder.builder().build().unwrap();
        let noted = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let (sessions, noted) = (sessions.clone(), Arc::clone(&noted));
                std::thread::spawn(move || {
                    let mut n = 0;
                    while (sessions.phase() < Phase::Closing && n < 1000) || n % 50 != 0 {
                        assert!(sessions.note(format!("{thread}-{n}")).is_new());
                        noted.fetch_add(1, Ordering::SeqCst);
                        n += 1;
                    }
                })
            })
            .collect();
        while noted.load(Ordering::SeqCst) < round * 10 {
            tokio::task::yield_now().await;
        }
        let _ = sessions.drain(EndReason::Shutdown).await;
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // What was born after the first drain had looked is ended too, and a second one waits for it.
        assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
        assert_eq!(recorder.ends().len(), noted.load(Ordering::SeqCst));
        assert!(sessions.is_empty());
        recorder.assert_no_generation_ended_twice();
    }
}
