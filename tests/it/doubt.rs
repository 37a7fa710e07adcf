//! G20: only those who may say so end a session. Hosts that bind sessions to their owners, over real sockets.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Method, Request, Response, StatusCode, header::CONTENT_TYPE},
    routing::any,
};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use tower_session_end::{ActiveSessions, EndReason, McpProtocol, SessionUpdate};

use crate::support::{Recorder, Running, UnderWay, answer, ask, h1_client, say, serve, within};

const ID: &str = "mcp-session-id";
const SECOND: Duration = Duration::from_secs(1);

/// An MCP host. Each session belongs to the user that has started it; others get the 404 of an unknown id.
#[derive(Clone, Default)]
struct Host {
    owners: Arc<Mutex<HashMap<String, String>>>,
    started: Arc<AtomicU64>,
}

async fn mcp(State(host): State<Host>, method: Method, headers: HeaderMap) -> Response<Body> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let (user, id) = (text("authorization"), text(ID));
    let respond = |status: StatusCode| Response::builder().status(status);
    if let Ok(status) = text("x-refuse-with").parse::<u16>() {
        return respond(StatusCode::from_u16(status).unwrap()).body(Body::empty()).unwrap();
    }
    if id.is_empty() {
        let id = format!("session-{}", host.started.fetch_add(1, Ordering::SeqCst));
        host.owners.lock().unwrap().insert(id.clone(), user);
        return respond(StatusCode::OK).header(ID, id).body(Body::from("{}")).unwrap();
    }
    if host.owners.lock().unwrap().get(&id) != Some(&user) {
        return respond(StatusCode::NOT_FOUND).body(Body::from("no such session")).unwrap();
    }
    match method {
        Method::DELETE => {
            host.owners.lock().unwrap().remove(&id);
            respond(StatusCode::NO_CONTENT).body(Body::empty()).unwrap()
        }
        Method::GET => {
            let events = futures_util::stream::iter([Ok::<_, std::convert::Infallible>("data: hello\n\n")]);
            let events = events.chain(futures_util::stream::pending());
            let response = respond(StatusCode::OK).header(CONTENT_TYPE, "text/event-stream");
            response.body(Body::from_stream(events)).unwrap()
        }
        _ => respond(StatusCode::OK).body(Body::from("{}")).unwrap(),
    }
}

struct Gateway {
    sessions: ActiveSessions,
    recorder: Recorder,
    server: Running,
    host: Host,
}

impl Gateway {
    async fn start(doubt_timeout: Duration) -> Self {
        let (recorder, host) = (Recorder::default(), Host::default());
        let sessions = recorder.builder().doubt_timeout(doubt_timeout).build().unwrap();
        let app = Router::new().route("/mcp", any(mcp)).with_state(host.clone());
        let server = serve(&sessions, app.layer(sessions.layer_with(McpProtocol::new()))).await;
        Self { sessions, recorder, server, host }
    }

    async fn send(&self, user: &str, method: &str, headers: &[(&str, &str)]) -> Response<hyper::body::Incoming> {
        let mut request = Request::builder().method(method).uri(format!("http://{}/mcp", self.server.addr));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.header("authorization", user).body(Body::empty()).unwrap();
        within("a response", h1_client().request(request)).await.unwrap()
    }

    async fn status(&self, user: &str, method: &str, headers: &[(&str, &str)]) -> u16 {
        let response = self.send(user, method, headers).await;
        let status = response.status().as_u16();
        within("a body", response.into_body().collect()).await.unwrap();
        status
    }

    /// Starts a session of this user, and returns its id.
    async fn start_session(&self, user: &str) -> String {
        self.send(user, "POST", &[]).await.headers()[ID].to_str().unwrap().to_owned()
    }

    async fn until_ended(&self, ends: usize) {
        within("the ends", async {
            while self.recorder.ends().len() < ends {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn g20_a_strangers_404_ends_nobody_and_cuts_no_stream() {
    let gateway = Gateway::start(SECOND * 3 / 2).await;
    let ann = gateway.start_session("ann").await;
    let mut stream = gateway.send("ann", "GET", &[(ID, &ann)]).await.into_body();
    within("the first event", stream.frame()).await.unwrap().unwrap();
    for method in ["POST", "DELETE", "GET"] {
        assert_eq!(gateway.status("bob", method, &[(ID, &ann)]).await, 404, "{method}");
        assert!(gateway.sessions.contains(&ann), "{method}");
    }
    // Longer than the doubt: the open stream is a sign of life, which the host would have ended.
    tokio::time::sleep(2 * SECOND).await;
    assert!(gateway.sessions.contains(&ann));
    assert!(futures_util::FutureExt::now_or_never(stream.frame()).is_none(), "the stream is open");
    drop(stream);
    // Bob goes on, and so does ann, for longer than the doubt.
    for _ in 0..20 {
        assert_eq!(gateway.status("bob", "POST", &[(ID, &ann)]).await, 404);
        assert_eq!(gateway.status("ann", "POST", &[(ID, &ann)]).await, 200);
        tokio::time::sleep(SECOND / 10).await;
    }
    assert!(gateway.sessions.contains(&ann) && gateway.recorder.ends().is_empty());
    assert_eq!(gateway.status("ann", "DELETE", &[(ID, &ann)]).await, 204);
    assert_eq!(gateway.status("bob", "POST", &[(ID, &ann)]).await, 404);
    gateway.until_ended(1).await;
    let report = gateway.server.shut_down().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(gateway.recorder.ended(), [format!("{ann} deleted")]);
}

#[tokio::test]
async fn g20_a_refusal_that_says_nothing_of_the_session_casts_no_doubt() {
    let gateway = Gateway::start(Duration::from_millis(50)).await;
    let ann = gateway.start_session("ann").await;
    for status in ["400", "401", "403", "405", "409", "429", "500", "503"] {
        for method in ["POST", "DELETE", "GET"] {
            let headers = [(ID, ann.as_str()), ("x-refuse-with", status)];
            assert_eq!(gateway.status("bob", method, &headers).await.to_string(), status);
        }
    }
    tokio::time::sleep(SECOND / 5).await;
    assert!(gateway.sessions.contains(&ann));
    let _ = gateway.server.shut_down().await;
    assert_eq!(gateway.recorder.ended(), [format!("{ann} shutdown")]);
}

#[tokio::test]
async fn g20_a_session_that_its_host_has_lost_ends_after_the_doubt() {
    let gateway = Gateway::start(Duration::from_millis(100)).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(gateway.start_session("ann").await);
    }
    // The host forgets its sessions, and says so to the owner.
    gateway.host.owners.lock().unwrap().clear();
    for (id, method, status) in [(&ids[0], "POST", "404"), (&ids[1], "DELETE", "404"), (&ids[2], "GET", "410")] {
        let refused = [(ID, id.as_str()), ("x-refuse-with", status)];
        assert_eq!(gateway.status("ann", method, &refused).await.to_string(), status);
    }
    gateway.until_ended(3).await;
    assert!(gateway.sessions.is_empty());
    let _ = gateway.server.shut_down().await;
    let mut expected: Vec<_> = ids.iter().map(|id| format!("{id} unknown")).collect();
    expected.sort();
    assert_eq!(gateway.recorder.ended(), expected);
}

#[tokio::test(start_paused = true)]
async fn g20_doubt_lasts_60_s_from_the_first_refusal_and_any_sign_of_life_takes_it_back() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let layer = sessions.layer_with(McpProtocol::new());
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    let refuse = async |id: &str| {
        UnderWay::begin(&layer, ask(&[(ID, id)])).answer(answer(404, &[]));
    };
    let ids = ["silent", "served", "noted", "guarded", "working", "in_flight", "switched"];
    ids.iter().for_each(|id| drop(sessions.note(*id)));
    for id in ids {
        refuse(id).await;
    }
    tokio::time::sleep(30 * SECOND).await;
    // A further refusal does not prolong it.
    refuse("silent").await;
    say(&layer, &[(ID, "served")], &[]).await;
    sessions.note("noted");
    let guard = sessions.guard("guarded").unwrap();
    let work = sessions.work("working").unwrap();
    let in_flight = UnderWay::begin(&layer, ask(&[(ID, "in_flight")]));
    UnderWay::begin(&layer, ask(&[(ID, "switched")])).answer(answer(101, &[]));
    tokio::time::sleep(29 * SECOND).await;
    assert_eq!(sessions.len(), ids.len());
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(recorder.ended(), ["silent unknown"]);
    drop(work);
    in_flight.answer(answer(500, &[]));
    // What is trusted again stays, and can be doubted again.
    tokio::time::sleep(3600 * SECOND).await;
    assert_eq!(sessions.len(), ids.len() - 1);
    refuse("served").await;
    tokio::time::sleep(61 * SECOND).await;
    assert_eq!(recorder.ended(), ["served unknown", "silent unknown"]);
    drop(guard);
    driver.abort();
    let ended = recorder.ended_after_drain(&sessions).await;
    assert_eq!(ended.len(), ids.len());
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn g20_a_late_refusal_of_one_generation_casts_no_doubt_on_the_next() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let layer = sessions.layer_with(McpProtocol::new());
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    sessions.note("a");
    let late = UnderWay::begin(&layer, ask(&[(ID, "a")]));
    sessions.end("a", EndReason::Reset);
    sessions.note("a");
    late.answer(answer(404, &[]));
    tokio::time::sleep(100 * SECOND).await;
    driver.abort();
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a reset", "a shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g20_a_handler_can_cast_doubt_and_a_success_of_any_layer_takes_it_back() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().doubt_timeout(10 * SECOND).build().unwrap();
    let layer = sessions.layer();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    for id in ["lost", "found", "elsewhere"] {
        sessions.note(id);
        let carried = if id == "elsewhere" { vec![] } else { vec![("x-session-id", id)] };
        let mut refusal = answer(404, &[]);
        SessionUpdate::doubted(id).insert_into(&mut refusal);
        UnderWay::begin(&layer, ask(&carried)).answer(refusal);
    }
    say(&layer, &[("x-session-id", "found")], &[]).await;
    assert_eq!(sessions.len(), 3);
    tokio::time::sleep(11 * SECOND).await;
    driver.abort();
    let ended = recorder.ended_after_drain(&sessions).await;
    assert_eq!(ended, ["elsewhere unknown", "found shutdown", "lost unknown"]);
}

#[tokio::test(start_paused = true)]
async fn g20_doubt_without_a_driver_is_resolved_when_another_session_starts() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().doubt_timeout(SECOND).build().unwrap();
    let layer = sessions.layer_with(McpProtocol::new());
    sessions.note("a");
    UnderWay::begin(&layer, ask(&[(ID, "a")])).answer(answer(410, &[]));
    tokio::time::sleep(2 * SECOND).await;
    assert!(sessions.contains("a"));
    sessions.note("b");
    assert!(!sessions.contains("a"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a unknown", "b shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g20_a_shutdown_ends_a_doubted_session_with_its_own_reason_and_no_doubt_with_an_endless_timeout() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().doubt_timeout(Duration::MAX).build().unwrap();
    let layer = sessions.layer_with(McpProtocol::new());
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    sessions.note("a");
    UnderWay::begin(&layer, ask(&[(ID, "a")])).answer(answer(404, &[]));
    tokio::time::sleep(100_000 * SECOND).await;
    driver.abort();
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
    assert!(ActiveSessions::builder().doubt_timeout(Duration::ZERO).build().is_err());
}

#[tokio::test(start_paused = true)]
async fn g20_a_success_starts_a_session_anew_that_has_ended_because_of_a_doubt() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let layer = sessions.layer_with(McpProtocol::new());
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    for id in ["silent", "deleted"] {
        sessions.note(id);
        UnderWay::begin(&layer, ask(&[(ID, id)])).answer(answer(404, &[]));
    }
    sessions.end("deleted", EndReason::Deleted);
    tokio::time::sleep(90 * SECOND).await;
    assert!(sessions.is_empty());
    // The owner was only silent. Its next answer has no id, as is usual.
    for (id, is_known) in [("silent", true), ("deleted", false), ("unknown", false)] {
        UnderWay::begin(&layer, ask(&[(ID, id)])).answer(answer(404, &[]));
        assert!(!sessions.contains(id), "{id}");
        say(&layer, &[(ID, id)], &[]).await;
        assert_eq!(sessions.contains(id), is_known, "{id}");
    }
    driver.abort();
    let ended = recorder.ended_after_drain(&sessions).await;
    assert_eq!(ended, ["deleted deleted", "silent shutdown", "silent unknown"]);
}

#[tokio::test(start_paused = true)]
async fn g20_a_doubt_that_is_cast_again_counts_from_then_and_no_timeout_is_too_long() {
    for timeout in [10 * SECOND, Duration::from_secs(u64::MAX)] {
        let recorder = Recorder::default();
        let sessions = recorder.builder().doubt_timeout(timeout).build().unwrap();
        let layer = sessions.layer_with(McpProtocol::new());
        let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
        sessions.note("a");
        for _ in 0..1000 {
            UnderWay::begin(&layer, ask(&[(ID, "a")])).answer(answer(404, &[]));
            tokio::time::sleep(Duration::from_millis(9)).await;
            say(&layer, &[(ID, "a")], &[]).await;
        }
        UnderWay::begin(&layer, ask(&[(ID, "a")])).answer(answer(404, &[]));
        tokio::time::sleep(9 * SECOND).await;
        assert!(sessions.contains("a"));
        tokio::time::sleep(2 * SECOND).await;
        assert_eq!(sessions.contains("a"), timeout > 10 * SECOND);
        driver.abort();
    }
}
