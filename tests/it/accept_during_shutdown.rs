//! Over real sockets: clients that go away, and sessions that are born while the server stops.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::support::{Hint, Raw, Recorder, Script, Step, h1_client, h2_client, serve, within};
use axum::{
    Router,
    body::Body,
    routing::{delete, get, post},
};
use http::{HeaderName, Request, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, mpsc};
use tower_session_end::{ActiveSessions, EndReason, SessionEnd};

const ID: HeaderName = HeaderName::from_static("x-session-id");

/// An end hook that says when it was called, and is over when it is let go.
#[derive(Clone)]
struct SlowHook {
    over: Arc<Mutex<Vec<String>>>,
    gate: Arc<Semaphore>,
}

impl SlowHook {
    /// A handle with this hook, and where it says which session's hook was called.
    fn sessions() -> (Self, ActiveSessions, mpsc::UnboundedReceiver<String>) {
        let hook = Self { over: Arc::default(), gate: Arc::new(Semaphore::new(0)) };
        let (called, calls) = mpsc::unbounded_channel();
        let this = hook.clone();
        let sessions = ActiveSessions::builder()
            .drain_timeout(Duration::from_secs(10))
            .on_session_end(move |end: SessionEnd| {
                let (this, called) = (this.clone(), called.clone());
                async move {
                    called.send(end.session.id.to_string()).unwrap();
                    this.gate.acquire().await.unwrap().forget();
                    this.over.lock().unwrap().push(format!("{} {}", end.session.id, end.reason));
                }
            })
            .build()
            .unwrap();
        (hook, sessions, calls)
    }

    fn let_go(&self) {
        self.gate.add_permits(1000);
    }

    fn over(&self) -> Vec<String> {
        let mut over = self.over.lock().unwrap().clone();
        over.sort();
        over
    }
}

/// Says so when it is dropped.
struct Dropped(mpsc::UnboundedSender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tokio::test]
async fn g05_client_disconnect_during_delete_loses_nothing() {
    let (hook, sessions, mut calls) = SlowHook::sessions();
    sessions.note("a");
    let (dropped, mut drops) = mpsc::unbounded_channel();
    // The end is fired, and then the handler has something else to wait for.
    let handler = async move |sessions: ActiveSessions| {
        let _dropped = Dropped(dropped.clone());
        sessions.end("a", EndReason::Deleted);
        std::future::pending::<()>().await;
    };
    let server = serve(&sessions, Router::new().route("/", delete(handler)).layer(sessions.layer())).await;
    let mut client = Raw::connect(server.addr).await;
    client.write("DELETE / HTTP/1.1\r\nhost: x\r\nx-session-id: a\r\n\r\n").await;
    assert_eq!(within("the hook's call", calls.recv()).await.as_deref(), Some("a"));
    drop(client);
    within("the drop of the handler", drops.recv()).await;
    assert!(hook.over().is_empty(), "it was slow");
    hook.let_go();
    let report = server.shut_down().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(hook.over(), ["a deleted"]);
}

#[tokio::test]
async fn g05_a_client_that_leaves_after_the_head_of_a_delete_loses_nothing() {
    let (hook, sessions, mut calls) = SlowHook::sessions();
    sessions.note("a");
    let handler = async || [("x-session-end", "deleted")];
    let mut server = serve(&sessions, Router::new().route("/", delete(handler)).layer(sessions.layer())).await;
    let mut client = Raw::connect(server.addr).await;
    client.write("DELETE / HTTP/1.1\r\nhost: x\r\nx-session-id: a\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 "), "the response does not wait for the hook");
    drop(client);
    assert_eq!(within("the hook's call", calls.recv()).await.as_deref(), Some("a"));
    assert!(hook.over().is_empty());
    // The signal comes while the hook runs: the drain awaits it.
    server.signal();
    within("the drain's begin", sessions.closing()).await;
    hook.let_go();
    let report = server.report().await;
    assert_eq!((report.drain.already_ending, report.drain.ended, report.sessions.ended), (1, 1, 1), "{report}");
    assert_eq!(hook.over(), ["a deleted"]);
}

#[tokio::test]
async fn g08_a_session_born_while_the_drain_runs_gets_its_end() {
    for http2 in [false, true] {
        let (hook, sessions, mut calls) = SlowHook::sessions();
        sessions.note("early");
        let handler = async || [(ID, "late")];
        let mut server = serve(&sessions, Router::new().route("/", post(handler)).layer(sessions.layer())).await;
        server.signal();
        // The drain waits for the hook of the early one; the server still accepts.
        assert_eq!(within("the hook of the early one", calls.recv()).await.as_deref(), Some("early"));
        let client = if http2 { h2_client() } else { h1_client() };
        let request = Request::post(format!("http://{}/", server.addr)).body(Body::empty()).unwrap();
        let response = within("a response", client.request(request)).await.unwrap();
        assert_eq!((response.status(), response.headers()[ID].as_bytes()), (StatusCode::OK, &b"late"[..]));
        assert_eq!(within("the hook of the late one", calls.recv()).await.as_deref(), Some("late"));
        hook.let_go();
        let report = server.report().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.drain.active, report.drain.late_starts, report.drain.ended), (1, 1, 2), "{report}");
        assert_eq!(hook.over(), ["early shutdown", "late shutdown"]);
    }
}

#[tokio::test]
async fn g08_a_session_born_while_the_connections_drain_gets_its_end() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("early");
    let (gate, asked) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (opens, reached) = (Arc::clone(&gate), Arc::clone(&asked));
    let handler = move || {
        let (opens, reached) = (Arc::clone(&opens), Arc::clone(&reached));
        async move {
            reached.add_permits(1);
            opens.acquire().await.unwrap().forget();
            [(ID, "late")]
        }
    };
    let mut server = serve(&sessions, Router::new().route("/", post(handler)).layer(sessions.layer())).await;
    let mut client = Raw::connect(server.addr).await;
    client.write("POST / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    within("the handler", asked.acquire()).await.unwrap().forget();
    server.signal();
    server.drained().await;
    assert_eq!(recorder.ended(), ["early shutdown"]);
    gate.add_permits(1);
    assert!(client.head().await.contains("x-session-id: late"));
    let report = server.report().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.drain.ended, report.drain.late_starts), (1, 0), "{report}");
    assert_eq!((report.sessions.ended, report.sessions.late_starts), (2, 1), "{report}");
    assert_eq!(recorder.ended(), ["early shutdown", "late shutdown"]);
}

/// A handle whose connections may take `millis`.
fn hasty(millis: u64) -> (Recorder, ActiveSessions) {
    let recorder = Recorder::default();
    let builder = ActiveSessions::builder().connection_drain_timeout(Duration::from_millis(millis));
    (recorder.clone(), recorder.hooks(builder).build().unwrap())
}

#[tokio::test]
async fn g08_a_request_that_is_not_answered_by_the_deadline_gets_503_on_the_wire() {
    let (recorder, sessions) = hasty(600);
    let asked = Arc::new(Semaphore::new(0));
    let reached = Arc::clone(&asked);
    let handler = move || {
        reached.add_permits(1);
        std::future::pending::<[(HeaderName, &str); 1]>()
    };
    let mut server = serve(&sessions, Router::new().route("/", post(handler)).layer(sessions.layer())).await;
    let addr = server.addr;
    let mut client = Raw::connect(addr).await;
    client.write("POST / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let h2 = tokio::spawn(async move {
        let request = Request::post(format!("http://{addr}/")).body(Body::empty()).unwrap();
        h2_client().request(request).await
    });
    within("the handler", asked.acquire_many(2)).await.unwrap().forget();
    let begun = Instant::now();
    server.signal();
    let answer = String::from_utf8(client.rest().await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("connection: close\r\n"), "{answer}");
    let response = within("an answer over HTTP/2", h2).await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let report = server.report().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(report.connections.timed_out && !report.is_clean());
    assert_eq!(report.connections.open_responses, 2, "{report}");
    assert!(recorder.started().is_empty() && recorder.ended().is_empty());
}

#[tokio::test]
async fn g10_an_open_body_at_the_deadline_ends_with_an_error_on_the_wire() {
    let (recorder, sessions) = hasty(600);
    let open = || Script::new([Step::Data("some"), Step::Hang], Hint::None);
    let handler = async move || ([(ID, "a")], Body::new(open()));
    let mut server = serve(&sessions, Router::new().route("/", get(handler)).layer(sessions.layer())).await;
    let (h1, h2) = (h1_client(), h2_client());
    let mut bodies = Vec::new();
    for client in [&h1, &h2] {
        let request = Request::get(format!("http://{}/", server.addr)).body(Body::empty()).unwrap();
        let mut body = within("a head", client.request(request)).await.unwrap().into_body();
        assert_eq!(within("a frame", body.frame()).await.unwrap().unwrap().into_data().unwrap(), "some");
        bodies.push(body);
    }
    server.signal();
    for mut body in bodies {
        let next = within("the end of a body", body.frame()).await;
        assert!(matches!(next, Some(Err(_))), "a client must not take it for complete: {next:?}");
    }
    let report = server.report().await;
    assert!(report.connections.timed_out, "{report}");
    assert_eq!(report.connections.open_responses, 2, "{report}");
    assert!(report.sessions.is_clean(), "{report}");
    assert_eq!(recorder.ended(), ["a shutdown"]);
}
