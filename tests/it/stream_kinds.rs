//! What a stream is, over real sockets: an answer is finished, a stream to which a client listens ends with its session,
//! and one of gRPC tells its end in trailers.

use std::{convert::Infallible, time::Duration};

use crate::support::{Hint, Raw, Recorder, Running, Script, Step, h2_client, serve, stop, within};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::{any, delete, get, post},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Version, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::sync::watch;
use tower_session_end::{ActiveSessions, BuildError, EndReason, Phase, StreamKind, signal::ShutdownRequest};

/// Longer than any of these tests waits for.
const LONG: Duration = Duration::from_secs(60);

const ID: &str = "x-session-id";

/// How many tokens the host has sent so far.
type Sent = watch::Sender<usize>;

const TOKENS: usize = 20;

/// A model's answer: so many tokens, one after another.
fn tokens(sent: Sent) -> Body {
    let tokens = stream::iter(1..=TOKENS).then(move |token| {
        let sent = sent.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            sent.send_replace(token);
            Ok::<_, Infallible>(format!("data: token {token}.\n\n"))
        }
    });
    Body::from_stream(tokens)
}

/// One message, and no end.
fn endless(media_type: &'static str) -> Response {
    let body = Body::from_stream(stream::iter([Ok::<_, Infallible>("hello\n")]).chain(stream::pending()));
    ([(CONTENT_TYPE, media_type)], body).into_response()
}

/// What the query says: a media type, and maybe a mark.
async fn asked(request: Request) -> Response {
    match request.uri().query().unwrap() {
        "ndjson" => endless("Application/X-NDJSON ; charset=utf-8"),
        "events" => endless("text/event-stream"),
        "listening" => (StreamKind::Listening, endless("application/octet-stream")).into_response(),
        "answer" => (StreamKind::Answer, endless("text/event-stream")).into_response(),
        "grpc" => endless("application/grpc"),
        "grpc-proto" => endless("Application/gRPC+proto; x=y"),
        "grpc-web" => endless("application/grpc-web+proto"),
        "grpc-listening" => (StreamKind::Listening, endless("application/grpc")).into_response(),
        other => panic!("{other}"),
    }
}

fn app(sent: &Sent) -> Router {
    let events = || [(CONTENT_TYPE, "text/event-stream")];
    Router::new()
        .route("/open", post(async || [(ID, "a")]))
        .route("/end", delete(async || [("x-session-end", "deleted")]))
        .route("/marked", get(async move |State(sent)| (StreamKind::Answer, events(), tokens(sent))))
        .route("/unmarked", get(async move |State(sent)| (events(), tokens(sent))))
        .route("/stream", any(asked))
        .with_state(sent.clone())
}

/// A server with one session, `a`.
async fn start(sessions: &ActiveSessions) -> Running {
    let server = serve(sessions, app(&Sent::default()).layer(sessions.layer())).await;
    sessions.note("a");
    server
}

/// Sends one request with a connection of its own, over HTTP/1.
async fn request(server: &Running, method: &str, path: &str) -> Raw {
    let mut client = Raw::connect(server.addr).await;
    client.write(format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{ID}: a\r\n\r\n")).await;
    client
}

/// A client that has read the response up to this text.
async fn read_until(client: &mut Raw, read: &mut Vec<u8>, end: &str) {
    while !read.windows(end.len()).any(|window| window == end.as_bytes()) {
        read.extend(client.exact(1).await);
    }
}

/// Over HTTP/1: the client of a stream that has had its first message.
async fn listen(server: &Running, method: &str, what: &str) -> Raw {
    let mut client = request(server, method, &format!("/stream?{what}")).await;
    read_until(&mut client, &mut Vec::new(), "hello\n\r\n").await;
    client
}

/// Over HTTP/2: a stream that has had its first message.
async fn listen_h2(server: &Running, method: Method, what: &str) -> Incoming {
    let uri = format!("http://{}/stream?{what}", server.addr);
    let request = http::Request::builder().method(method).uri(uri).header(ID, "a").body(Body::empty()).unwrap();
    let response = within("a head", h2_client().request(request)).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    let mut body = response.into_body();
    let first = within("a message", body.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"hello\n"));
    body
}

/// The trailers of a stream that ends without an error.
async fn trailers(mut body: Incoming) -> Option<HeaderMap> {
    within("the end", async {
        loop {
            match body.frame().await?.expect("a clean end").into_trailers() {
                Ok(trailers) => break Some(trailers),
                Err(_data) => {}
            }
        }
    })
    .await
}

#[track_caller]
fn assert_unavailable(trailers: Option<HeaderMap>) {
    let trailers = trailers.expect("trailers");
    assert_eq!(trailers["grpc-status"], "14", "{trailers:?}");
    let message = trailers["grpc-message"].to_str().unwrap();
    assert!(!message.is_empty() && !message.contains('%'), "{message}");
}

/// A shutdown after four tokens. Returns what the client has read, and how many tokens had been sent when the session
/// ended.
async fn stop_after_four_tokens(path: &str) -> (String, usize) {
    let (sent, ended_at) = (Sent::default(), Sent::default());
    let sessions = ActiveSessions::builder()
        .drain_timeout(LONG)
        .settle_timeout(LONG)
        .connection_drain_timeout(LONG)
        .on_session_end({
            let (sent, ended_at) = (sent.clone(), ended_at.clone());
            move |_| {
                ended_at.send_replace(*sent.borrow());
                std::future::ready(())
            }
        })
        .build()
        .unwrap();
    let server = serve(&sessions, app(&sent).layer(sessions.layer())).await;
    sessions.note("a");
    let mut client = request(&server, "GET", path).await;
    let mut read = Vec::new();
    read_until(&mut client, &mut read, "token 4.").await;
    let finished = tokio::spawn(server.shut_down());
    read.extend(client.rest().await);
    let report = within("finish", finished).await.unwrap();
    assert!(report.is_clean() && !report.connections.timed_out, "{report}");
    let ended_at = *ended_at.borrow();
    (String::from_utf8(read).unwrap(), ended_at)
}

#[tokio::test]
async fn g10_a_token_stream_on_get_that_is_marked_as_an_answer_is_finished_and_is_work() {
    let (read, ended_at) = stop_after_four_tokens("/marked").await;
    for token in 1..=TOKENS {
        assert!(read.contains(&format!("token {token}.")), "{token}: {read}");
    }
    assert!(read.ends_with("\r\n0\r\n\r\n"), "{read}");
    assert_eq!(ended_at, TOKENS, "the end of the session waits for the answer");
}

#[tokio::test]
async fn g10_a_token_stream_on_get_without_a_mark_ends_with_the_shutdown() {
    let (read, ended_at) = stop_after_four_tokens("/unmarked").await;
    assert!(!read.contains(&format!("token {TOKENS}.")), "{read}");
    assert!(read.ends_with("\r\n0\r\n\r\n"), "a clean end: {read}");
    assert!(ended_at < TOKENS, "it is no work");
}

#[tokio::test]
async fn g10_an_answer_outlives_its_session_and_an_outer_layer_sees_the_mark_too() {
    let (recorder, sessions) = Recorder::sessions();
    let other = ActiveSessions::builder().build().unwrap();
    let app = app(&Sent::default()).layer(sessions.layer()).layer(other.layer());
    let mut server = serve(&sessions, app).await;
    sessions.note("a");
    let mut answer = request(&server, "GET", "/marked").await;
    let mut read = Vec::new();
    read_until(&mut answer, &mut read, "token 1.").await;
    drop(request(&server, "DELETE", "/end").await.head().await);
    assert!(other.drain(EndReason::Shutdown).await.is_clean());
    server.signal();
    read.extend(answer.rest().await);
    let read = String::from_utf8(read).unwrap();
    assert!(read.contains(&format!("token {TOKENS}.")) && read.ends_with("\r\n0\r\n\r\n"), "{read}");
    assert!(server.report().await.is_clean());
    assert_eq!(recorder.ended(), ["a deleted"]);
}

#[tokio::test]
async fn g10_a_stream_marked_as_listening_ends_with_its_session_whatever_its_method_and_media_type() {
    for method in ["GET", "POST", "PUT"] {
        let (_, sessions) = Recorder::sessions();
        let server = start(&sessions).await;
        let mut client = listen(&server, method, "listening").await;
        let body = listen_h2(&server, method.parse().unwrap(), "listening").await;
        drop(request(&server, "DELETE", "/end").await.head().await);
        assert_eq!(client.exact(5).await, b"0\r\n\r\n", "{method}");
        assert_eq!(trailers(body).await, None, "{method}");
        assert!(server.shut_down().await.is_clean());
    }
}

#[tokio::test]
async fn g10_a_stream_marked_as_listening_is_no_work_and_ends_cleanly_in_a_shutdown() {
    let recorder = Recorder::default();
    let builder = recorder.builder().drain_timeout(LONG).settle_timeout(LONG).connection_drain_timeout(LONG);
    let sessions = builder.build().unwrap();
    let server = start(&sessions).await;
    let client = listen(&server, "POST", "listening").await;
    let report = server.shut_down().await;
    assert!(report.is_clean() && report.connections.open_responses == 0, "{report}");
    assert_eq!(client.rest().await, b"0\r\n\r\n");
    assert_eq!(recorder.ended(), ["a shutdown"]);
}

#[tokio::test]
async fn g10_other_media_types_can_be_added_and_replace_the_default() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().listening_media_types(["application/x-ndjson"]).build().unwrap();
    let server = start(&sessions).await;
    let mut ndjson = listen(&server, "GET", "ndjson").await;
    let mut events = listen(&server, "GET", "events").await;
    let mut posted = listen(&server, "POST", "ndjson").await;
    drop(request(&server, "DELETE", "/end").await.head().await);
    assert_eq!(ndjson.exact(5).await, b"0\r\n\r\n");
    for client in [&mut events, &mut posted] {
        assert!(tokio::time::timeout(Duration::from_millis(100), client.exact(1)).await.is_err(), "it goes on");
    }
}

#[tokio::test]
async fn g10_another_endless_body_is_cut_at_the_deadline() {
    let sessions = ActiveSessions::builder().connection_drain_timeout(Duration::from_millis(300)).build().unwrap();
    let server = start(&sessions).await;
    let clients = [listen(&server, "GET", "ndjson").await, listen(&server, "GET", "answer").await];
    let report = server.shut_down().await;
    assert!(report.connections.timed_out && report.connections.open_responses == 2, "{report}");
    for client in clients {
        assert_eq!(client.rest().await, b"", "no last chunk");
    }
}

#[test]
fn a_media_type_is_a_type_and_a_subtype() {
    for good in ["text/event-stream", "application/x-ndjson", "application/vnd.a.b+json", "A/B"] {
        assert!(ActiveSessions::builder().listening_media_types([good]).build().is_ok(), "{good}");
    }
    assert!(ActiveSessions::builder().listening_media_types([""; 0]).build().is_ok());
    for bad in ["", "text", "text/", "/plain", "text/*", "*/*", "a/b/c", "a/b; c=d", " a/b", "a/b ", "a/ü", "a b/c"] {
        let error = ActiveSessions::builder().listening_media_types(["a/b", bad]).build().unwrap_err();
        assert!(matches!(&error, BuildError::InvalidMediaType { media_type, .. } if media_type == bad), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("listening_media_types") && text.contains("type/subtype"), "{text}");
    }
}

#[tokio::test]
async fn g10_a_listening_grpc_stream_ends_with_a_status_once_its_session_has_ended() {
    for method in [Method::GET, Method::POST] {
        let (_, sessions) = Recorder::sessions();
        let server = start(&sessions).await;
        let body = listen_h2(&server, method, "grpc-listening").await;
        drop(request(&server, "DELETE", "/end").await.head().await);
        assert_unavailable(trailers(body).await);
        assert!(server.shut_down().await.is_clean());
    }
}

#[tokio::test]
async fn g10_a_grpc_stream_that_is_cut_at_the_deadline_ends_with_a_status() {
    for what in ["grpc", "grpc-proto"] {
        let sessions = ActiveSessions::builder().connection_drain_timeout(Duration::from_millis(300)).build().unwrap();
        let server = start(&sessions).await;
        let body = listen_h2(&server, Method::POST, what).await;
        let end = tokio::spawn(trailers(body));
        let report = server.shut_down().await;
        assert!(report.connections.timed_out && report.connections.open_responses == 1, "{what}: {report}");
        assert_unavailable(end.await.unwrap());
    }
}

/// Without a socket: a client that takes in all that comes sends updates of its window until the end, and a server that
/// closes with one of them unread resets the connection.
#[tokio::test(start_paused = true)]
async fn g10_a_grpc_stream_that_is_never_pending_ends_with_a_status_too() {
    for is_forced in [true, false] {
        let (_, sessions) = Recorder::sessions();
        sessions.note("a");
        let torrent = stream::repeat_with(|| Ok::<_, Infallible>("hello\n"));
        let host = tower::service_fn(async |_: http::Request<()>| {
            let mut response = Response::new(Body::from_stream(torrent.clone()));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            if !is_forced {
                response.extensions_mut().insert(StreamKind::Listening);
            }
            Ok::<_, Infallible>(response)
        });
        let request = http::Request::post("/").version(Version::HTTP_2).header(ID, "a").body(()).unwrap();
        let layered = tower_layer::Layer::layer(&sessions.layer(), host);
        let mut body = tower::ServiceExt::oneshot(layered, request).await.unwrap().into_body();
        assert!(body.frame().await.unwrap().unwrap().is_data());
        match is_forced {
            true => stop(&sessions).await,
            false => assert!(sessions.end("a", EndReason::Deleted)),
        }
        let mut trailers = None;
        for _ in 0..10_000 {
            let Some(frame) = body.frame().await else { break };
            trailers = frame.unwrap().into_trailers().ok();
        }
        assert_unavailable(trailers);
        assert!(http_body::Body::is_end_stream(&body) && body.frame().await.is_none());
    }
}

#[tokio::test]
async fn g10_a_grpc_stream_that_a_second_signal_cuts_ends_with_a_status() {
    let sessions = ActiveSessions::builder().drain_timeout(LONG).settle_timeout(LONG).build().unwrap();
    let server = start(&sessions).await;
    let body = listen_h2(&server, Method::POST, "grpc").await;
    let shutdown = tokio::spawn(sessions.shutdown_on(async {
        let again = tokio::time::sleep(Duration::from_millis(50));
        ShutdownRequest::new(EndReason::Shutdown).forced_by(again)
    }));
    let report = within("finish", sessions.finish(std::future::pending::<()>())).await.report;
    assert!(report.forced, "{report}");
    within("the shutdown", shutdown).await.unwrap();
    assert_eq!(sessions.phase(), Phase::Closed);
    assert_unavailable(trailers(body).await);
    drop(server);
}

#[tokio::test]
async fn g10_what_is_not_grpc_over_http_2_is_cut_with_an_error() {
    let sessions = ActiveSessions::builder().connection_drain_timeout(Duration::from_millis(300)).build().unwrap();
    let server = start(&sessions).await;
    let web = listen_h2(&server, Method::POST, "grpc-web").await;
    let plain = listen_h2(&server, Method::POST, "ndjson").await;
    let http_1 = listen(&server, "POST", "grpc").await;
    let _ = server.shut_down().await;
    for body in [web, plain] {
        assert!(within("the end", body.collect()).await.is_err());
    }
    assert_eq!(http_1.rest().await, b"", "no last chunk");
}

/// A body with trailers of its own, and nothing after them.
fn with_trailers() -> Response {
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
    let steps = [Step::Data("one"), Step::Wait, Step::Data("two"), Step::Trailers(trailers), Step::Hang];
    let mut response = Response::new(Body::new(Script::new(steps, Hint::None)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

#[tokio::test]
async fn g18_the_trailers_of_a_grpc_host_are_its_own_and_come_once() {
    let (_, sessions) = Recorder::sessions();
    let marked = async || (StreamKind::Listening, with_trailers());
    let app = Router::new().route("/", any(marked)).layer(sessions.layer());
    let server = serve(&sessions, app.clone()).await;
    let request = || http::Request::post(format!("http://{}/", server.addr)).version(Version::HTTP_2);
    let response = within("a head", h2_client().request(request().body(Body::empty()).unwrap())).await.unwrap();
    let body = within("the end", response.into_body().collect()).await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body.to_bytes(), "onetwo");

    // Without a server: nothing follows the trailers when the session ends.
    let request = http::Request::post("/").version(Version::HTTP_2).header(ID, "a").body(Body::empty()).unwrap();
    sessions.note("a");
    let mut body = tower::ServiceExt::oneshot(app, request).await.unwrap().into_body();
    for _ in 0..2 {
        assert!(body.frame().await.unwrap().unwrap().is_data());
    }
    assert_eq!(body.frame().await.unwrap().unwrap().into_trailers().unwrap()["grpc-status"], "0");
    sessions.end("a", EndReason::Deleted);
    assert!(within("the end", body.frame()).await.is_none());
    assert!(server.shut_down().await.is_clean());
}

/// As a layer that compresses: it has something to say when the body ends.
async fn with_a_footer(response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let footer = stream::iter([Ok(Frame::data(Bytes::from_static(b"-- footer --")))]);
    let frames = http_body_util::BodyStream::new(body).chain(footer);
    Response::from_parts(parts, Body::new(StreamBody::new(frames)))
}

#[tokio::test]
async fn g10_a_layer_outside_sees_the_end_of_a_stream_and_completes_its_format() {
    let (_, sessions) = Recorder::sessions();
    let app = app(&Sent::default()).layer(sessions.layer()).layer(axum::middleware::map_response(with_a_footer));
    let server = serve(&sessions, app).await;
    sessions.note("a");
    let mut by_session = listen(&server, "GET", "events").await;
    let mut nobody = Raw::connect(server.addr).await;
    nobody.write("GET /stream?events HTTP/1.1\r\nhost: x\r\n\r\n").await;
    read_until(&mut nobody, &mut Vec::new(), "hello\n\r\n").await;
    drop(request(&server, "DELETE", "/end").await.head().await);
    let end = b"C\r\n-- footer --\r\n0\r\n\r\n";
    assert_eq!(by_session.exact(end.len()).await, end);
    assert!(server.shut_down().await.is_clean());
    assert_eq!(nobody.rest().await, end);
}
