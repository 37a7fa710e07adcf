//! Clients that mean harm, over real sockets: what they can say, how slowly they can say it, and how often.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::support::{Raw, Recorder, Running, assert_sum, h2_client, serve, within};
use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use futures_util::StreamExt;
use http::{Request, StatusCode};
use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, EndReason, HeaderProtocol, SessionId, SessionLayer};

const ID: &str = "x-session-id";

/// The gateway. It makes up its ids, but for `/reflect`, which believes what it is told; and it lets a client delete
/// what is its own.
fn host(layer: SessionLayer) -> Router {
    let ids = Arc::new(AtomicU64::new(0));
    let open = async move || [(ID, format!("s-{}", ids.fetch_add(1, Ordering::SeqCst)))];
    let after_body = open.clone();
    let is_owner = |headers: &HeaderMap| headers.contains_key("x-token");
    Router::new()
        .route("/open", post(open))
        .route("/upload", post(async move |_: Bytes| after_body().await))
        .route(
            "/chat",
            post(async |id: Option<SessionId>| match id {
                Some(id) => [(ID, id.to_string())].into_response(),
                None => "nobody".into_response(),
            }),
        )
        .route(
            "/session",
            delete(async move |headers: HeaderMap| match is_owner(&headers) {
                true => [("x-session-end", "deleted")].into_response(),
                false => StatusCode::FORBIDDEN.into_response(),
            }),
        )
        .route(
            "/reflect",
            post(async |body: Bytes| match HeaderValue::from_bytes(&body) {
                Ok(value) => [(ID, value)].into_response(),
                Err(_) => StatusCode::BAD_REQUEST.into_response(),
            }),
        )
        .route("/events", get(async || events()))
        .route("/large", get(async || large()))
        .layer(layer)
}

fn events() -> Response {
    let never = futures_util::stream::pending::<Result<Bytes, io::Error>>();
    let hello = futures_util::stream::iter([Ok(Bytes::from_static(b"data: hello\n\n"))]);
    ([("content-type", "text/event-stream")], Body::from_stream(hello.chain(never))).into_response()
}

/// More than any buffer on the way holds.
fn large() -> Body {
    let chunk = Bytes::from(vec![b'x'; 1 << 16]);
    Body::from_stream(futures_util::stream::iter((0..1 << 10).map(move |_| Ok::<_, io::Error>(chunk.clone()))))
}

struct Server {
    recorder: Recorder,
    sessions: ActiveSessions,
    running: Running,
}

impl Server {
    async fn start(f: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder) -> Self {
        Self::with(f, HeaderProtocol::new()).await
    }

    async fn with(f: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder, protocol: HeaderProtocol) -> Self {
        let recorder = Recorder::default();
        let sessions = f(recorder.builder()).build().unwrap();
        let running = serve(&sessions, host(sessions.layer_with(protocol))).await;
        Self { recorder, sessions, running }
    }

    /// One request of its own connection, head by the caller; everything that comes back.
    async fn say(&self, head: impl AsRef<[u8]>) -> String {
        let mut client = Raw::connect(self.running.addr).await;
        client.write(head).await;
        String::from_utf8_lossy(&client.rest().await).into_owned()
    }

    async fn request(&self, line: &str, headers: &str) -> String {
        self.say(format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n")).await
    }
}

#[tokio::test]
async fn a_client_that_knows_the_id_of_another_can_neither_end_nor_compact_nor_open_anything() {
    let server = Server::start(|builder| builder).await;
    server.request("POST /open", "").await;
    for line in ["POST /chat", "DELETE /session", "GET /large", "POST /nowhere"] {
        for word in ["x-session-end: deleted", "x-session-compacted-from: s-0", "x-session-end: "] {
            for id in ["x-session-id: s-0\r\n", "x-session-id: made-up\r\n", ""] {
                let answer = server.request(line, &format!("{id}{word}\r\n")).await;
                assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
                // `/chat` confirms whatever it is told, as its host has chosen to.
                server.sessions.forget("made-up");
                assert_eq!(server.sessions.snapshot().len(), 1, "{line} {id} {word}");
                assert!(server.sessions.contains("s-0"), "{line} {id} {word}");
            }
        }
    }
    assert!(server.recorder.ends().is_empty());
    server.request("DELETE /session", "x-session-id: s-0\r\nx-token: mine\r\n").await;
    assert!(server.sessions.is_empty());
    assert!(server.running.shut_down().await.is_clean());
    assert_eq!(server.recorder.ended(), ["s-0 deleted"]);
}

#[tokio::test]
async fn bytes_that_would_split_a_head_make_no_second_header_and_no_session() {
    let server = Server::start(|builder| builder).await;
    server.request("POST /open", "").await;
    // On the wire: folded lines, bare line ends, zero bytes, a name with a space.
    for tail in
        ["\r\n x-session-end: deleted", "\nx-session-end: deleted", "\rx-session-end: deleted", "\0", "\x7f", "\x1b[2J"]
    {
        let answer = server.request("POST /chat", &format!("x-session-id: s-0{tail}\r\n")).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 "), "{answer}");
        assert!(server.sessions.contains("s-0"), "{tail:?}");
    }
    // By way of a host that puts what it is told into its own head.
    for byte in 0..=u8::MAX {
        let mut body = b"id".to_vec();
        body.push(byte);
        body.extend(b"x-session-end: reset");
        let head =
            format!("POST /reflect HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        let answer = server.say([head.as_bytes(), &body].concat()).await;
        assert!(!answer.contains("\r\nx-session-end"), "{byte:#x}: {answer}");
    }
    assert_eq!(server.sessions.len(), 1, "a space is in every one of them, so none is an id");
    assert!(server.running.shut_down().await.is_clean());
    assert_eq!(server.recorder.ended(), ["s-0 shutdown"]);
}

/// What was logged, as a terminal would get it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn nothing_that_a_client_says_is_whole_in_a_log_or_breaks_its_lines() {
    let log = Log::default();
    let writer = {
        let log = log.clone();
        move || log.clone()
    };
    let logging = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).with_max_level(tracing::Level::TRACE);
    let _logging = tracing::subscriber::set_default(logging.finish());
    let server = Server::start(|builder| {
        builder.max_sessions(2).keep_if(|_, _| panic!("keep_if")).on_session_end(async |_| Err::<(), _>("no"))
    })
    .await;
    let secret = "-whoever-has-this-is-logged-in";
    for n in 0..8 {
        for id in [format!("{n}{secret}"), format!("{n}\x1b[31m{secret}"), format!("{n} level=ERROR {secret}")] {
            let head = "POST /reflect HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
            server.say(format!("{head}content-length: {}\r\n\r\n{id}", id.len())).await;
        }
    }
    let report = server.running.shut_down().await;
    assert!(!report.is_clean());
    tracing::warn!("{report}, {report:?}, {:?}", server.sessions);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("session-end-drain") && log.contains("0-whoeve…"), "{log}");
    // Of hyper's own lines, which show what goes over the wire, nothing is ours to say.
    let ours: Vec<_> = log.lines().filter(|line| !line.contains("hyper")).collect();
    for line in ours {
        assert!(!line.contains(secret) && !line.contains("level=ERROR"), "{line}");
        assert!(line.bytes().all(|byte| byte >= 0x20), "{line:?}");
    }
}

#[tokio::test]
async fn an_id_of_64_kib_is_ignored_or_bounded_by_the_protocols_own_limit() {
    let long = "l".repeat(64 * 1024);
    let server = Server::start(|builder| builder).await;
    for _ in 0..3 {
        let answer = server.request("POST /chat", &format!("x-session-id: {long}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains(&long), "no id, so the handler has none");
    }
    let head = "POST /reflect HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    assert!(server.say(format!("{head}content-length: {}\r\n\r\n{long}", long.len())).await.contains(&long));
    assert_eq!((server.sessions.len(), server.sessions.ignored_ids()), (0, 1));
    assert!(server.running.shut_down().await.is_clean());

    let server = Server::with(|builder| builder, HeaderProtocol::new().max_id_len(64 * 1024)).await;
    assert!(server.request("POST /chat", &format!("x-session-id: {long}\r\n")).await.contains(&long));
    server.request("DELETE /session", &format!("x-token: mine\r\nx-session-id: {long}\r\n")).await;
    assert!(server.running.shut_down().await.is_clean());
    assert_eq!(server.recorder.ended(), [format!("{long} deleted")]);
}

#[tokio::test]
async fn g10_slow_heads_slow_bodies_and_slow_readers_hold_no_stop_beyond_its_budgets() {
    let budget = Duration::from_millis(500);
    let mut server = Server::start(|builder| builder.drain_timeout(budget).connection_drain_timeout(budget)).await;
    server.request("POST /open", "").await;
    let head =
        b"POST /open HTTP/1.1\r\nhost: x\r\nx-slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let upload = b"POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n";
    let mut slow = Vec::new();
    for begin in [&head[..10], upload] {
        for _ in 0..8 {
            let mut client = Raw::connect(server.running.addr).await;
            client.write(begin).await;
            slow.push(tokio::spawn(async move {
                // A byte now and then, until the server has had enough.
                while client.try_write(b"a").await {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }));
        }
    }
    // And some who read nothing of what they have asked for.
    let mut readers = Vec::new();
    for _ in 0..4 {
        let mut client = Raw::connect(server.running.addr).await;
        client.write("GET /large HTTP/1.1\r\nhost: x\r\nx-session-id: s-0\r\n\r\n").await;
        client.exact(10).await;
        readers.push(client);
    }
    // Accepted in order: when this one has its answer, so are all of them.
    server.request("POST /open", "").await;
    server.running.signal();
    let report = server.running.report().await;
    assert!(report.connections.timed_out && report.connections.open_responses >= 4 + 8, "{report}");
    assert!(report.sessions.is_clean(), "{report}");
    assert_eq!(server.recorder.ended(), ["s-0 shutdown", "s-1 shutdown"]);
    assert!(report.drain.elapsed <= 2 * budget, "{report}");
    drop(readers);
    // The layer never saw the half heads: their connections go with the process.
    slow.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn g13_a_flood_of_births_evicts_the_idle_and_spares_whoever_is_busy() {
    const CAP: usize = 50;
    const FLOOD: usize = 1000;
    let server = Server::start(|builder| builder.max_sessions(CAP)).await;
    // Busy: an upload that is not over, streams, a guard.
    let mut busy = Vec::new();
    for n in 0..10 {
        server.request("POST /open", "").await;
        let mut client = Raw::connect(server.running.addr).await;
        let head = if n % 2 == 0 { "GET /events" } else { "POST /upload" };
        client.write(format!("{head} HTTP/1.1\r\nhost: x\r\nx-session-id: s-{n}\r\ncontent-length: 9\r\n\r\n")).await;
        if n % 2 == 0 {
            assert!(client.head().await.contains("text/event-stream"));
        }
        busy.push(client);
    }
    let guard = server.sessions.guard("guarded").unwrap();
    server.request("POST /open", "").await;

    let client = h2_client();
    let base = format!("http://{}", server.running.addr);
    let flood = (0..FLOOD).map(|_| {
        let request = Request::post(format!("{base}/open")).body(Body::empty()).unwrap();
        let (client, sessions) = (client.clone(), server.sessions.clone());
        async move {
            assert_eq!(client.request(request).await.unwrap().status(), 200);
            assert!(sessions.len() <= CAP + 32, "{}", sessions.len());
        }
    });
    within("the flood", futures_util::stream::iter(flood).buffer_unordered(32).collect::<Vec<_>>()).await;
    assert_eq!(server.sessions.len(), CAP);
    for n in 0..10 {
        assert!(server.sessions.contains(format!("s-{n}")), "s-{n} was busy");
    }
    assert!(server.sessions.contains("guarded"));
    drop((busy, guard));
    let report = server.running.shut_down().await;
    assert_sum(&report.sessions);
    server.recorder.assert_no_generation_ended_twice();
    let ends = server.recorder.ends();
    assert_eq!(ends.len(), 10 + 1 + 1 + FLOOD);
    let evicted = ends.iter().filter(|end| end.reason == EndReason::Evicted).count();
    assert_eq!(evicted, 10 + 1 + 1 + FLOOD - CAP);
}

#[tokio::test]
async fn requests_that_are_taken_back_at_once_leak_nothing() {
    let server = Server::start(|builder| builder).await;
    server.request("POST /open", "").await;
    let client = h2_client();
    let base = format!("http://{}", server.running.addr);
    for n in 0..400 {
        let path = ["/events", "/large", "/upload", "/open"][n % 4];
        let method = if n % 4 < 2 { "GET" } else { "POST" };
        let request = Request::builder().method(method).uri(format!("{base}{path}")).header(ID, "s-0");
        let request = client.request(request.body(Body::empty()).unwrap());
        // Some before the head, some after it.
        let _ = tokio::time::timeout(Duration::from_micros(n as u64 * 5), request).await;
    }
    drop(client);
    let report = server.running.shut_down().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.connections.open_responses, 0);
    assert_sum(&report.sessions);
    server.recorder.assert_no_generation_ended_twice();
    assert_eq!(server.recorder.starts().len(), server.recorder.ends().len());
}
