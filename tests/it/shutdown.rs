//! The stop as a whole: signals, phases, the bounded connection drain, the report.

use std::{
    future::{pending, ready},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::recorder::Recorder;
use tokio::{runtime::Handle, sync::oneshot, time::Instant};
use tower_session_end::{ActiveSessions, EndReason, Phase, SessionEnd, signal::ShutdownRequest};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// A server in miniature: goes on until `shutdown`, and for `draining` after it.
async fn server(shutdown: impl Future<Output = ()>, draining: Duration) -> io::Result<()> {
    shutdown.await;
    tokio::time::sleep(draining).await;
    Ok(())
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn c1_a_stop_is_one_drain_with_shutdown() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions.note("a");
    let report = sessions.finish(server(sessions.shutdown_on(ready(())), SECOND)).await.into_result().unwrap();
    assert_eq!(recorder.reasons(), [("a".to_owned(), EndReason::Shutdown)]);
    assert!(report.signalled && !report.forced && report.is_clean(), "{report}");
    assert_eq!((report.drain.ended, report.sessions.ended), (1, 1));
    assert!(!report.connections.timed_out && report.connections.elapsed >= SECOND);
    assert_eq!(sessions.phase(), Phase::Closed);
    assert!(!sessions.note("too-late").is_new());
}

#[tokio::test(start_paused = true)]
async fn c2_a_planned_restart_is_one_drain_with_restart() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions.note("a");
    let shutdown = sessions.shutdown_on(ready(EndReason::Restart));
    let report = sessions.finish(server(shutdown, SECOND)).await.report;
    assert_eq!(recorder.reasons(), [("a".to_owned(), EndReason::Restart)]);
    assert_eq!(report.sessions.reason, EndReason::Restart);
}

/// Collects the names of warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<(String, String)>>>);

impl<S: tracing::Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == tracing::Level::WARN {
            let mut fields = String::new();
            event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                fields.push_str(&format!("{field}={value:?} "));
            });
            self.0.lock().unwrap().push((event.metadata().name().to_owned(), fields));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn c3_a_drain_that_timed_out_warns_with_its_counts_and_the_stop_goes_on() {
    let warnings = Warnings::default();
    let _logging = crate::support::logging::listen(tracing_subscriber::registry().with(warnings.clone()));
    let sessions = ActiveSessions::builder().on_session_end(|_| pending::<()>()).build().unwrap();
    sessions.note("a");
    let finished = sessions.finish(server(sessions.shutdown_on(ready(())), SECOND)).await;
    assert!(finished.output.is_some());
    let warnings = warnings.0.lock().unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0].0, "session-end-drain");
    for field in ["active=1", "ended=0", "unfinished=1", "timed_out=true"] {
        assert!(warnings[0].1.contains(field), "{warnings:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn c4_without_hooks_the_shutdown_has_no_warning() {
    let warnings = Warnings::default();
    let _logging = crate::support::logging::listen(tracing_subscriber::registry().with(warnings.clone()));
    let sessions = ActiveSessions::builder().build().unwrap();
    sessions.note("a");
    assert!(sessions.finish(server(sessions.shutdown_on(ready(())), SECOND)).await.report.is_clean());
    let names: Vec<_> = warnings.0.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, ["session-no-hook"], "`build` has one, the shutdown none");
}

#[tokio::test(start_paused = true)]
async fn c5_a_failing_step_is_a_warning_and_stops_no_later_one() {
    let warnings = Warnings::default();
    let _logging = crate::support::logging::listen(tracing_subscriber::registry().with(warnings.clone()));
    let recorder = Recorder::default();
    let sessions = recorder.builder().on_session_end(|_| ready(Err::<(), _>("no disk"))).build().unwrap();
    sessions.note("a");
    let failing = async { io::Result::<()>::Err(io::Error::other("the signal is broken")) };
    let finished = sessions.finish(server(sessions.shutdown_on(failing), SECOND)).await;
    assert_eq!((finished.report.sessions.failed, finished.report.sessions.ended), (1, 0));
    assert_eq!(recorder.order("a"), "+-");
    assert!(finished.into_result().is_ok());
    let names: Vec<_> = warnings.0.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, ["session-hook-failed", "session-end-drain"]);
}

#[tokio::test(start_paused = true)]
async fn c6_g07_after_finish_no_task_of_ours_is_left() {
    let before = Handle::current().metrics().num_alive_tasks();
    let sessions = ActiveSessions::builder()
        .on_session_start(|_| async {})
        .on_session_end(|_| pending::<()>())
        .on_session_end_batch(10, |_| pending::<()>())
        .build()
        .unwrap();
    for n in 0..1000 {
        sessions.note(format!("s{n}"));
    }
    let report = sessions.finish(server(sessions.shutdown_on(ready(())), SECOND)).await.report;
    assert_eq!(report.sessions.unfinished.len(), 1000);
    assert_eq!(Handle::current().metrics().num_alive_tasks(), before);
}

#[tokio::test(start_paused = true)]
async fn g10_a_stop_is_bounded_by_the_sum_of_its_budgets() {
    let sessions = ActiveSessions::builder()
        .lame_duck_timeout(3 * SECOND)
        .drain_timeout(2 * SECOND)
        .connection_drain_timeout(5 * SECOND)
        .on_session_end(|_| pending::<()>())
        .build()
        .unwrap();
    for n in 0..1000 {
        sessions.note(format!("s{n}"));
    }
    let begun = Instant::now();
    let finished = sessions.finish(server(sessions.shutdown_on(ready(())), Duration::MAX)).await;
    assert!(begun.elapsed() <= 10 * SECOND, "{:?}", begun.elapsed());
    assert!(begun.elapsed() >= 9 * SECOND, "{:?}", begun.elapsed());
    assert!(finished.output.is_none());
    assert!(finished.report.connections.timed_out && !finished.report.is_clean());
    assert!(finished.into_result().is_ok());
}

#[tokio::test(start_paused = true)]
async fn in_the_lame_duck_readiness_says_no_and_sessions_go_on() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().lame_duck_timeout(5 * SECOND).build().unwrap();
    assert!(sessions.is_ready());
    let stop = tokio::spawn(sessions.shutdown_on(ready(())));
    tokio::time::sleep(SECOND).await;
    assert_eq!(sessions.phase(), Phase::LameDuck);
    assert!(!sessions.is_ready());
    sessions.note("a");
    assert!(sessions.contains("a"), "a session that is born now goes on");
    stop.await.unwrap();
    assert_eq!(sessions.phase(), Phase::Closing);
    assert_eq!(recorder.reasons(), [("a".to_owned(), EndReason::Shutdown)]);
}

#[tokio::test(start_paused = true)]
async fn g08_a_session_that_is_born_while_the_connections_drain_gets_its_end() {
    let recorder = Recorder::default();
    let sessions = recorder.slow_builder(|_| SECOND).build().unwrap();
    let (shutdown, handle) = (sessions.shutdown_on(ready(())), sessions.clone());
    let server = async move {
        shutdown.await;
        tokio::time::sleep(SECOND).await;
        // The server ends at once after this: `finish` waits for the end of the newcomer.
        handle.note("late");
    };
    let report = sessions.finish(server).await.into_result().unwrap();
    assert_eq!((report.drain.total(), report.sessions.late_starts, report.sessions.ended), (0, 1, 1), "{report}");
    assert_eq!(recorder.reasons(), [("late".to_owned(), EndReason::Shutdown)]);
}

#[tokio::test(start_paused = true)]
async fn g07_a_hook_that_runs_at_the_deadline_goes_on_and_the_final_report_tells_that_it_made_it() {
    let sessions = ActiveSessions::builder()
        .on_session_end(|end: SessionEnd| async move {
            match end.session.id.as_str() {
                "slow" => tokio::time::sleep(3 * SECOND).await,
                "hung" => pending().await,
                _ => {}
            }
        })
        .build()
        .unwrap();
    for id in ["fine", "slow", "hung"] {
        sessions.note(id);
    }
    let report = sessions.finish(server(sessions.shutdown_on(ready(())), 5 * SECOND)).await.report;
    assert_eq!((report.drain.ended, report.drain.unfinished.len()), (1, 2));
    assert_eq!((report.sessions.ended, report.sessions.unfinished.len()), (2, 1));
    assert_eq!(report.sessions.unfinished[0].session_id, "hung");
}

#[tokio::test(start_paused = true)]
async fn hung_hooks_do_not_hold_up_a_stop_whose_connections_have_drained() {
    let sessions = ActiveSessions::builder().on_session_end(|_| pending::<()>()).build().unwrap();
    sessions.note("a");
    let begun = Instant::now();
    let _ = sessions.finish(server(sessions.shutdown_on(ready(())), Duration::ZERO)).await;
    assert!(begun.elapsed() < 3 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn g11_a_second_signal_ends_the_waiting_at_once_and_says_so() {
    // In the lame duck, in the drain, and in the connection drain.
    for (at, phase) in [(1, Phase::LameDuck), (4, Phase::Closing), (7, Phase::Closing)] {
        let sessions = ActiveSessions::builder()
            .lame_duck_timeout(3 * SECOND)
            .drain_timeout(3 * SECOND)
            .connection_drain_timeout(100 * SECOND)
            .on_session_end(|_| pending::<()>())
            .build()
            .unwrap();
        sessions.note("a");
        let again = tokio::time::sleep(at * SECOND);
        let shutdown = sessions.shutdown_on(ready(ShutdownRequest::new(EndReason::Restart).forced_by(again)));
        let watched = sessions.clone();
        let seen = tokio::spawn(async move {
            tokio::time::sleep(at * SECOND - Duration::from_millis(1)).await;
            watched.phase()
        });
        let begun = Instant::now();
        let finished = sessions.finish(server(shutdown, Duration::MAX)).await;
        assert!(begun.elapsed() >= at * SECOND && begun.elapsed() <= at * SECOND + Duration::from_millis(100));
        assert_eq!(seen.await.unwrap(), phase);
        assert!(finished.report.forced && finished.report.connections.timed_out);
        assert_eq!(finished.report.sessions.unfinished.len(), 1, "{}", finished.report);
        assert_eq!(finished.report.sessions.reason, EndReason::Restart);
        assert_eq!(sessions.phase(), Phase::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn g11_a_server_that_ends_without_a_signal_is_drained() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions.note("a");
    let broken = async { io::Result::<()>::Err(io::Error::other("address in use")) };
    let finished = sessions.finish(broken).await;
    assert!(!finished.report.signalled && finished.report.is_clean());
    assert_eq!(recorder.reasons(), [("a".to_owned(), EndReason::Shutdown)]);
    assert!(finished.into_result().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_while_the_drain_runs_waits_for_its_outcome() {
    let recorder = Recorder::default();
    let sessions = recorder.slow_builder(|_| SECOND).build().unwrap();
    sessions.note("a");
    let shutdown = tokio::spawn(sessions.shutdown_on(ready(EndReason::Restart)));
    let server = async { tokio::time::sleep(SECOND / 2).await };
    let report = sessions.finish(server).await.report;
    assert_eq!((report.sessions.ended, report.sessions.reason), (1, EndReason::Restart));
    assert_eq!(recorder.ends().len(), 1);
    shutdown.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn g11_two_servers_on_one_handle_drain_once_and_close_with_the_last() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions.note("a");
    let (stop, stopped) = oneshot::channel::<()>();
    let first = server(sessions.shutdown_on(async { drop(stopped.await) }), SECOND);
    let second = server(sessions.shutdown_on(tokio::time::sleep(2 * SECOND)), 5 * SECOND);
    let late = sessions.clone();
    let between = async {
        tokio::time::sleep(3 * SECOND).await;
        // The first server is over, the second still drains its connections.
        assert_eq!(late.phase(), Phase::Closing);
        late.note("late");
    };
    stop.send(()).unwrap();
    let (first, second, ()) = tokio::join!(sessions.finish(first), sessions.finish(second), between);
    assert_eq!(first.report.sessions.ended, 1);
    assert_eq!(second.report.sessions.ended, 2, "{}", second.report);
    assert!(!first.report.connections.timed_out && !second.report.connections.timed_out);
    assert_eq!(recorder.ends().len(), 2);
    assert_eq!(sessions.phase(), Phase::Closed);
}

#[tokio::test(start_paused = true)]
async fn finish_that_is_dropped_half_way_loses_nothing() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions.note("a");
    let finish = sessions.finish(server(sessions.shutdown_on(tokio::time::sleep(10 * SECOND)), SECOND));
    assert!(tokio::time::timeout(SECOND, finish).await.is_err());
    assert!(sessions.contains("a"));
    assert_eq!(sessions.drain(EndReason::Shutdown).await.ended, 1);
    assert_eq!(recorder.ends().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn closing_resolves_when_the_drain_begins_also_for_those_who_ask_later() {
    let sessions = ActiveSessions::builder().lame_duck_timeout(SECOND).build().unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let (closing, counted) = (sessions.closing(), Arc::clone(&told));
    let listener = tokio::spawn(async move {
        closing.await;
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let stop = tokio::spawn(sessions.shutdown_on(ready(())));
    tokio::time::sleep(SECOND / 2).await;
    assert_eq!(told.load(Ordering::SeqCst), 0);
    stop.await.unwrap();
    listener.await.unwrap();
    sessions.closing().await;
}

#[tokio::test(start_paused = true)]
async fn the_report_is_json_with_its_counts_and_shows_ids_in_part_only() {
    let sessions = ActiveSessions::builder()
        .on_session_end(|end: SessionEnd| async move {
            if end.session.id == "hangs-and-is-a-secret" { pending().await } else { Err("broken") }
        })
        .build()
        .unwrap();
    sessions.note("hangs-and-is-a-secret");
    sessions.note("fails-and-is-a-secret");
    let report = sessions.finish(server(sessions.shutdown_on(ready(())), SECOND)).await.report;
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["sessions"]["active"], 2);
    assert_eq!(json["sessions"]["failed"], 1);
    assert_eq!(json["sessions"]["unfinished"][0]["stage"], "running");
    assert_eq!(json["connections"]["timedOut"], false);
    assert!(!report.to_string().contains("secret") && !format!("{report:?}").contains("secret"));
}

#[tokio::test(start_paused = true)]
async fn a_finish_that_begins_long_after_a_drain_has_all_of_its_time() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let _ = sessions.drain(EndReason::Restart).await;
    tokio::time::sleep(100 * SECOND).await;
    sessions.note("late");
    let finished = sessions.finish(server(ready(()), SECOND)).await;
    assert!(!finished.report.connections.timed_out && finished.report.is_clean(), "{}", finished.report);
    assert_eq!(recorder.reasons(), [("late".to_owned(), EndReason::Restart)]);
}

#[tokio::test(start_paused = true)]
async fn g10_a_server_that_panics_is_drained_before_the_panic_goes_on() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let finish = tokio::spawn(sessions.finish(async { panic!("the server panicked on purpose") }));
    let payload =
        finish.await.map(|finished: tower_session_end::FinishOutput<()>| drop(finished)).unwrap_err().into_panic();
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"the server panicked on purpose"));
    assert_eq!(recorder.reasons(), [("a".to_owned(), EndReason::Shutdown)]);
    assert_eq!(sessions.phase(), Phase::Closed);
}
