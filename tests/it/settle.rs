//! Requests that are not over when the stop comes: settling, and refusing new sessions.

use std::{
    convert::Infallible,
    future::ready,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{Recorder, UnderWay, answer, ask, exchange};
use http::{Method, Request, Response, StatusCode};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};
use tower_session_end::{ActiveSessions, BuildError, EndReason, Phase, signal::ShutdownRequest};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn g09_idle_sessions_end_at_once_and_one_with_a_request_when_that_is_over() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().settle_timeout(SECOND).build().unwrap();
    for id in ["idle", "busy", "hung"] {
        sessions.note(id);
    }
    let busy = UnderWay::begin(&sessions.layer(), ask(&[("x-session-id", "busy")]));
    let _never = UnderWay::begin(&sessions.layer(), ask(&[("x-session-id", "hung")]));
    let begun = Instant::now();
    let drain = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.drain(EndReason::Shutdown).await }
    });
    tokio::time::sleep(SECOND / 4).await;
    assert_eq!(recorder.reasons(), [("idle".to_owned(), EndReason::Shutdown)]);
    assert!(sessions.contains("busy"), "it still works");
    drop(busy.answer(answer(200, &[])));
    tokio::time::sleep(SECOND / 4).await;
    assert_eq!(recorder.ends().len(), 2);
    assert!(sessions.contains("hung"));
    let report = drain.await.unwrap();
    assert_eq!((report.active, report.ended, report.late_starts), (3, 3, 0), "{report}");
    assert!(begun.elapsed() >= SECOND && begun.elapsed() < SECOND + SECOND / 10, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn g09_a_drain_does_not_wait_for_the_settle_time_once_all_have_settled() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().settle_timeout(SECOND).build().unwrap();
    sessions.note("idle");
    let begun = Instant::now();
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
    assert!(begun.elapsed() < SECOND / 10);
}

#[tokio::test(start_paused = true)]
async fn g09_a_session_settles_with_its_response_body_not_with_the_head() {
    use http_body_util::{BodyExt, Full};
    let recorder = Recorder::default();
    let sessions = recorder.builder().settle_timeout(SECOND).build().unwrap();
    sessions.note("a");
    let host =
        service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::from("all of it")))));
    let request = Request::post("/").header("x-session-id", "a").body(()).unwrap();
    let response = sessions.layer().layer(host).oneshot(request).await.unwrap();
    let drain = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.drain(EndReason::Shutdown).await }
    });
    tokio::time::sleep(SECOND / 4).await;
    assert!(sessions.contains("a"), "its body is not over");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "all of it");
    assert!(!sessions.contains("a"));
    assert!(drain.await.unwrap().is_clean());
}

#[test]
fn a_settle_time_longer_than_the_drain_is_an_error_with_both_numbers() {
    let error = ActiveSessions::builder().settle_timeout(3 * SECOND).build().unwrap_err();
    assert!(matches!(error, BuildError::SettleOverDrain { .. }));
    let text = error.to_string();
    assert!(text.contains("3s") && text.contains("2s"), "{text}");
    assert!(ActiveSessions::builder().settle_timeout(Duration::MAX).build().is_ok());
    let unlimited = ActiveSessions::builder().drain_timeout(Duration::MAX).settle_timeout(100 * SECOND);
    assert!(unlimited.build().is_ok());
    assert!(ActiveSessions::builder().max_sessions(0).build().is_err());
}

#[tokio::test(start_paused = true)]
async fn g08_new_sessions_are_refused_from_closing_on_and_probes_are_not() {
    let sessions = ActiveSessions::builder().lame_duck_timeout(SECOND).refuse_new_sessions(true).build().unwrap();
    sessions.note("a");
    let _never = UnderWay::begin(&sessions.layer(), ask(&[("x-session-id", "a")]));
    let called = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&called);
    let host = service_fn(move |request: Request<()>| {
        seen.lock().unwrap().push(request.method().clone());
        ready(Ok::<_, Infallible>(Response::new(String::new())))
    });
    let service = sessions.layer().layer(host);
    let status = async |method: Method| {
        let request = Request::builder().method(method).body(()).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status() == StatusCode::OK, response.headers().get("retry-after").is_none());
        response.status()
    };
    let stop = tokio::spawn(sessions.shutdown_on(ready(())));
    tokio::time::sleep(SECOND / 2).await;
    assert_eq!(sessions.phase(), Phase::LameDuck);
    assert_eq!(status(Method::POST).await, StatusCode::OK);
    stop.await.unwrap();
    assert_eq!(sessions.phase(), Phase::Closing);
    assert_eq!(status(Method::POST).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status(Method::GET).await, StatusCode::OK);
    assert_eq!(*called.lock().unwrap(), [Method::POST, Method::GET]);
}

#[tokio::test(start_paused = true)]
async fn g08_a_request_of_an_active_session_is_not_refused_while_it_settles() {
    let sessions = ActiveSessions::builder().settle_timeout(SECOND).refuse_new_sessions(true).build().unwrap();
    sessions.note("a");
    let _never = UnderWay::begin(&sessions.layer(), ask(&[("x-session-id", "a")]));
    let stop = tokio::spawn(sessions.shutdown_on(ready(ShutdownRequest::new(EndReason::Shutdown))));
    tokio::time::sleep(SECOND / 2).await;
    let layer = sessions.layer();
    let known = exchange(&layer, ask(&[("x-session-id", "a")]), answer(200, &[])).await;
    let unknown = exchange(&layer, ask(&[("x-session-id", "b")]), answer(200, &[])).await;
    assert_eq!((known.status(), unknown.status()), (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE));
    stop.await.unwrap();
}
