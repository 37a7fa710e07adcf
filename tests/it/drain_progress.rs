//! The watch of a drain: what it reads, when it wakes, and when it ends.

use std::{
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::{recorder::Recorder, within};
use tokio::{sync::Semaphore, time::sleep};
use tokio_test::{assert_pending, task::spawn};
use tower_session_end::{
    ActiveSessions, ActiveSessionsBuilder, DrainProgress, DrainWatch, EndReason, SessionEnd, signal::ShutdownRequest,
};

const SECOND: Duration = Duration::from_secs(1);

/// Every progress that a watch returns, up to its end. Fails if a count goes back.
async fn readings(mut watch: DrainWatch) -> Vec<DrainProgress> {
    let mut readings = Vec::<DrainProgress>::new();
    while let Some(progress) = within("a change of the progress", watch.changed()).await {
        assert!(progress.ended <= progress.of, "{progress:?}");
        if let Some(last) = readings.last() {
            assert!(last.ended <= progress.ended && last.of <= progress.of, "{last:?}, then {progress:?}");
            assert_ne!(*last, progress, "a reading is returned once");
        }
        readings.push(progress);
    }
    assert_eq!(watch.changed().await, None, "the end is the end");
    readings
}

fn counts(progress: &DrainProgress) -> (u64, u64) {
    (progress.ended, progress.of)
}

/// Each end waits for a permit. Those of the id `hangs` never end.
fn held_by(permits: &Arc<Semaphore>) -> ActiveSessionsBuilder {
    let permits = Arc::clone(permits);
    ActiveSessions::builder().on_session_end(move |end: SessionEnd| {
        let permits = Arc::clone(&permits);
        async move {
            if end.session.id == "hangs" {
                pending::<()>().await;
            }
            if let Ok(permit) = permits.acquire().await {
                permit.forget();
            }
        }
    })
}

/// Waits until the present counts are these.
async fn until(watch: &DrainWatch, expected: (u64, u64)) {
    within("the expected counts", async {
        while counts(&watch.now()) != expected {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_counts_rise_to_the_number_of_sessions() {
    let sessions = Recorder::default()
        .slow_builder(|end| SECOND * end.session.id.as_str().parse().unwrap())
        .drain_timeout(SECOND * 60)
        .build()
        .unwrap();
    for seconds in 0..10 {
        sessions.note(seconds.to_string());
    }
    sessions.end("0", EndReason::Reset); // its hook has not run yet: the drain waits for it too
    let reading = tokio::spawn(readings(sessions.drain_progress()));
    let report = sessions.drain(EndReason::Shutdown).await;
    assert!(report.is_clean(), "{report}");
    let readings = reading.await.unwrap();
    assert_eq!(readings.last().map(counts), Some((10, 10)));
    assert!(readings.len() >= 10, "one for each second: {readings:?}");
    assert!(readings.iter().all(|progress| progress.of == report.total()));
}

#[tokio::test(start_paused = true)]
async fn many_changes_are_few_readings() {
    // One second, and a change each millisecond.
    let hooks = Recorder::default().slow_builder(|_| Duration::from_millis(1));
    let sessions = hooks.max_concurrent_hooks(1).build().unwrap();
    for number in 0..1000 {
        sessions.note(number.to_string());
    }
    let reading = tokio::spawn(readings(sessions.drain_progress()));
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.ended, 1000, "{report}");
    let readings = reading.await.unwrap();
    assert!((8..=25).contains(&readings.len()), "{}: {readings:?}", readings.len());
    assert_eq!(readings.last().map(counts), Some((1000, 1000)));
}

#[tokio::test(start_paused = true)]
async fn a_watch_waits_for_the_drain_and_reads_its_deadline_then() {
    let sessions = ActiveSessions::builder().drain_timeout(SECOND * 5).build().unwrap();
    sessions.note("a");
    let (watch, mut waiting) = (sessions.drain_progress(), sessions.drain_progress());
    assert_eq!(watch.now(), DrainProgress::default());
    assert_eq!(watch.now().deadline, None);
    let mut changed = spawn(waiting.changed());
    assert_pending!(changed.poll());
    sleep(SECOND * 60).await;
    assert_pending!(changed.poll());

    let earliest = Instant::now() + SECOND * 4;
    let report = sessions.drain(EndReason::Shutdown).await;
    let progress = within("the drain's progress", changed).await.unwrap();
    assert_eq!(counts(&progress), (1, 1), "{report}");
    assert_eq!(progress, watch.now());
    // A paused clock has moved ahead of the system's.
    let deadline = progress.deadline.expect("the drain has a limit");
    assert!(deadline > earliest && deadline < earliest + SECOND * 3600, "{:?}", deadline - earliest);
    assert_eq!(waiting.changed().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_a_limit_has_no_deadline() {
    let sessions = ActiveSessions::builder().drain_timeout(Duration::MAX).build().unwrap();
    sessions.note("a");
    let reading = tokio::spawn(readings(sessions.drain_progress()));
    let _ = sessions.drain(EndReason::Shutdown).await;
    let readings = reading.await.unwrap();
    assert!(!readings.is_empty() && readings.iter().all(|progress| progress.deadline.is_none()), "{readings:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_with_no_session_is_read_once() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let _ = sessions.drain(EndReason::Shutdown).await;
    let readings = readings(sessions.drain_progress()).await;
    assert_eq!(readings.iter().map(counts).collect::<Vec<_>>(), [(0, 0)]);
}

#[tokio::test(start_paused = true)]
async fn sessions_that_start_in_the_shutdown_raise_the_number_until_finish_returns() {
    let permits = Arc::new(Semaphore::new(0));
    let sessions = held_by(&permits).drain_timeout(SECOND * 60).build().unwrap();
    sessions.note("a");
    sessions.note("b");
    let watch = sessions.drain_progress();
    let reading = tokio::spawn(readings(watch.clone()));
    let (shutdown, served) = (sessions.shutdown_on(ready(())), sessions.clone());
    let finished = tokio::spawn(async move {
        let server = async {
            shutdown.await;
            // In the connection drain.
            served.note("later");
        };
        served.finish(server).await
    });
    until(&watch, (0, 2)).await;
    sessions.note("late");
    until(&watch, (0, 3)).await;
    permits.add_permits(3);
    until(&watch, (3, 4)).await;
    assert!(!reading.is_finished(), "`finish` waits for one more session");
    permits.add_permits(1);
    let report = finished.await.unwrap().report;
    assert_eq!((report.sessions.ended, report.sessions.late_starts), (4, 2), "{report}");
    assert_eq!(reading.await.unwrap().last().map(counts), Some((4, 4)));
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_times_out_says_how_many_are_left() {
    let permits = Arc::new(Semaphore::new(2));
    let sessions = held_by(&permits).build().unwrap();
    for id in ["a", "b", "hangs"] {
        sessions.note(id);
    }
    let reading = tokio::spawn(readings(sessions.drain_progress()));
    let report = sessions.drain(EndReason::Shutdown).await;
    assert!(report.timed_out && report.ended == 2, "{report}");
    let readings = reading.await.unwrap();
    let last = readings.last().unwrap();
    assert_eq!((counts(last), last.to_string().as_str()), ((2, 3), "2 of 3 sessions have ended"));
}

#[tokio::test(start_paused = true)]
async fn hooks_that_go_on_in_the_connection_drain_count() {
    let sessions = Recorder::default().slow_builder(|_| SECOND * 3).drain_timeout(SECOND).build().unwrap();
    sessions.note("a");
    let reading = tokio::spawn(readings(sessions.drain_progress()));
    let shutdown = sessions.shutdown_on(ready(()));
    let server = async {
        shutdown.await;
        sleep(SECOND * 5).await;
    };
    let report = sessions.finish(server).await.report;
    assert!(report.drain.timed_out && report.sessions.ended == 1, "{report}");
    assert_eq!(reading.await.unwrap().last().map(counts), Some((1, 1)));
}

#[tokio::test(start_paused = true)]
async fn what_is_released_or_fails_has_ended_too() {
    let sessions = ActiveSessions::builder()
        .keep_if(|session, _| session.id == "kept")
        .on_session_end(|end: SessionEnd| ready(if end.session.id == "fails" { Err("no") } else { Ok(()) }))
        .build()
        .unwrap();
    for id in ["kept", "fails", "fine"] {
        sessions.note(id);
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.failed, report.kept), (1, 1, 1), "{report}");
    assert_eq!(counts(&sessions.drain_progress().now()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_with_the_handle() {
    let permits = Arc::new(Semaphore::new(0));
    let sessions = held_by(&permits).build().unwrap();
    let mut before = sessions.drain_progress();
    let mut waiting = spawn(before.changed());
    assert_pending!(waiting.poll());
    drop(sessions);
    assert!(waiting.is_woken());
    assert_eq!(waiting.await, None);
    assert_eq!(before.now(), DrainProgress::default());

    // In a drain whose future was dropped.
    let sessions = held_by(&permits).build().unwrap();
    sessions.note("a");
    let mut during = sessions.drain_progress();
    let mut drain = spawn(sessions.drain(EndReason::Shutdown));
    assert_pending!(drain.poll());
    drop(drain);
    assert_eq!(during.changed().await.as_ref().map(counts), Some((0, 1)));
    let mut waiting = spawn(during.changed());
    assert_pending!(waiting.poll());
    drop(sessions);
    assert_eq!(within("the end of the watch", waiting).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_with_the_next_drain_and_counts_from_the_first() {
    let permits = Arc::new(Semaphore::new(0));
    let sessions = held_by(&permits).drain_timeout(SECOND * 60).build().unwrap();
    sessions.note("a");
    sessions.note("b");
    let watch = sessions.drain_progress();
    let reading = tokio::spawn(readings(watch.clone()));
    let dropped = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.drain(EndReason::Shutdown).await }
    });
    permits.add_permits(1);
    until(&watch, (1, 2)).await;
    dropped.abort();
    assert!(dropped.await.is_err());
    let first_deadline = watch.now().deadline;
    sleep(SECOND).await;
    assert!(!reading.is_finished(), "no drain is over");
    permits.add_permits(1);
    let report = sessions.drain(EndReason::Shutdown).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(reading.await.unwrap().last().map(counts), Some((2, 2)));
    assert!(watch.now().deadline > first_deadline, "that of the drain that waits");

    // The handle stays in `Closing`.
    permits.add_permits(1);
    sessions.note("c");
    let _ = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(counts(&watch.now()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_ends_the_watch_with_finish() {
    let permits = Arc::new(Semaphore::new(0));
    let sessions = held_by(&permits).drain_timeout(SECOND * 60).build().unwrap();
    sessions.note("a");
    let reading = tokio::spawn(readings(sessions.drain_progress()));
    let signal = async { ShutdownRequest::new(EndReason::Shutdown).forced_by(sleep(SECOND)) };
    let shutdown = sessions.shutdown_on(signal);
    let report = sessions.finish(shutdown).await.report;
    assert!(report.forced, "{report}");
    assert_eq!(reading.await.unwrap().last().map(counts), Some((0, 1)));
}

#[tokio::test(start_paused = true)]
async fn the_next_call_returns_what_a_dropped_one_has_not() {
    let permits = Arc::new(Semaphore::new(0));
    let sessions = held_by(&permits).drain_timeout(SECOND * 60).build().unwrap();
    sessions.note("a");
    let mut watch = sessions.drain_progress();
    let drain = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.drain(EndReason::Shutdown).await }
    });
    assert_eq!(watch.changed().await.as_ref().map(counts), Some((0, 1)));
    let mut dropped = spawn(watch.changed());
    assert_pending!(dropped.poll());
    drop(dropped);
    permits.add_permits(1);
    assert!(drain.await.unwrap().is_clean());
    assert_eq!(watch.changed().await.as_ref().map(counts), Some((1, 1)));
    assert_eq!(watch.changed().await, None);
}

/// Readings of one thread, while others start, compact and end sessions, and a drain runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_reading_is_less_than_the_one_before_it() {
    let sessions = Recorder::default().slow_builder(|_| Duration::from_micros(100)).build().unwrap();
    for number in 0..2000 {
        sessions.note(number.to_string());
    }
    let watch = sessions.drain_progress();
    let is_over = Arc::new(AtomicBool::new(false));
    let reader = tokio::task::spawn_blocking({
        let (watch, is_over) = (watch.clone(), Arc::clone(&is_over));
        move || {
            let mut last = DrainProgress::default();
            while !is_over.load(Ordering::SeqCst) {
                let now = watch.now();
                assert!(last.ended <= now.ended && last.of <= now.of && now.ended <= now.of, "{last:?}, then {now:?}");
                last = now;
            }
        }
    });
    let starter = tokio::spawn({
        let sessions = sessions.clone();
        async move {
            for number in 0..2000 {
                sessions.note(format!("late-{number}"));
                sessions.compact(number.to_string(), format!("next-{number}"));
                tokio::task::yield_now().await;
            }
        }
    });
    let report = sessions.drain(EndReason::Shutdown).await;
    starter.await.unwrap();
    let last = sessions.drain(EndReason::Shutdown).await;
    is_over.store(true, Ordering::SeqCst);
    reader.await.unwrap();
    let now = watch.now();
    assert_eq!(now.ended, now.of, "{report}; {last}");
    assert!(now.of >= 4000, "{now}");
}
