//! What the handle does by itself: settling, idle expiry, the cap, tombstones, keeping, refusing.

#[path = "support/recorder.rs"]
mod recorder;

use std::{
    convert::Infallible,
    future::{pending, ready},
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Method, Request, Response, StatusCode};
use recorder::Recorder;
use tokio::{sync::oneshot, time::Instant};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_session_end::{
    ActiveSessions, BuildError, EndReason, Phase, Session, SessionId, SessionLayer, SessionSignal, signal::Stop,
};

const SECOND: Duration = Duration::from_secs(1);

/// One exchange with a host that answers `response` once it may.
async fn exchange(
    layer: &SessionLayer,
    id: Option<&str>,
    response: http::response::Builder,
    hold: impl Future<Output = ()>,
) -> Response<()> {
    let mut response = Some(response.body(String::new()).unwrap());
    let host = service_fn(move |_: Request<()>| ready(Ok::<_, Infallible>(response.take().unwrap())));
    let mut request = Request::post("/");
    if let Some(id) = id {
        request = request.header("x-session-id", id);
    }
    let response = layer.layer(host).oneshot(request.body(()).unwrap());
    hold.await;
    response.await.unwrap().map(drop)
}

/// A head that carries the id.
fn echo(id: &str) -> http::response::Builder {
    Response::builder().header("x-session-id", id)
}

/// A request of `id` that the host does not answer before it is told to.
fn hold(sessions: &ActiveSessions, id: &str) -> (oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let (answer, answered) = oneshot::channel();
    let mut answered = Some(answered);
    let host = service_fn(move |_: Request<()>| {
        let answered = answered.take().unwrap();
        async move {
            let _ = answered.await;
            Ok::<_, Infallible>(Response::new(String::new()))
        }
    });
    let request = Request::post("/").header("x-session-id", id).body(()).unwrap();
    let mut service = sessions.layer().layer(host);
    // The call itself is what makes the session busy.
    let response = service.call(request);
    (answer, tokio::spawn(async move { drop(response.await) }))
}

#[tokio::test(start_paused = true)]
async fn g09_idle_sessions_end_at_once_and_one_with_a_request_when_that_is_over() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().settle_timeout(SECOND).build().unwrap();
    for id in ["idle", "busy", "hung"] {
        sessions.note(id);
    }
    let (answer, _busy) = hold(&sessions, "busy");
    let (_never, _hung) = hold(&sessions, "hung");
    let begun = Instant::now();
    let drain = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.drain(EndReason::Shutdown).await }
    });
    tokio::time::sleep(SECOND / 4).await;
    assert_eq!(recorder.reasons(), [("idle".to_owned(), EndReason::Shutdown)]);
    assert!(sessions.contains("busy"), "it still works");
    answer.send(()).unwrap();
    tokio::time::sleep(SECOND / 4).await;
    assert_eq!(recorder.ends().len(), 2);
    assert!(sessions.contains("hung"));
    let report = drain.await.unwrap();
    assert_eq!((report.active, report.ended, report.late_births), (3, 3, 0), "{report}");
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
async fn g13_the_silent_expire_and_the_active_do_not() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(60 * SECOND).build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    for id in ["silent", "chatty", "busy"] {
        sessions.note(id);
    }
    let guard = sessions.guard("guarded");
    let (_never, _busy) = hold(&sessions, "busy");
    let layer = sessions.layer();
    for _ in 0..20 {
        tokio::time::sleep(10 * SECOND).await;
        exchange(&layer, Some("chatty"), Response::builder(), ready(())).await;
    }
    assert_eq!(recorder.reasons(), [("silent".to_owned(), EndReason::Idle)]);
    drop(guard);
    tokio::time::sleep(70 * SECOND).await;
    let expected = [("chatty", EndReason::Idle), ("guarded", EndReason::Unknown), ("silent", EndReason::Idle)];
    assert_eq!(recorder.reasons(), expected.map(|(id, reason)| (id.to_owned(), reason)));
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn g13_a_session_expires_within_a_sixteenth_of_its_time() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(160 * SECOND).build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    tokio::time::sleep(33 * SECOND).await;
    sessions.note("a");
    tokio::time::sleep(159 * SECOND).await;
    assert!(recorder.ends().is_empty());
    tokio::time::sleep(12 * SECOND).await;
    assert_eq!(recorder.ends().len(), 1);
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn g13_without_a_driver_births_expire_the_silent_and_a_warning_says_so_once() {
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let _logging = capture(&warnings);
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(60 * SECOND).build().unwrap();
    sessions.note("silent");
    sessions.note("chatty");
    let layer = sessions.layer();
    for n in 0..20 {
        tokio::time::sleep(10 * SECOND).await;
        exchange(&layer, Some("chatty"), Response::builder(), ready(())).await;
        sessions.note(format!("newcomer{n}"));
    }
    assert!(!sessions.contains("silent") && !sessions.contains("newcomer0"));
    assert!(sessions.contains("chatty") && sessions.contains("newcomer19"));
    assert_eq!(*warnings.lock().unwrap(), ["session-expiry-undriven"]);
}

/// Collects the names of warnings.
fn capture(names: &Arc<Mutex<Vec<String>>>) -> tracing::subscriber::DefaultGuard {
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
    struct Names(Arc<Mutex<Vec<String>>>);
    impl<S: tracing::Subscriber> Layer<S> for Names {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            if *event.metadata().level() == tracing::Level::WARN {
                self.0.lock().unwrap().push(event.metadata().name().to_owned());
            }
        }
    }
    tracing::subscriber::set_default(tracing_subscriber::registry().with(Names(Arc::clone(names))))
}

#[tokio::test(start_paused = true)]
async fn one_of_two_drivers_drives_and_the_other_takes_over() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(10 * SECOND).build().unwrap();
    let first = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    let second = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    sessions.note("a");
    tokio::time::sleep(15 * SECOND).await;
    assert_eq!(recorder.ends().len(), 1);
    first.abort();
    sessions.note("b");
    tokio::time::sleep(15 * SECOND).await;
    assert_eq!(recorder.ends().len(), 2);
    second.abort();
}

#[tokio::test(start_paused = true)]
async fn g12_an_idle_ended_id_that_is_used_again_gets_an_end_at_the_stop() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(10 * SECOND).build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    sessions.note("a");
    tokio::time::sleep(15 * SECOND).await;
    assert!(sessions.is_empty());
    exchange(&sessions.layer(), Some("a"), echo("a"), ready(())).await;
    assert!(sessions.contains("a"));
    driver.abort();
    let _ = sessions.drain(EndReason::Shutdown).await;
    let reasons: Vec<_> = recorder.ends().iter().map(|end| end.reason).collect();
    assert_eq!(reasons, [EndReason::Idle, EndReason::Shutdown]);
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn g12_an_echo_after_a_declared_end_revives_nothing_for_30_s() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let layer = sessions.layer();
    sessions.note("ended");
    sessions.note("forgotten");
    sessions.note("compacted");
    sessions.end("ended", EndReason::Deleted);
    sessions.forget("forgotten");
    sessions.compact("compacted", "successor");
    for id in ["ended", "forgotten", "compacted"] {
        // With and without the id in the request.
        exchange(&layer, Some(id), echo(id), ready(())).await;
        exchange(&layer, None, echo(id), ready(())).await;
        assert!(!sessions.contains(id), "{id}");
    }
    // The host's own word overrides.
    sessions.note("ended");
    assert!(sessions.contains("ended"));
    let host = service_fn(|_: Request<()>| {
        let mut response = Response::new(String::new());
        SessionSignal::started("forgotten").attach(&mut response);
        ready(Ok::<_, Infallible>(response))
    });
    layer.layer(host).oneshot(Request::new(())).await.unwrap();
    assert!(sessions.contains("forgotten"));
    // And so does time.
    tokio::time::sleep(31 * SECOND).await;
    sessions.note("somebody"); // moves nothing but the clock
    exchange(&layer, Some("compacted"), echo("compacted"), ready(())).await;
    assert!(sessions.contains("compacted"));
}

#[tokio::test(start_paused = true)]
async fn g12_an_echo_during_the_drain_revives_nothing_after_100_000_ends() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    for n in 0..100_000 {
        sessions.note(format!("s{n}"));
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.ended, 100_000);
    let layer = sessions.layer();
    for n in (0..100_000).step_by(997) {
        let id = format!("s{n}");
        exchange(&layer, Some(&id), echo(&id), ready(())).await;
    }
    assert_eq!(sessions.drain(EndReason::Shutdown).await.total(), 0);
    assert_eq!(recorder.ends().len(), 100_000);
}

#[tokio::test(start_paused = true)]
async fn g08_a_late_birth_that_is_said_twice_in_one_response_is_one_session() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let _ = sessions.drain(EndReason::Shutdown).await;
    let handle = sessions.clone();
    let host = service_fn(move |request: Request<()>| {
        let mut response = Response::new(String::new());
        let id = request.uri().path()[1..].to_owned();
        match id.as_str() {
            "noted" => drop(handle.note("noted")),
            "guarded" => drop(handle.guard("guarded")),
            "signalled" => SessionSignal::started("signalled").attach(&mut response),
            _ => {
                let old = SessionId::new("old").unwrap();
                response.headers_mut().insert("x-session-compacted-from", "old".parse().unwrap());
                SessionSignal::compacted(old, "compacted").attach(&mut response);
            }
        }
        response.headers_mut().insert("x-session-id", id.parse().unwrap());
        ready(Ok::<_, Infallible>(response))
    });
    let service = sessions.layer().layer(host);
    for path in ["/noted", "/guarded", "/signalled", "/compacted"] {
        service.clone().oneshot(Request::get(path).body(()).unwrap()).await.unwrap();
    }
    let _ = sessions.drain(EndReason::Shutdown).await;
    let ids: Vec<_> = recorder.reasons().into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["compacted", "guarded", "noted", "signalled"]);
}

#[tokio::test(start_paused = true)]
async fn g13_the_cap_evicts_the_longest_idle_but_nobody_who_is_busy() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().max_sessions(10).build().unwrap();
    let _guard = sessions.guard("guarded");
    sessions.note("busy");
    let (_never, _busy) = hold(&sessions, "busy");
    for n in 0..10 {
        tokio::time::sleep(SECOND).await;
        sessions.note(format!("s{n}"));
    }
    // Heard of again: no longer the longest idle.
    tokio::time::sleep(SECOND).await;
    sessions.note("s10");
    exchange(&sessions.layer(), Some("s4"), Response::builder(), ready(())).await;
    tokio::time::sleep(SECOND).await;
    sessions.note("s11");
    tokio::time::sleep(SECOND).await;
    sessions.note("s12");
    tokio::time::sleep(SECOND / 10).await;
    let evicted: Vec<_> = ["s0", "s1", "s2", "s3", "s5"].map(|id| (id.to_owned(), EndReason::Evicted)).to_vec();
    assert_eq!(recorder.reasons(), evicted);
    assert_eq!(sessions.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn g13_where_all_are_busy_the_cap_gives_way_with_one_warning() {
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let _logging = capture(&warnings);
    let sessions = ActiveSessions::builder().max_sessions(2).build().unwrap();
    let _guards: Vec<_> = (0..5).map(|n| sessions.guard(format!("s{n}"))).collect();
    assert_eq!(sessions.len(), 5);
    assert_eq!(*warnings.lock().unwrap(), ["session-cap-exceeded"]);
}

#[tokio::test]
async fn g13_a_million_births_against_a_cap_of_1000_end_each_evicted_session_once() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let ends = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&ends);
    let sessions = ActiveSessions::builder()
        .max_sessions(1000)
        .on_session_end(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            ready(())
        })
        .build()
        .unwrap();
    let births = std::env::var("BIRTHS").ok().and_then(|births| births.parse().ok()).unwrap_or(100_000_u64);
    for n in 0..births {
        sessions.note(format!("session-{n}"));
        if n % 1000 == 0 {
            assert!(sessions.len() <= 1000);
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(sessions.len(), 1000);
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.active, 1000);
    assert!(report.is_clean(), "{report}");
    assert_eq!(ends.load(Ordering::Relaxed), births);
}

#[tokio::test(start_paused = true)]
async fn g14_what_is_kept_is_forgotten_without_an_end_and_reported() {
    let recorder = Recorder::default();
    let sessions = recorder
        .builder()
        .keep_if(|session, reason| {
            assert!(session.id != "panics", "a `keep_if` with a fault");
            reason.is_detach() && session.session_file.is_some()
        })
        .build()
        .unwrap();
    sessions.note(Session::from("kept").with_session_file("a.jsonl"));
    sessions.note("ended");
    sessions.note("panics");
    // An ordinary end asks nobody.
    sessions.note(Session::from("deleted").with_session_file("b.jsonl"));
    sessions.end("deleted", EndReason::Deleted);
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.active, report.kept, report.ended), (3, 1, 3), "{report}");
    assert!(report.is_clean());
    // Those born late are asked about too.
    sessions.note(Session::from("late-kept").with_session_file("c.jsonl"));
    sessions.note("late-ended");
    sessions.compact("nobody", Session::from("late-compacted").with_session_file("d.jsonl"));
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(recorder.reasons().len(), 4, "{report}");
    assert!(sessions.is_empty());
}

#[tokio::test(start_paused = true)]
async fn g08_new_sessions_are_refused_from_closing_on_and_probes_are_not() {
    let sessions = ActiveSessions::builder().lame_duck(SECOND).refuse_new_sessions(true).build().unwrap();
    sessions.note("a");
    let (_never, _busy) = hold(&sessions, "a");
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
    let (_never, _busy) = hold(&sessions, "a");
    let stop = tokio::spawn(sessions.shutdown_on(ready(Stop::new(EndReason::Shutdown))));
    tokio::time::sleep(SECOND / 2).await;
    let layer = sessions.layer();
    let known = exchange(&layer, Some("a"), Response::builder(), ready(())).await;
    let unknown = exchange(&layer, Some("b"), Response::builder(), ready(())).await;
    assert_eq!((known.status(), unknown.status()), (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE));
    stop.await.unwrap();
}

#[tokio::test]
async fn a_successor_without_details_takes_over_those_of_the_old_session() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions
        .note(Session::from("old").with_key("chat").with_session_file("old.jsonl").with_attribute("tenant", "acme"));
    let compacted = Response::builder().header("x-session-id", "new").header("x-session-compacted-from", "old");
    exchange(&sessions.layer(), Some("old"), compacted, ready(())).await;
    let new = sessions.get("new").unwrap();
    assert_eq!((new.key.as_deref(), new.session_file), (Some("chat"), None));
    assert_eq!(new.attributes["tenant"], "acme");
}
