//! The drain: one budget, honest reports, nothing twice.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{assert_sum, recorder::Recorder, within};
use tokio::sync::Semaphore;
use tokio_test::{assert_pending, assert_ready, task::spawn};
use tower_session_end::{ActiveSessions, EndReason, EndStage, HookError, Phase, Session, SessionEnd};

const BUDGET: Duration = Duration::from_millis(120);

/// Lets every task that can go on do so.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn d1_with_nothing_tracked_the_report_is_empty_and_no_hook_is_called() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.total(), 0);
    assert_eq!(report.ended, 0);
    assert!(!report.timed_out && report.is_clean());
    assert!(recorder.events().is_empty());
}

#[tokio::test]
async fn d2_two_sessions_get_two_calls_and_a_second_drain_does_nothing() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions.note("a");
    sessions.note("b");
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.active, report.ended), (2, 2));
    assert_eq!(recorder.reasons(), ["a", "b"].map(|id| (id.to_owned(), EndReason::Shutdown)));
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.total(), report.ended), (0, 0));
    assert_eq!(recorder.ends().len(), 2);
    assert_eq!(sessions.phase(), Phase::Closing);
}

#[tokio::test]
async fn d3_the_reason_reaches_the_payload() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions.note("a");
    let report = sessions.drain(EndReason::Restart).await;
    assert_eq!(report.reason, EndReason::Restart);
    let json = serde_json::to_value(&recorder.ends()[0]).unwrap();
    assert_eq!(json["reason"], "restart");
}

#[tokio::test]
async fn d4_d8_of_three_sessions_one_was_reset_and_the_drain_ends_the_other_two() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    for (id, channel) in [("a", "telegram"), ("b", "discord"), ("c", "slack")] {
        sessions.note(Session::try_from(id).unwrap().with_key(format!("agent:main:{channel}")));
    }
    assert!(sessions.end("b", EndReason::Reset));
    let _ = sessions.drain(EndReason::Shutdown).await;
    let expected = [("a", EndReason::Shutdown), ("b", EndReason::Reset), ("c", EndReason::Shutdown)];
    assert_eq!(recorder.reasons(), expected.map(|(id, reason)| (id.to_owned(), reason)));
    assert_eq!(sessions.drain(EndReason::Shutdown).await.ended, 0);
    assert_eq!(recorder.ends().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn d5_a_drain_is_pending_while_its_hook_is_and_reports_it_once_released() {
    let (calls, latch) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (counted, released) = (Arc::clone(&calls), Arc::clone(&latch));
    let sessions = ActiveSessions::builder()
        .on_session_end(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            let latch = Arc::clone(&released);
            async move { drop(latch.acquire().await) }
        })
        .build()
        .unwrap();
    sessions.note("a");
    let mut drain = spawn(sessions.drain(EndReason::Shutdown));
    while calls.load(Ordering::SeqCst) == 0 {
        assert_pending!(drain.poll());
        tokio::task::yield_now().await;
    }
    assert_pending!(drain.poll());
    latch.add_permits(1);
    while !drain.is_woken() {
        tokio::task::yield_now().await;
    }
    let report = assert_ready!(drain.poll());
    assert_eq!((report.ended, calls.load(Ordering::SeqCst)), (1, 1));
    assert!(!report.timed_out);
}

#[tokio::test(start_paused = true)]
async fn d6_g07_a_hung_hook_is_reported_unfinished_and_disturbs_no_other() {
    let started = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&started);
    let sessions = ActiveSessions::builder()
        .drain_timeout(BUDGET)
        .on_session_end(move |end: SessionEnd| {
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                if end.session.id == "a" {
                    pending::<()>().await;
                }
            }
        })
        .build()
        .unwrap();
    sessions.note("a");
    sessions.note("b");
    let begun = tokio::time::Instant::now();
    let report = sessions.drain(EndReason::Shutdown).await;
    assert!(begun.elapsed() >= BUDGET && begun.elapsed() <= BUDGET + Duration::from_millis(2));
    assert!(report.timed_out && !report.is_clean());
    assert_eq!(started.load(Ordering::SeqCst), 2);
    assert_eq!(report.ended, 1);
    assert_eq!(report.unfinished.len(), 1);
    assert_eq!(report.unfinished[0].session_id, "a");
    assert_eq!(report.unfinished[0].stage, EndStage::Running);
}

#[tokio::test]
async fn d7_g03_without_hooks_sessions_are_still_forgotten() {
    let sessions = ActiveSessions::builder().build().unwrap();
    sessions.note("a");
    assert!(sessions.end("a", EndReason::Reset));
    assert!(sessions.is_empty());
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.total(), 0);
}

#[tokio::test]
async fn d9_what_a_hook_wrote_is_readable_once_the_drain_has_resolved() {
    let path = std::env::temp_dir().join(format!("tower-session-end-d9-{}", std::process::id()));
    let file = path.clone();
    let sessions = ActiveSessions::builder()
        .on_session_end(move |end: SessionEnd| {
            let file = file.clone();
            async move { tokio::fs::write(file, end.session.id.as_str()).await }
        })
        .build()
        .unwrap();
    sessions.note("a");
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a");
    std::fs::remove_file(path).unwrap();
}

#[tokio::test(start_paused = true)]
async fn g05_a_drain_awaits_the_end_that_a_reset_fired_just_before() {
    let done = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&done);
    let sessions = ActiveSessions::builder()
        .on_session_end(move |_| {
            let done = Arc::clone(&counted);
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                done.fetch_add(1, Ordering::SeqCst);
            }
        })
        .build()
        .unwrap();
    sessions.note("a");
    sessions.end("a", EndReason::Reset);
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.already_ending, report.ended), (1, 1));
    assert_eq!(done.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn g05_a_drain_that_is_dropped_half_way_loses_nothing() {
    let recorder = Recorder::default();
    let slow = recorder.slow_builder(|_| Duration::from_millis(10));
    let sessions = slow.max_concurrent_hooks(1).build().unwrap();
    for n in 0..100 {
        sessions.note(format!("s{n}"));
    }
    settle().await; // let the starts be over, which take their turns too
    let half = Duration::from_millis(505);
    assert!(tokio::time::timeout(half, sessions.drain(EndReason::Restart)).await.is_err());
    assert_eq!(recorder.ends().len(), 50);
    sessions.note("late");
    let report = sessions.drain(EndReason::Shutdown).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(recorder.ends().len(), 101);
    recorder.assert_no_generation_ended_twice();
    assert!(recorder.ends().iter().all(|end| end.reason == EndReason::Restart), "the first reason stays");
}

#[tokio::test(start_paused = true)]
async fn g11_an_overlapping_drain_fires_nothing_twice_and_shares_the_outcome() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let sessions = ActiveSessions::builder()
        .on_session_end(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100))
        })
        .build()
        .unwrap();
    for n in 0..10 {
        sessions.note(format!("s{n}"));
    }
    let second = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        sessions.drain(EndReason::Restart).await
    };
    let (first, second) = tokio::join!(sessions.drain(EndReason::Shutdown), second);
    assert_eq!(calls.load(Ordering::SeqCst), 10);
    assert_eq!((first.ended, second.ended), (10, 10));
    assert_eq!((first.reason, second.reason), (EndReason::Shutdown, EndReason::Shutdown));
}

#[tokio::test(start_paused = true)]
async fn g08_a_session_that_is_born_during_the_drain_is_ended_and_reported_late() {
    let recorder = Recorder::default();
    let ends = recorder.clone();
    let sessions = ActiveSessions::builder()
        .on_session_end(move |end| {
            ends.push(crate::support::recorder::Event::End(end));
            tokio::time::sleep(Duration::from_millis(100))
        })
        .build()
        .unwrap();
    sessions.note("early");
    let late = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(sessions.note("late").is_new());
        assert!(!sessions.contains("late"));
        sessions.compact("nobody", "later");
    };
    let (report, ()) = tokio::join!(sessions.drain(EndReason::Restart), late);
    assert_eq!((report.active, report.late_starts, report.ended), (1, 2, 3));
    assert_eq!(recorder.reasons(), ["early", "late", "later"].map(|id| (id.to_owned(), EndReason::Restart)));
}

#[tokio::test(start_paused = true)]
async fn g07_every_hook_that_errs_or_panics_is_counted_as_failed_with_its_error() {
    let sessions = ActiveSessions::builder()
        .on_session_end(|end: SessionEnd| async move {
            match end.session.id.as_str() {
                "errs" => Err("out of paper"),
                "panics" => panic!("on fire"),
                _ => Ok(()),
            }
        })
        .on_session_end(|end: SessionEnd| {
            assert!(end.session.id != "panics-early", "before its future was made");
            async {}
        })
        .build()
        .unwrap();
    for id in ["errs", "panics", "panics-early", "fine"] {
        sessions.note(id);
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.failed, report.unfinished.len()), (1, 3, 0));
    assert!(!report.timed_out && !report.is_clean());
    let mut errors: Vec<_> = report.failures.iter().map(|failure| failure.error.to_string()).collect();
    errors.sort();
    assert_eq!(errors, ["out of paper", "panicked: before its future was made", "panicked: on fire"]);
    assert!(report.failures.iter().all(|failure| failure.hook.starts_with("on_session_end at drain.rs:")));
    assert!(matches!(&report.failures[0].error, HookError::Failed(_) | HookError::Panicked(_)));
}

#[tokio::test(start_paused = true)]
async fn a_budget_of_zero_claims_everything_and_starts_nothing() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().drain_timeout(Duration::ZERO).build().unwrap();
    for n in 0..10 {
        sessions.note(format!("s{n}"));
    }
    settle().await; // let the starts be over, so that only ends are left
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.unfinished.len()), (0, 10));
    assert!(report.unfinished.iter().all(|end| end.stage == EndStage::NeverStarted));
    assert!(sessions.is_empty());
}

/// As the documentation of `drain_timeout` says.
#[tokio::test(start_paused = true)]
async fn g06_after_a_budget_of_zero_the_hooks_start_in_the_connection_drain() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().drain_timeout(Duration::ZERO).build().unwrap();
    for n in 0..10 {
        sessions.note(format!("s{n}"));
    }
    settle().await;
    let (shutdown, seen) = (sessions.shutdown_on(async {}), recorder.clone());
    let server = async move {
        shutdown.await;
        assert!(seen.ends().is_empty(), "started in the drain");
        while seen.ends().len() < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let report = within("finish", sessions.finish(server)).await.report;
    assert_eq!((report.drain.ended, report.drain.unfinished.len()), (0, 10), "{report}");
    assert_eq!((report.sessions.ended, report.sessions.unfinished.len()), (10, 0), "{report}");
    assert_sum(&report.drain);
    assert_sum(&report.sessions);
}

#[tokio::test(start_paused = true)]
async fn g06_after_a_budget_of_zero_without_finish_the_hooks_start_in_the_background() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().drain_timeout(Duration::ZERO).build().unwrap();
    sessions.note("a");
    settle().await;
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.unfinished.len()), (0, 1), "{report}");
    within("the end", async {
        while recorder.ends().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_budget_without_limit_waits_for_the_slowest() {
    let sessions = ActiveSessions::builder()
        .drain_timeout(Duration::MAX)
        .hook_timeout(Duration::MAX)
        .on_session_end(|end: SessionEnd| async move {
            assert_eq!(end.deadline, None);
            tokio::time::sleep(Duration::from_secs(100_000)).await;
        })
        .build()
        .unwrap();
    sessions.note("a");
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.timed_out), (1, false));
}

#[tokio::test(start_paused = true)]
async fn an_end_waits_for_its_start_and_is_reported_as_waiting() {
    let sessions =
        ActiveSessions::builder().on_session_start(|_| pending::<()>()).on_session_end(|_| async {}).build().unwrap();
    sessions.note("a");
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.unfinished[0].stage, EndStage::Waiting);
}
