//! The hook pool: hung and slow hooks, limits, batches.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::recorder::Recorder;
use tower_session_end::{ActiveSessions, BuildError, EndReason, EndStage, Session, SessionEnd, SessionStart};

const BUDGET: Duration = Duration::from_millis(120);

#[tokio::test(start_paused = true)]
async fn g07_one_hook_that_hangs_does_not_keep_the_event_from_the_other_hooks() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().drain_timeout(BUDGET).on_session_end(|_| pending::<()>()).build().unwrap();
    sessions.note("a");
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.unfinished.len(), 1);
    assert_eq!(recorder.order("a"), "+-");
}

#[tokio::test(start_paused = true)]
async fn g06_of_20_000_sessions_the_first_10_000_hang_and_the_others_are_delivered() {
    let sessions = ActiveSessions::builder()
        .on_session_end(|end: SessionEnd| async move {
            if end.session.key.is_some() {
                pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        })
        .build()
        .unwrap();
    // Queue those that hang first: end them before the drain, which takes the others.
    for n in 0..10_000 {
        sessions.note(Session::try_from(format!("hangs{n}")).unwrap().with_key("hangs"));
        sessions.end(format!("hangs{n}"), EndReason::Reset);
    }
    for n in 0..10_000 {
        sessions.note(format!("fine{n}"));
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.unfinished.len()), (10_000, 10_000), "{report}");
    assert!(report.elapsed <= Duration::from_millis(2050), "{:?}", report.elapsed);
}

#[tokio::test(start_paused = true)]
async fn g06_50_000_sessions_with_a_10_ms_hook_are_all_ended_within_the_default_budget() {
    let sessions =
        ActiveSessions::builder().on_session_end(|_| tokio::time::sleep(Duration::from_millis(10))).build().unwrap();
    for n in 0..50_000 {
        sessions.note(format!("s{n}"));
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.timed_out), (50_000, false), "{report}");
    assert!(report.elapsed < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn g06_every_one_of_many_hung_hooks_is_started_before_the_deadline() {
    let started = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&started);
    let sessions = ActiveSessions::builder()
        .on_session_end(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            pending::<()>()
        })
        .build()
        .unwrap();
    for n in 0..30_000 {
        sessions.note(format!("s{n}"));
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((started.load(Ordering::SeqCst), report.unfinished_count), (30_000, 30_000));
    // The first ones are listed.
    assert_eq!((report.unfinished.len(), report.is_clean()), (10_000, false));
    assert!(report.to_string().ends_with("and 29992 more"), "{report}");
    assert!(report.elapsed <= Duration::from_millis(2050));
}

#[tokio::test(start_paused = true)]
async fn on_one_shared_resource_the_report_counts_what_was_delivered() {
    let (delivered, resource) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Mutex::new(())));
    let counted = Arc::clone(&delivered);
    let sessions = ActiveSessions::builder()
        .on_session_end(move |_| {
            let (resource, delivered) = (Arc::clone(&resource), Arc::clone(&counted));
            async move {
                let _one_at_a_time = resource.lock().await;
                tokio::time::sleep(Duration::from_millis(10)).await;
                delivered.fetch_add(1, Ordering::SeqCst);
            }
        })
        .build()
        .unwrap();
    for n in 0..1000 {
        sessions.note(format!("s{n}"));
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    let delivered = delivered.load(Ordering::SeqCst) as u64;
    assert_eq!(report.ended, delivered);
    assert!((190..=200).contains(&delivered), "{delivered}");
    assert_eq!(report.ended + report.unfinished.len() as u64, 1000);
}

#[tokio::test(start_paused = true)]
async fn where_the_first_hook_hangs_on_the_shared_resource_nothing_is_reported_delivered() {
    let resource = Arc::new(tokio::sync::Mutex::new(()));
    let sessions = ActiveSessions::builder()
        .on_session_end(move |_| {
            let resource = Arc::clone(&resource);
            async move {
                let _one_at_a_time = resource.lock().await;
                pending::<()>().await;
            }
        })
        .build()
        .unwrap();
    for n in 0..100 {
        sessions.note(format!("s{n}"));
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.failed, report.unfinished.len()), (0, 0, 100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g06_hooks_that_block_their_thread_do_not_overrun_the_budget_by_more_than_themselves() {
    let sessions = ActiveSessions::builder()
        .drain_timeout(Duration::from_millis(200))
        .on_session_end(|_| {
            std::thread::sleep(Duration::from_millis(10));
            std::future::ready(())
        })
        .build()
        .unwrap();
    for n in 0..5000 {
        sessions.note(format!("s{n}"));
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    // All of them would take 25 s on two threads; what fits is counted, and the others were never started.
    assert!(report.timed_out);
    assert_eq!(report.ended + report.unfinished.len() as u64, 5000);
    assert!(report.ended < 1000, "{report}");
    let never = report.unfinished.iter().filter(|end| end.stage == EndStage::NeverStarted).count();
    assert!(never >= 4000, "{report}");
}

#[tokio::test(start_paused = true)]
async fn with_a_hard_limit_no_more_hooks_run_at_the_same_time() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running, seen) = (Arc::clone(&now), Arc::clone(&most));
    let sessions = ActiveSessions::builder()
        .max_concurrent_hooks(3)
        .on_session_end(move |_| {
            let (running, seen) = (Arc::clone(&running), Arc::clone(&seen));
            async move {
                seen.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Longer than the patience of the pool, which a hard limit switches off.
                tokio::time::sleep(Duration::from_millis(300)).await;
                running.fetch_sub(1, Ordering::SeqCst);
            }
        })
        .build()
        .unwrap();
    for n in 0..30 {
        sessions.note(format!("s{n}"));
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert_eq!(report.ended, 18, "{report}");
}

#[tokio::test(start_paused = true)]
async fn g13_an_ordinary_hook_is_bounded_by_the_hook_timeout() {
    let sessions = ActiveSessions::builder()
        .hook_timeout(Duration::from_secs(5))
        .on_session_start(|start: SessionStart| async move {
            if start.session.id == "slow-start" {
                pending::<()>().await;
            }
        })
        .on_session_end(|_| pending::<()>())
        .build()
        .unwrap();
    sessions.note("a");
    sessions.note("slow-start");
    sessions.end("a", EndReason::Reset);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let report = sessions.drain(EndReason::Shutdown).await;
    // The end of `a` timed out before the drain; the start of the other did, so that its end could be called.
    assert_eq!((report.active, report.already_ending), (1, 0), "{report}");
    assert_eq!(report.unfinished[0].stage, EndStage::Running);
}

#[tokio::test(start_paused = true)]
async fn a_batch_hook_takes_what_has_gathered_while_the_last_batch_ran() {
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sizes);
    let sessions = ActiveSessions::builder()
        .on_session_end_batch(1000, move |ends: Vec<SessionEnd>| {
            seen.lock().unwrap().push(ends.len());
            tokio::time::sleep(Duration::from_millis(10))
        })
        .build()
        .unwrap();
    for n in 0..20_000 {
        sessions.note(format!("s{n}"));
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.ended, 20_000, "{report}");
    let sizes = sizes.lock().unwrap();
    assert_eq!(sizes.iter().sum::<usize>(), 20_000);
    assert!(sizes.iter().all(|size| *size <= 1000));
    assert!(sizes.len() <= 22, "{} batches", sizes.len());
}

#[tokio::test(start_paused = true)]
async fn one_batch_is_one_fate() {
    let sessions = ActiveSessions::builder()
        .on_session_end_batch(10, |ends: Vec<SessionEnd>| async move {
            if ends.iter().any(|end| end.session.id == "poison") { Err("rolled back") } else { Ok(()) }
        })
        .build()
        .unwrap();
    for n in 0..5 {
        sessions.note(format!("s{n}"));
    }
    sessions.note("poison");
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.ended + report.failed, 6);
    assert!(report.failed >= 1 && report.unfinished.is_empty());

    let sessions = ActiveSessions::builder().on_session_end_batch(10, |_| pending::<()>()).build().unwrap();
    for n in 0..25 {
        sessions.note(format!("s{n}"));
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    let running = report.unfinished.iter().filter(|end| end.stage == EndStage::Running).count();
    assert_eq!((report.ended, report.unfinished.len()), (0, 25));
    assert!((1..=10).contains(&running), "{running}");
}

#[test]
fn a_capacity_of_zero_is_an_error_that_says_so() {
    let error = ActiveSessions::builder().max_concurrent_hooks(0).build().unwrap_err();
    assert!(matches!(error, BuildError::ZeroValue { setting: "max_concurrent_hooks", .. }));
    assert!(error.to_string().contains('0'));
    let error = ActiveSessions::builder().on_session_end_batch(0, |_| async {}).build().unwrap_err();
    assert!(matches!(error, BuildError::ZeroValue { .. }));
}
