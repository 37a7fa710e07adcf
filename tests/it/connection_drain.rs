//! The connection drain and its deadline.

use std::{convert::Infallible, future::pending, time::Duration};

use crate::support::{Hint, Recorder, Script, Step};
use http::Request;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep, timeout};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_session_end::{ActiveSessions, EndReason, signal::ShutdownRequest};

#[tokio::test(start_paused = true)]
async fn the_time_of_the_connections_counts_from_the_last_signal() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let begun = Instant::now();
    let b = tokio::spawn(sessions.finish(pending::<()>()));
    let a = tokio::spawn(sessions.finish(async { sleep(Duration::from_secs(1)).await }));
    sessions.shutdown_on(async {}).await; // A's
    sleep(Duration::from_secs(5)).await;
    sessions.shutdown_on(async {}).await; // B's
    let _ = (a.await.unwrap(), b.await.unwrap());
    assert!(begun.elapsed() >= Duration::from_millis(14_900), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn g11_a_drain_after_finish_waits_for_nothing() {
    let sessions = ActiveSessions::builder()
        .drain_timeout(Duration::MAX)
        .max_concurrent_hooks(1)
        .on_session_end(|_| pending::<()>())
        .build()
        .unwrap();
    sessions.note("a");
    sessions.note("b");
    let shutdown = tokio::spawn(
        sessions
            .shutdown_on(async { ShutdownRequest::new(EndReason::Shutdown).forced_by(sleep(Duration::from_secs(1))) }),
    );
    let _f = sessions.finish(pending::<()>()).await;
    shutdown.await.unwrap();
    let drain = timeout(Duration::from_secs(3600), sessions.drain(EndReason::Shutdown)).await.map(|d| d.total());
    assert!(drain.is_ok(), "a drain after Closed waits for what can never run");
}

#[tokio::test(start_paused = true)]
async fn g10_a_late_hook_that_hangs_holds_no_stop_for_ever() {
    let sessions = ActiveSessions::builder()
        .connection_drain_timeout(Duration::MAX)
        .on_session_end(|_| pending::<()>())
        .build()
        .unwrap();
    sessions.note("early");
    let shutdown = tokio::spawn(sessions.shutdown_on(async {}));
    let s = sessions.clone();
    let finish = sessions.finish(async move {
        sleep(Duration::from_secs(1)).await;
        s.note("late");
        sleep(Duration::from_secs(5)).await;
    });
    let f = timeout(Duration::from_secs(100_000), finish).await;
    shutdown.await.unwrap();
    assert!(f.is_ok(), "the server is over, and `finish` waits for ever for the hook of a late birth");
}

#[tokio::test(start_paused = true)]
async fn g18_trailers_that_are_there_leave_after_the_close_too() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let layer = sessions.layer();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let script = Script::new([Step::Data("all of it"), Step::Trailers(trailers)], Hint::None);
    let host = service_fn(move |_: Request<()>| {
        let script = script.clone();
        async move { Ok::<_, Infallible>(http::Response::new(script)) }
    });
    let mut body = Box::pin(layer.layer(host).oneshot(Request::get("/").body(()).unwrap()).await.unwrap().into_body());
    assert!(body.frame().await.unwrap().is_ok());
    crate::support::stop(&sessions).await;
    assert!(body.frame().await.unwrap().is_ok(), "the trailers were there, and it is they that end a body");
}

#[tokio::test(start_paused = true)]
async fn g10_a_shutdown_future_that_is_dropped_after_its_signal_leaves_the_stop_bounded() {
    let (recorder, second) = (Recorder::default(), Duration::from_secs(1));
    let sessions = recorder.slow_builder(move |_| second).build().unwrap();
    sessions.note("a");
    let shutdown = sessions.shutdown_on(std::future::ready(EndReason::Restart));
    let server = async move {
        assert!(timeout(second / 2, shutdown).await.is_err());
        pending::<()>().await
    };
    let begun = Instant::now();
    let finished = timeout(Duration::from_secs(3600), sessions.finish(server)).await.unwrap();
    assert!(begun.elapsed() <= Duration::from_secs(12), "{:?}", begun.elapsed());
    assert!(finished.report.connections.timed_out && finished.report.sessions.is_clean(), "{}", finished.report);
    assert_eq!(recorder.ended(), ["a restart"]);
}
