//! The order of layers: each row of the page of the guide, on its side and on the other.

use std::{
    convert::Infallible,
    io::{self, Read, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use flate2::read::GzDecoder;
use http_body_util::BodyExt;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{StreamExt, once};
use tower::ServiceExt;
use tower_http::{
    catch_panic::CatchPanicLayer, compression::CompressionLayer, cors::CorsLayer, timeout::TimeoutLayer,
    trace::TraceLayer,
};
use tower_session_end::{ActiveSessions, EndReason, SessionEnd, StreamKind};
use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter};

/// The side of `sessions.layer()` on which the other layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Inside,
    Outside,
}

use Side::{Inside, Outside};

const BOTH: [Side; 2] = [Inside, Outside];

/// Longer than any step takes; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

fn app(sessions: &ActiveSessions, side: Side, routes: Router, add: impl FnOnce(Router) -> Router) -> Router {
    match side {
        Inside => add(routes).layer(sessions.layer()),
        Outside => add(routes.layer(sessions.layer())),
    }
}

/// A request to `/`, in the session `4711` if it is active.
fn ask() -> axum::http::request::Builder {
    Request::post("/").header("x-session-id", "4711")
}

async fn send(app: Router, request: axum::http::request::Builder) -> Response {
    timeout(PATIENCE, app.oneshot(request.body(Body::empty()).unwrap())).await.expect("a response").unwrap()
}

/// A handle whose ends can be received.
fn recorded() -> (ActiveSessions, mpsc::UnboundedReceiver<SessionEnd>) {
    let (sender, ends) = mpsc::unbounded_channel();
    let builder = ActiveSessions::builder().settle_timeout(Duration::from_secs(60)).drain_timeout(PATIENCE);
    let record = move |end: SessionEnd| {
        let sender = sender.clone();
        async move { sender.send(end) }
    };
    (builder.on_session_end(record).build().unwrap(), ends)
}

/// A host with a bug.
fn panicking() -> Router {
    async fn panic() {
        panic!("a bug of the host");
    }
    Router::new().route("/", post(panic))
}

#[tokio::test(start_paused = true)]
async fn a_caught_panic_ends_the_work_and_not_the_session_on_both_sides() {
    for side in BOTH {
        let (sessions, mut ends) = recorded();
        sessions.note("4711");
        let app = app(&sessions, side, panicking(), |app| app.layer(CatchPanicLayer::new()));
        assert_eq!(send(app, ask()).await.status(), StatusCode::INTERNAL_SERVER_ERROR, "{side:?}");
        assert!(sessions.contains("4711"), "{side:?}");
        let report = sessions.drain(EndReason::Shutdown).await;
        assert!(
            report.is_clean() && report.at_work == 0 && report.elapsed < Duration::from_secs(1),
            "{side:?} {report}"
        );
        assert_eq!(ends.recv().await.unwrap().session.id, "4711");
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_drops_a_session_that_is_only_in_the_response_on_both_sides() {
    for side in BOTH {
        let (sessions, _ends) = recorded();
        let slow = async |sessions: ActiveSessions| {
            sessions.note("noted");
            tokio::time::sleep(Duration::from_secs(40)).await;
            [("x-session-id", "in-the-response")]
        };
        let limit = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(30));
        let app = app(&sessions, side, Router::new().route("/", post(slow)), |app| app.layer(limit));
        assert_eq!(send(app, Request::post("/")).await.status(), StatusCode::GATEWAY_TIMEOUT, "{side:?}");
        assert!(sessions.contains("noted") && sessions.len() == 1, "{side:?}");
    }
}

#[tokio::test]
async fn a_request_that_is_refused_outside_is_none_of_the_session() {
    for (side, requests) in [(Outside, 1), (Inside, 2)] {
        let (sessions, mut ends) = recorded();
        sessions.note("4711");
        let routes = Router::new().route("/", post(async || ()));
        let check_user = from_fn(async |request: Request, next: Next| {
            if request.headers().contains_key("authorization") {
                next.run(request).await
            } else {
                StatusCode::UNAUTHORIZED.into_response()
            }
        });
        let app = app(&sessions, side, routes, |app| app.layer(check_user));
        assert_eq!(send(app.clone(), ask().header("authorization", "me")).await.status(), StatusCode::OK);
        assert_eq!(send(app, ask()).await.status(), StatusCode::UNAUTHORIZED);
        sessions.end("4711", EndReason::Reset);
        assert_eq!(ends.recv().await.unwrap().requests, requests, "{side:?}");
    }
}

/// A stream that goes on after its first line, until the layer ends it.
async fn lines() -> impl IntoResponse {
    let first = once(Ok::<_, Infallible>(Bytes::from("{\"line\":1}\n".repeat(100))));
    let body = Body::from_stream(first.chain(tokio_stream::pending()));
    (StreamKind::Listening, [("x-session-id", "4711"), ("content-type", "application/x-ndjson")], body)
}

#[tokio::test]
async fn a_compressed_stream_that_ends_with_its_session_is_whole_only_outside() {
    for side in BOTH {
        let (sessions, _ends) = recorded();
        let app = app(&sessions, side, Router::new().route("/", get(lines)), |app| app.layer(CompressionLayer::new()));
        let response = send(app, Request::get("/").header("accept-encoding", "gzip")).await;
        assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip");
        assert!(sessions.end("4711", EndReason::Reset));
        let file = timeout(PATIENCE, response.into_body().collect()).await.expect("an end").unwrap().to_bytes();
        let mut text = String::new();
        let read = GzDecoder::new(&file[..]).read_to_string(&mut text);
        assert_eq!(read.is_ok(), side == Outside, "{side:?}: {read:?}");
        if side == Outside {
            assert_eq!(text.lines().count(), 100);
        }
    }
}

#[tokio::test]
async fn a_refusal_of_the_layer_has_the_headers_of_cors_only_outside() {
    for side in BOTH {
        let sessions = ActiveSessions::builder().refuse_new_sessions(true).build().unwrap();
        let routes = Router::new().route("/", post(async || [("x-session-id", "4711")]));
        let app = app(&sessions, side, routes, |app| app.layer(CorsLayer::permissive()));
        let of_cors = |headers: &HeaderMap| headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        let from_a_page = Request::post("/").header("origin", "https://example.com");
        let response = send(app.clone(), from_a_page).await;
        assert!(of_cors(response.headers()) && sessions.contains("4711"), "{side:?}");
        drop(response);
        assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
        let response = send(app.clone(), Request::post("/").header("origin", "https://example.com")).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(of_cors(response.headers()), side == Outside, "{side:?}");
    }
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn the_events_of_the_layer_are_in_the_span_of_the_request_only_outside() {
    for side in BOTH {
        let log = Log::default();
        let subscriber =
            tracing_subscriber::fmt().with_max_level(LevelFilter::DEBUG).with_ansi(false).with_writer(log.clone());
        let _subscribed = tracing::subscriber::set_default(subscriber.finish());
        let (sessions, _ends) = recorded();
        let routes = Router::new().route("/", post(async || [("x-session-id", "4711")]));
        let app = app(&sessions, side, routes, |app| app.layer(TraceLayer::new_for_http()));
        assert_eq!(send(app, Request::post("/")).await.status(), StatusCode::OK);
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let start = log.lines().find(|line| line.contains("tower_session_end")).unwrap_or_else(|| panic!("{log}"));
        assert_eq!(start.contains("request{method=POST"), side == Outside, "{side:?}: {start}");
    }
}

#[tokio::test]
async fn a_header_that_is_set_outside_of_the_layer_is_not_seen() {
    for side in BOTH {
        let (sessions, _ends) = recorded();
        let add_id = axum::middleware::map_response(async |response: Response| ([("x-session-id", "4711")], response));
        let routes = Router::new().route("/", post(async || ()));
        let app = app(&sessions, side, routes, |app| app.layer(add_id));
        assert_eq!(send(app, Request::post("/")).await.headers()["x-session-id"], "4711");
        assert_eq!(sessions.contains("4711"), side == Inside, "{side:?}");
    }
}

#[tokio::test]
async fn a_middleware_outside_of_the_layer_cannot_extract() {
    for (side, status) in [(Inside, StatusCode::OK), (Outside, StatusCode::INTERNAL_SERVER_ERROR)] {
        let (sessions, _ends) = recorded();
        let count = from_fn(async |_: ActiveSessions, request: Request, next: Next| next.run(request).await);
        let routes = Router::new().route("/", post(async || ()));
        let app = app(&sessions, side, routes, |app| app.layer(count));
        assert_eq!(send(app, Request::post("/")).await.status(), status, "{side:?}");
    }
}

#[tokio::test]
async fn without_a_layer_for_panics_the_session_stays_and_its_work_is_over() {
    let (sessions, _ends) = recorded();
    sessions.note("4711");
    let app = panicking().layer(sessions.layer());
    assert!(tokio::spawn(send(app, ask())).await.unwrap_err().is_panic());
    assert!(sessions.contains("4711"));
    let report = timeout(PATIENCE, sessions.drain(EndReason::Shutdown)).await.expect("no work");
    assert_eq!(report.at_work, 0, "{report}");
}
