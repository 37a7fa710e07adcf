//! Shutdown signals that panic, or never come.

use crate::support::Recorder;
use std::future::Future;
use std::future::pending;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout;
use tower_session_end::ActiveSessions;
use tower_session_end::ActiveSessionsBuilder;
use tower_session_end::EndReason;
use tower_session_end::Phase;
use tower_session_end::signal::ShutdownRequest;

/// A handle with a recorder.
fn with(set: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder) -> (Recorder, ActiveSessions) {
    let recorder = Recorder::default();
    let sessions = set(recorder.builder()).build().unwrap();
    (recorder, sessions)
}

const SECOND: Duration = Duration::from_secs(1);

/// As axum does it: the shutdown future in a task of its own, whose panic nobody sees; then connections that never drain.
async fn server(shutdown: impl Future<Output = ()> + Send + 'static) {
    let _ = tokio::spawn(shutdown).await;
    pending::<()>().await;
}

/// Resolves at once, and panics when it is dropped.
struct PanicsOnDrop;

impl Future for PanicsOnDrop {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("the drop of a signal");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn g10_signals_that_panic_leave_the_stop_bounded() {
    let panicking = || async {
        if true {
            panic!("a second signal")
        }
    };
    for n in 0..3 {
        let (recorder, sessions) = with(|builder| builder);
        sessions.note("a");
        let begun = Instant::now();
        let finish = match n {
            0 => sessions.finish(server(sessions.shutdown_on(PanicsOnDrop))),
            // Polled by the drain; and, once that is over, by `finish`.
            1 => sessions.finish(server(
                sessions.shutdown_on(async move { ShutdownRequest::new(EndReason::Shutdown).forced_by(panicking()) }),
            )),
            _ => sessions.finish(server(sessions.shutdown_on(async move {
                ShutdownRequest::new(EndReason::Shutdown).forced_by(async move {
                    sleep(5 * SECOND).await;
                    panicking().await;
                })
            }))),
        };
        let finished = timeout(3600 * SECOND, finish).await.unwrap_or_else(|_| panic!("{n}: an unbounded stop"));
        assert!(begun.elapsed() <= 12 * SECOND + SECOND / 10, "{n}: {:?}", begun.elapsed());
        assert_eq!(sessions.phase(), Phase::Closed);
        assert_eq!(recorder.ended(), ["a shutdown"], "{n}");
        assert!(finished.report.signalled);
    }
}

#[tokio::test(start_paused = true)]
async fn g11_a_signal_that_never_comes_holds_no_server_that_ends_by_itself() {
    let (recorder, sessions) = with(|builder| builder);
    sessions.note("a");
    let never = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    let report = timeout(60 * SECOND, sessions.finish(sleep(SECOND))).await.unwrap().report;
    assert!(report.is_clean() && !report.signalled, "{report}");
    assert_eq!(recorder.ended(), ["a shutdown"]);
    assert!(!never.is_finished());
    never.abort();
}

#[tokio::test(start_paused = true)]
async fn g10_a_signal_that_panics_stops() {
    let sessions = ActiveSessions::builder().build().unwrap();
    sessions.note("a");
    let shutdown = sessions.shutdown_on(async {
        if true {
            panic!("channel closed")
        }
    });
    // As axum does it.
    let server = async move {
        let _ = tokio::spawn(shutdown).await;
        pending::<()>().await
    };
    let finished = timeout(Duration::from_secs(3600), sessions.finish(server)).await;
    assert!(finished.is_ok(), "unbounded stop; phase {:?}", sessions.phase());
}
