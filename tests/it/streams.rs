//! Event streams, half requests and silent connections over real sockets: G10, from the client's side.

use std::{
    convert::Infallible,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::support::recorder::Recorder;
use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, Request, header::CONTENT_TYPE},
    routing::{delete, get, post},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{broadcast, mpsc, oneshot},
    task::JoinHandle,
};
use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, EndReason, ShutdownReport};

/// For what should take milliseconds, on a machine that is busy.
const SOON: Duration = Duration::from_secs(5);
/// A connection drain that no test waits for.
const LONG: Duration = Duration::from_secs(60);

/// A server with sessions and event streams.
struct Server {
    address: SocketAddr,
    recorder: Recorder,
    sessions: ActiveSessions,
    /// Every word is an event of every stream; "end" ends the streams.
    words: broadcast::Sender<&'static str>,
    stop: oneshot::Sender<()>,
    drained: oneshot::Receiver<()>,
    finished: JoinHandle<(ShutdownReport, Duration)>,
}

#[derive(Clone)]
struct Host {
    words: broadcast::Sender<&'static str>,
    sessions: ActiveSessions,
}

impl Server {
    async fn start(configure: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder) -> Self {
        let recorder = Recorder::default();
        let sessions = configure(recorder.builder()).build().unwrap();
        let words = broadcast::channel(16).0;
        let app = Router::new()
            .route("/open/{id}", post(open))
            .route("/compact/{id}", post(compact))
            .route("/compact_into_ended/{id}", post(compact_into_ended))
            .route("/session", delete(end))
            .route("/events", get(listen).post(listen))
            .route("/farewell", get(farewell))
            .route("/farewell_by_task", get(farewell_by_task))
            .route("/torrent", get(async || event_stream(stream::repeat("x"))))
            .with_state(Host { words: words.clone(), sessions: sessions.clone() })
            .layer(sessions.layer());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();

        let (stop, stopped) = oneshot::channel::<()>();
        let (told, drained) = oneshot::channel();
        let (signalled, signal_time) = oneshot::channel();
        let shutdown = sessions.shutdown_on(async {
            stopped.await.unwrap();
            signalled.send(Instant::now()).unwrap();
        });
        let server = axum::serve(listener, app).with_graceful_shutdown(async {
            shutdown.await;
            told.send(()).unwrap();
        });
        let finish = sessions.finish(server);
        let finished = tokio::spawn(async move {
            let report = finish.await.into_result().unwrap();
            (report, signal_time.await.unwrap().elapsed())
        });
        Self { address, recorder, sessions, words, stop, drained, finished }
    }

    /// Opens, ends or compacts on a connection of its own.
    async fn request(&self, method: &str, path: &str, session: Option<&str>) {
        let mut client = self.connect().await;
        client.send(method, path, session).await;
        let head = client.read_until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{method} {path}: {head}");
    }

    async fn connect(&self) -> Raw {
        Raw { stream: TcpStream::connect(self.address).await.unwrap(), read: Vec::new() }
    }

    /// A client that has had its first event.
    async fn listen(&self, method: &str, path: &str, session: Option<&str>) -> Raw {
        let mut client = self.connect().await;
        client.send(method, path, session).await;
        client.read_until("data: hello\n\n").await;
        client
    }

    async fn stop(self) -> (ShutdownReport, Duration, Recorder) {
        self.stop.send(()).unwrap();
        let (report, elapsed) = soon(self.finished).await.unwrap();
        self.recorder.assert_no_generation_ended_twice();
        (report, elapsed, self.recorder)
    }
}

async fn open(Path(id): Path<String>) -> [(HeaderName, String); 1] {
    [(HeaderName::from_static("x-session-id"), id)]
}

async fn end() -> [(&'static str, &'static str); 1] {
    [("x-session-end", "deleted")]
}

async fn compact(headers: HeaderMap, Path(id): Path<String>) -> [(&'static str, String); 2] {
    let old = headers["x-session-id"].to_str().unwrap().to_owned();
    [("x-session-id", id), ("x-session-compacted-from", old)]
}

/// The successor starts and ends while its request is in flight.
async fn compact_into_ended(
    State(host): State<Host>,
    headers: HeaderMap,
    path: Path<String>,
) -> [(&'static str, String); 2] {
    host.sessions.note(&*path);
    host.sessions.end(&*path, EndReason::Deleted);
    compact(headers, path).await
}

type EventStream = ([(HeaderName, &'static str); 1], Body);

fn event_stream(events: impl Stream<Item = &'static str> + Send + 'static) -> EventStream {
    let events = stream::iter(["hello"]).chain(events).map(|word| Ok::<_, Infallible>(format!("data: {word}\n\n")));
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(events))
}

async fn listen(State(host): State<Host>) -> EventStream {
    event_stream(stream::unfold(host.words.subscribe(), async |mut words| {
        let word = words.recv().await.unwrap();
        (word != "end").then_some((word, words))
    }))
}

/// As below, but a task of its own says it.
async fn farewell_by_task(State(host): State<Host>) -> EventStream {
    let closing = host.sessions.closing();
    let (tell, told) = mpsc::channel(1);
    tokio::spawn(async move {
        closing.await;
        // Whatever has to be asked for what is said last.
        tokio::task::yield_now().await;
        let _ = tell.send("bye").await;
        tell.closed().await;
    });
    event_stream(stream::unfold(told, async |mut told| told.recv().await.map(|word| (word, told))))
}

/// Goes on after its last event.
async fn farewell(State(host): State<Host>) -> EventStream {
    let closing = host.sessions.closing();
    let bye = stream::once(async {
        closing.await;
        "bye"
    });
    event_stream(bye.chain(stream::pending()))
}

/// An HTTP/1.1 client that sees every byte.
struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    async fn send(&mut self, method: &str, path: &str, session: Option<&str>) {
        let id = session.map(|id| format!("x-session-id: {id}\r\n")).unwrap_or_default();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n{id}\r\n");
        self.stream.write_all(head.as_bytes()).await.unwrap();
    }

    /// Everything up to `end`, which has to come.
    async fn read_until(&mut self, end: &str) -> String {
        loop {
            let end = end.as_bytes();
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end) {
                let rest = self.read.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap();
            }
            let n = soon(self.stream.read_buf(&mut self.read)).await.unwrap();
            assert!(n > 0, "the server hung up after {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    /// Reads on, and forgets what it read, until the terminating chunk.
    async fn ends_cleanly(mut self) -> bool {
        soon(async {
            while !self.read.ends_with(LAST_CHUNK.as_bytes()) {
                self.read.drain(..self.read.len().saturating_sub(LAST_CHUNK.len()));
                if !matches!(self.stream.read_buf(&mut self.read).await, Ok(1..)) {
                    return false;
                }
            }
            true
        })
        .await
    }

    /// Everything until the server hangs up, by whatever means.
    async fn read_to_end(mut self) -> String {
        // A reset is an end too: what came before it counts.
        let _ = soon(self.stream.read_to_end(&mut self.read)).await;
        String::from_utf8(self.read).unwrap()
    }
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.expect("it should have come at once")
}

const LAST_CHUNK: &str = "\r\n0\r\n\r\n";

#[tokio::test]
async fn g10_an_open_event_stream_ends_cleanly_once_its_session_has_ended() {
    let server = Server::start(|builder| builder.connection_drain_timeout(LONG)).await;
    server.request("POST", "/open/a", None).await;
    server.request("POST", "/open/b", None).await;
    let mut a = server.listen("GET", "/events", Some("a")).await;
    let mut b = server.listen("GET", "/events", Some("b")).await;
    let mut nobody = server.listen("GET", "/events", None).await;

    server.request("DELETE", "/session", Some("a")).await;
    assert_eq!(a.read_until(LAST_CHUNK).await, LAST_CHUNK);
    // It was the stream that ended, not the connection.
    a.send("POST", "/open/c", None).await;
    assert!(a.read_until("\r\n\r\n").await.starts_with("HTTP/1.1 200"));

    // The others go on.
    server.words.send("more").unwrap();
    for client in [&mut b, &mut nobody] {
        assert!(!client.read_until("data: more\n\n").await.contains(LAST_CHUNK));
    }
    let (report, _, recorder) = server.stop().await;
    assert!(report.is_clean(), "{report}");
    let ends = [("a", EndReason::Deleted), ("b", EndReason::Shutdown), ("c", EndReason::Shutdown)];
    assert_eq!(recorder.reasons(), ends.map(|(id, reason)| (id.to_owned(), reason)));
}

#[tokio::test]
async fn g10_on_the_stop_streams_with_and_without_a_session_end_with_the_terminating_chunk() {
    let server = Server::start(|builder| builder.connection_drain_timeout(LONG)).await;
    server.request("POST", "/open/a", None).await;
    let mut clients = Vec::new();
    for session in [Some("a"), None, Some("a"), None] {
        clients.push(server.listen("GET", "/events", session).await);
    }
    let (report, elapsed, recorder) = server.stop().await;
    assert!(report.is_clean() && report.connections.open_responses == 0, "{report}");
    assert!(elapsed < SOON, "{elapsed:?}");
    assert_eq!(recorder.reasons(), [("a".to_owned(), EndReason::Shutdown)]);
    for client in clients {
        assert_eq!(client.read_to_end().await, LAST_CHUNK);
    }
}

#[tokio::test]
async fn g10_on_the_stop_streams_end_cleanly_over_http_2() {
    let server = Server::start(|builder| builder.connection_drain_timeout(LONG)).await;
    server.request("POST", "/open/a", None).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Empty<Bytes>>();
    let mut bodies: Vec<Incoming> = Vec::new();
    for session in [Some("a"), None] {
        let mut request = Request::get(format!("http://{}/events", server.address));
        if let Some(id) = session {
            request = request.header("x-session-id", id);
        }
        let mut body = client.request(request.body(Empty::new()).unwrap()).await.unwrap().into_body();
        let first = soon(body.frame()).await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "data: hello\n\n");
        bodies.push(body);
    }
    let (report, elapsed, _) = server.stop().await;
    assert!(report.is_clean(), "{report}");
    assert!(elapsed < SOON, "{elapsed:?}");
    for body in bodies {
        // END_STREAM, and not RST_STREAM: that would be an error.
        assert!(soon(body.collect()).await.unwrap().to_bytes().is_empty());
    }
}

#[tokio::test]
async fn g10_without_end_streams_a_stream_is_cut_with_an_error_at_the_deadline() {
    let budget = Duration::from_millis(500);
    let server = Server::start(|builder| builder.end_streams(false).connection_drain_timeout(budget)).await;
    server.request("POST", "/open/a", None).await;
    let mut clients = Vec::new();
    for session in [Some("a"), None] {
        clients.push(server.listen("GET", "/events", session).await);
    }
    let (report, elapsed, _) = server.stop().await;
    assert!(report.connections.timed_out && !report.is_clean(), "{report}");
    assert_eq!(report.connections.open_responses, 2);
    assert!(report.sessions.is_clean(), "{report}");
    assert!(elapsed >= budget / 2 && elapsed < SOON, "{elapsed:?}");
    for client in clients {
        // No terminating chunk: the client can tell.
        assert_eq!(client.read_to_end().await, "\r\n");
    }
}

#[tokio::test]
async fn g10_an_answer_that_is_streamed_outlives_the_session_drain_and_finishes_in_the_connection_drain() {
    let mut server = Server::start(|builder| builder.connection_drain_timeout(LONG)).await;
    server.request("POST", "/open/a", None).await;
    let mut answer = server.listen("POST", "/events", Some("a")).await;
    let Server { stop, .. } = server;
    stop.send(()).unwrap();
    soon(&mut server.drained).await.unwrap();
    assert_eq!(server.recorder.reasons(), [("a".to_owned(), EndReason::Shutdown)]);

    server.words.send("more").unwrap();
    answer.read_until("data: more\n\n").await;
    assert!(!server.finished.is_finished());
    server.words.send("end").unwrap();
    assert_eq!(answer.read_until(LAST_CHUNK).await, LAST_CHUNK);
    let (report, _) = soon(server.finished).await.unwrap();
    assert!(report.is_clean(), "{report}");
}

#[tokio::test]
async fn g10_a_stream_goes_on_over_a_compaction_and_ends_with_the_successor() {
    let server = Server::start(|builder| builder.connection_drain_timeout(LONG)).await;
    server.request("POST", "/open/a", None).await;
    let mut client = server.listen("GET", "/events", Some("a")).await;
    for (old, new, word) in [("a", "b", "once"), ("b", "c", "twice")] {
        server.request("POST", &format!("/compact/{new}"), Some(old)).await;
        assert!(!server.sessions.contains(old) && server.sessions.contains(new));
        server.words.send(word).unwrap();
        assert!(!client.read_until(word).await.contains(LAST_CHUNK));
    }
    server.request("DELETE", "/session", Some("c")).await;
    client.read_until(LAST_CHUNK).await;
    let (report, ..) = server.stop().await;
    assert!(report.is_clean(), "{report}");
}

#[tokio::test]
async fn g10_a_stop_ends_the_stream_of_a_session_that_was_compacted() {
    let server = Server::start(|builder| builder.connection_drain_timeout(LONG)).await;
    server.request("POST", "/open/a", None).await;
    let client = server.listen("GET", "/events", Some("a")).await;
    server.request("POST", "/compact/b", Some("a")).await;
    let (report, ..) = server.stop().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(client.read_to_end().await, LAST_CHUNK);
}

#[tokio::test]
async fn g10_a_compaction_into_an_id_that_was_declared_dead_ends_the_streams_of_the_old_session() {
    let server = Server::start(|builder| builder.connection_drain_timeout(LONG)).await;
    server.request("POST", "/open/a", None).await;
    let mut client = server.listen("GET", "/events", Some("a")).await;
    server.request("POST", "/compact_into_ended/b", Some("a")).await;
    assert!(server.sessions.is_empty(), "the successor ended after its request had begun");
    client.read_until(LAST_CHUNK).await;
    let (report, ..) = server.stop().await;
    assert!(report.is_clean(), "{report}");
}

#[tokio::test]
async fn g10_a_stream_that_is_never_at_a_loss_for_words_ends_with_its_session() {
    let server = Server::start(|builder| builder.connection_drain_timeout(LONG)).await;
    server.request("POST", "/open/a", None).await;
    let with_a_session = server.listen("GET", "/torrent", Some("a")).await;
    let without = server.listen("GET", "/torrent", None).await;
    server.request("DELETE", "/session", Some("a")).await;
    assert!(with_a_session.ends_cleanly().await);
    let without = tokio::spawn(without.ends_cleanly());
    let (report, elapsed, _) = server.stop().await;
    assert!(report.is_clean() && elapsed < SOON, "{elapsed:?} {report}");
    assert!(soon(without).await.unwrap());
}

#[tokio::test]
async fn g10_a_last_event_that_is_sent_on_closing_is_not_lost() {
    let server = Server::start(|builder| builder.connection_drain_timeout(LONG)).await;
    server.request("POST", "/open/a", None).await;
    let mut clients = Vec::new();
    for session in [Some("a"), None].repeat(8) {
        clients.push(server.listen("GET", "/farewell", session).await);
        clients.push(server.listen("GET", "/farewell_by_task", session).await);
    }
    let (report, elapsed, _) = server.stop().await;
    assert!(report.is_clean(), "{report}");
    assert!(elapsed < SOON, "{elapsed:?}");
    for client in clients {
        assert_eq!(client.read_to_end().await, format!("\r\nB\r\ndata: bye\n\n{LAST_CHUNK}"));
    }
}

#[tokio::test]
async fn g10_half_a_request_head_does_not_hold_finish_beyond_its_budgets() {
    let budget = Duration::from_millis(500);
    let server = Server::start(|builder| builder.drain_timeout(budget).connection_drain_timeout(budget)).await;
    server.request("POST", "/open/a", None).await;
    let mut first = server.connect().await;
    first.stream.write_all(b"GET /events HTTP/1.1\r\nhost: loc").await.unwrap();
    // The second request of a connection: the server is surely reading by then.
    let mut second = server.connect().await;
    second.send("POST", "/open/b", None).await;
    second.read_until("\r\n\r\n").await;
    second.stream.write_all(b"GET /ev").await.unwrap();

    let (report, elapsed, _) = server.stop().await;
    assert!(elapsed < 2 * budget + Duration::from_secs(1), "{elapsed:?}");
    assert!(report.sessions.is_clean(), "{report}");
    assert_eq!(report.sessions.ended, 2);
}

#[tokio::test]
async fn g10_a_connection_that_says_nothing_is_closed_at_once() {
    let server = Server::start(|builder| builder.connection_drain_timeout(LONG)).await;
    let mut kept_alive = server.connect().await;
    kept_alive.send("POST", "/open/a", None).await;
    kept_alive.read_until("\r\n\r\n").await;
    let silent = server.connect().await;
    // Accepted in order: when this has its answer, the silent one is accepted too.
    server.request("POST", "/open/b", None).await;

    let (report, elapsed, _) = server.stop().await;
    assert!(report.is_clean(), "{report}");
    assert!(elapsed < SOON, "{elapsed:?}");
    for client in [kept_alive, silent] {
        assert_eq!(client.read_to_end().await, "");
    }
}

#[tokio::test]
async fn g10_a_stream_whose_session_was_compacted_before_its_head_ends_with_the_successor() {
    let (_recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let handle = sessions.clone();
    let host = tower::service_fn(move |_: Request<()>| {
        handle.compact("a", "b");
        handle.compact("b", "c");
        let events = stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>();
        let response = http::Response::builder().header(CONTENT_TYPE, "text/event-stream");
        std::future::ready(Ok::<_, Infallible>(response.body(http_body_util::StreamBody::new(events)).unwrap()))
    });
    let request = Request::get("/").header("x-session-id", "a").body(()).unwrap();
    let service = tower::Layer::layer(&sessions.layer(), host);
    let response = tower::ServiceExt::oneshot(service, request).await.unwrap();
    let body = tokio::spawn(response.into_body().collect());
    tokio::task::yield_now().await;
    assert!(!body.is_finished());
    assert!(sessions.end("c", EndReason::Deleted));
    soon(body).await.unwrap().unwrap();
}
