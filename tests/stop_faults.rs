//! Faults and corners of the stop that once were holes.

mod support;

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Request;
use http_body_util::BodyExt;
use support::{Hint, Recorder, Script, Step, UnderWay, ask, assert_sum};
use tokio::time::{Instant, sleep, timeout};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_session_end::{ActiveSessions, EndReason, SessionEnd, signal::ShutdownRequest};

#[tokio::test(start_paused = true)]
async fn g11_a_second_signal_reaches_the_server_that_is_left() {
    let (late_over, wait) = tokio::sync::oneshot::channel::<()>();
    let wait = Arc::new(Mutex::new(Some(wait)));
    let sessions = ActiveSessions::builder()
        .connection_drain_timeout(Duration::from_secs(1000))
        .on_session_end(move |end: SessionEnd| {
            let wait = (end.session.id == "late").then(|| wait.lock().unwrap().take()).flatten();
            async move {
                if let Some(wait) = wait {
                    let _ = wait.await;
                }
            }
        })
        .build()
        .unwrap();
    let (again, cut) = tokio::sync::oneshot::channel::<()>();
    let (end_a, a) = tokio::sync::oneshot::channel::<()>();
    let a = tokio::spawn(sessions.finish(async move {
        let _ = a.await;
    }));
    let b = tokio::spawn(sessions.finish(pending::<()>()));
    sessions
        .shutdown_on(async {
            ShutdownRequest::new(EndReason::Shutdown).forced_by(async {
                let _ = cut.await;
            })
        })
        .await;
    sleep(Duration::from_secs(1)).await;
    sessions.note("late"); // its hook holds A's `finish`
    sleep(Duration::from_secs(1)).await;
    end_a.send(()).unwrap();
    sleep(Duration::from_secs(1)).await;
    sessions.note("later"); // A looks again
    sleep(Duration::from_secs(1)).await;
    late_over.send(()).unwrap();
    let _ = a.await.unwrap();
    again.send(()).unwrap();
    let begun = Instant::now();
    let _b = b.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "the second signal reached nobody: {:?}", begun.elapsed());
}

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
async fn the_sum_holds_when_the_lame_duck_is_cut() {
    let sessions = ActiveSessions::builder()
        .lame_duck_timeout(Duration::from_secs(5))
        .on_session_end(|_| async {})
        .build()
        .unwrap();
    sessions.note("a");
    let (end_b, b) = tokio::sync::oneshot::channel::<()>();
    let fa = sessions.finish(pending::<()>());
    let fb = sessions.finish(async move {
        let _ = b.await;
        sleep(Duration::from_secs(1)).await;
    });
    let shutdown = tokio::spawn(
        sessions
            .shutdown_on(async { ShutdownRequest::new(EndReason::Shutdown).forced_by(sleep(Duration::from_secs(1))) }),
    );
    let a = fa.await;
    end_b.send(()).ok();
    assert_sum(&a.report.sessions);
    let _ = fb.await;
    shutdown.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_sum_holds_when_the_settling_is_cut() {
    let sessions =
        ActiveSessions::builder().settle_timeout(Duration::from_secs(2)).on_session_end(|_| async {}).build().unwrap();
    let layer = sessions.layer();
    sessions.note("a");
    let _under_way = UnderWay::begin(&layer, ask(&[("x-session-id", "a")]));
    let (fa, fb) = (sessions.finish(pending::<()>()), sessions.finish(pending::<()>()));
    let shutdown = tokio::spawn(
        sessions
            .shutdown_on(async { ShutdownRequest::new(EndReason::Shutdown).forced_by(sleep(Duration::from_secs(1))) }),
    );
    let a = fa.await;
    let _ = fb.await;
    shutdown.await.unwrap();
    assert_sum(&a.report.sessions);
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
    support::stop(&sessions).await;
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
