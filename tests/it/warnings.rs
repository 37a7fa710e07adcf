//! Misuse that is told, once for each handle.

use std::{
    future::{pending, ready},
    task::Poll,
    thread,
    time::Duration,
};

use tokio::time::{sleep, timeout};
use tower_session_end::{ActiveSessions, EndReason, SessionHook};

use crate::support::{Recorder, logging::Warnings};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_finish_without_any_shutdown_on_is_told_once_after_30_s() {
    let warnings = Warnings::default();
    let _logging = warnings.listen();
    let (_recorder, sessions) = Recorder::sessions();
    let two = async { tokio::join!(sessions.finish(pending::<()>()), sessions.finish(pending::<()>())) };
    let mut two = Box::pin(two);
    assert!(timeout(29 * SECOND, &mut two).await.is_err());
    assert!(warnings.all().is_empty(), "{warnings:?}");
    assert!(timeout(100 * SECOND, &mut two).await.is_err());
    assert_eq!(warnings.all(), ["session-finish-undriven"]);
}

#[tokio::test(start_paused = true)]
async fn a_finish_is_not_told_if_a_shutdown_on_was_polled_or_a_drain_began() {
    let warnings = Warnings::default();
    let _logging = warnings.listen();
    let (_recorder, sessions) = Recorder::sessions();
    let shutdown = sessions.shutdown_on(pending::<()>());
    // Polled, and dropped.
    let server = async {
        assert!(timeout(SECOND, shutdown).await.is_err());
        pending::<()>().await;
    };
    assert!(timeout(100 * SECOND, sessions.finish(server)).await.is_err());
    let (_recorder, sessions) = Recorder::sessions();
    let drained = sessions.clone();
    let server = async move {
        let _ = drained.drain(EndReason::Restart).await;
        sleep(5 * SECOND).await;
    };
    let _ = sessions.finish(server).await;
    assert!(warnings.all().is_empty(), "{warnings:?}");
}

#[tokio::test]
async fn a_handle_without_any_hook_is_told() {
    struct Quiet;

    impl SessionHook for Quiet {
        async fn session_end(&self, _: tower_session_end::SessionEnd) -> Result<(), tower_session_end::BoxError> {
            Ok(())
        }
    }

    let warnings = Warnings::default();
    let _logging = warnings.listen();
    let builder = ActiveSessions::builder;
    let handles = [
        builder().on_session_start(|_| ready(())),
        builder().on_session_end(|_| ready(())),
        builder().on_session_end_batch(10, |_| ready(())),
        builder().hook(Quiet),
    ]
    .map(|builder| builder.build().unwrap());
    assert!(warnings.all().is_empty(), "{warnings:?}");
    let none = builder().build().unwrap();
    assert_eq!(warnings.all(), ["session-no-hook"]);
    drop((handles, none));
}

#[tokio::test]
async fn a_last_handle_dropped_with_active_sessions_is_told_with_their_number() {
    let warnings = Warnings::default();
    let _logging = warnings.listen();
    let (_recorder, sessions) = Recorder::sessions();
    let (layer, clone) = (sessions.layer(), sessions.clone());
    sessions.note("a");
    sessions.note("b");
    drop(sessions);
    drop(layer);
    assert!(warnings.all().is_empty(), "there is a handle: {warnings:?}");
    drop(clone);
    assert_eq!(warnings.all(), ["session-handle-dropped sessions=2"]);
}

#[tokio::test(start_paused = true)]
async fn a_last_handle_is_dropped_silently_if_nobody_is_left_behind() {
    let warnings = Warnings::default();
    let _logging = warnings.listen();
    // Nobody is active.
    let (_recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    sessions.end("a", EndReason::Reset);
    drop(sessions);
    // `finish` is there to drain.
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let finish = sessions.finish(sleep(SECOND));
    drop(sessions);
    assert!(finish.await.report.is_clean());
    assert_eq!(recorder.ended(), ["a shutdown"]);
    // A drain has begun, and was dropped: its own affair.
    let (_recorder, sessions) = Recorder::sessions();
    let _ = sessions.drain(EndReason::Restart).await;
    sessions.note("late");
    drop(sessions);
    assert!(warnings.all().is_empty(), "{warnings:?}");
}

#[tokio::test]
async fn a_server_that_blocks_its_thread_is_told_once() {
    let warnings = Warnings::default();
    let _logging = warnings.listen();
    let (_recorder, sessions) = Recorder::sessions();
    let mut polls = 0;
    let server = std::future::poll_fn(|cx| {
        polls += 1;
        // As `accept` on a listener in blocking mode.
        thread::sleep(Duration::from_millis(if polls == 1 { 10 } else { 1010 }));
        cx.waker().wake_by_ref();
        if polls == 3 { Poll::Ready(()) } else { Poll::Pending }
    });
    let _ = sessions.finish(server).await;
    let [warning] = warnings.all().try_into().expect("one warning");
    let blocked: u64 = warning.strip_prefix("session-server-blocked blocked_ms=").unwrap().parse().unwrap();
    assert!(blocked >= 1010, "{warning}");
}
