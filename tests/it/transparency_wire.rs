//! The layer is not there, on the wire: the same bytes with it and without it, over HTTP/1, HTTP/2 and upgrades.

use crate::support::{Hint, Raw, Script, Step, h2_client, serve, within};
use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Redirect, Response},
    routing::{any, get, post},
};
use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_session_end::{ActiveSessions, EndReason, SessionGuard};

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())])
}

fn script(steps: impl IntoIterator<Item = Step>, hint: Hint) -> Response {
    Response::new(Body::new(Script::new(steps, hint)))
}

/// A host with every kind of response. The date is fixed, so that two recordings can be equal.
fn host() -> Router {
    let stream = async || script([Step::Data("one"), Step::Wait, Step::Data("two")], Hint::None);
    let with_trailers = async || {
        let steps = [Step::Data("one"), Step::Wait, Step::Data("two"), Step::Trailers(trailers())];
        let mut response = script(steps, Hint::None);
        response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
        response
    };
    // The server flushes while it waits; what is torn before that, a client never sees.
    let torn = async || script([Step::Data("one"), Step::Wait, Step::Wait, Step::Fail("torn")], Hint::None);
    let echo = async |request: Request| {
        let headers: Vec<_> = request.headers().iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        let collected = request.into_body().collect().await.unwrap();
        let trailers = collected.trailers().cloned();
        format!("{headers:?} {trailers:?} {:?}", collected.to_bytes())
    };
    Router::new()
        .route("/text", get(async || "text"))
        .route("/empty", any(async || StatusCode::NO_CONTENT))
        .route("/redirect", get(async || Redirect::temporary("/text")))
        .route("/not-modified", get(async || (StatusCode::NOT_MODIFIED, [("etag", "\"1\"")])))
        .route("/error", get(async || (StatusCode::INTERNAL_SERVER_ERROR, "broken")))
        .route("/exact", get(async || script([Step::Data("one"), Step::Data("two")], Hint::Exact)))
        .route("/stream", get(stream))
        .route("/trailers", get(with_trailers))
        .route("/torn", get(torn))
        .route("/session", get(async || ([("x-session-id", "a"), ("x-session-end", "reset")], "session")))
        .route("/echo", post(echo))
        .layer(axum::middleware::map_response(async |mut response: Response| {
            response.headers_mut().insert(header::DATE, HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"));
            response
        }))
}

const REQUESTS: [&str; 18] = [
    "GET /text HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "HEAD /text HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "GET /text HTTP/1.0\r\n\r\n",
    "GET /text HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET /empty HTTP/1.0\r\n\r\n",
    "GET /text HTTP/1.1\r\nhost: x\r\n\r\nGET /stream HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "GET /empty HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "OPTIONS /empty HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "GET /redirect HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "GET /not-modified HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "GET /error HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "GET /missing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "PUT /text HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "GET /exact HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "GET /trailers HTTP/1.1\r\nhost: x\r\nte: trailers\r\nconnection: close\r\n\r\n",
    "GET /torn HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    "GET /session HTTP/1.1\r\nhost: x\r\nx-session-id: b\r\nconnection: close\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\nX-Session-Id: c\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody",
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
     4\r\nbody\r\n0\r\nx-sum: 4\r\n\r\n",
];

#[tokio::test]
async fn g18_a_recorded_exchange_is_the_same_with_and_without_the_layer() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let without = serve(&ActiveSessions::builder().build().unwrap(), host()).await;
    let with = serve(&sessions, host().layer(sessions.layer())).await;
    for request in REQUESTS {
        let mut recorded = Vec::new();
        for addr in [without.addr, with.addr] {
            let mut client = Raw::connect(addr).await;
            client.write(request).await;
            recorded.push(String::from_utf8(client.rest().await).unwrap());
        }
        assert!(recorded[0].starts_with("HTTP/1."), "{request:?}: {:?}", recorded[0]);
        assert_eq!(recorded[1], recorded[0], "{request:?}");
    }
    assert!(with.shut_down().await.is_clean() && without.shut_down().await.is_clean());
}

#[tokio::test]
async fn g18_trailers_and_sizes_pass_through_http2() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let server = serve(&sessions, host().layer(sessions.layer())).await;
    let client = h2_client();
    let call = async |path: &str| {
        let request = Request::get(format!("http://{}{path}", server.addr)).body(Body::empty()).unwrap();
        within(path, client.request(request)).await.unwrap()
    };
    let response = call("/trailers").await;
    assert_eq!((response.version(), response.status()), (Version::HTTP_2, StatusCode::OK));
    let body = within("a body", response.into_body().collect()).await.unwrap();
    assert_eq!(body.trailers(), Some(&trailers()));
    assert_eq!(body.to_bytes(), "onetwo");
    assert_eq!(call("/exact").await.headers()[header::CONTENT_LENGTH], "6");
    assert!(!call("/stream").await.headers().contains_key(header::CONTENT_LENGTH));
    // Of a body that ends with its head, the client knows so at once.
    assert!(http_body::Body::is_end_stream(call("/empty").await.body()));
    let torn = Request::get(format!("http://{}/torn", server.addr)).body(Body::empty()).unwrap();
    // The reset may overtake the head.
    if let Ok(response) = within("a torn head", client.request(torn)).await {
        assert!(within("a torn body", response.into_body().collect()).await.is_err());
    }
    drop(client);
    assert!(server.shut_down().await.is_clean());
}

/// A host that speaks another protocol after the head, and ties a session to it.
async fn upgrade(sessions: ActiveSessions, mut request: Request) -> Response {
    let upgrading = hyper::upgrade::on(&mut request);
    let guard: SessionGuard = sessions.guard("socket").unwrap();
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrading.await.unwrap());
        let mut bytes = [0; 4];
        while io.read_exact(&mut bytes).await.is_ok() {
            bytes.reverse();
            io.write_all(&bytes).await.unwrap();
        }
        guard.end(EndReason::Idle);
    });
    let headers = [("connection", "upgrade"), ("upgrade", "reverse"), ("x-session-id", "socket")];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

#[tokio::test]
async fn g18_an_upgrade_passes_through() {
    let (recorder, sessions) = crate::support::Recorder::sessions();
    let server = serve(&sessions, Router::new().route("/", get(upgrade)).layer(sessions.layer())).await;
    let mut client = Raw::connect(server.addr).await;
    client.write("GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: reverse\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: reverse\r\n"), "{head}");
    assert!(sessions.contains("socket"), "the head opened what the guard had noted");
    for (sent, expected) in [("abcd", "dcba"), ("1234", "4321")] {
        client.write(sent).await;
        assert_eq!(client.exact(4).await, expected.as_bytes());
    }
    client.write("half").await;
    assert_eq!(client.exact(4).await, b"flah");
    assert!(recorder.ended().is_empty());
    drop(client);
    let report = server.shut_down().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(recorder.ended().len(), 1);
    assert_eq!(recorder.started(), ["socket"]);
}
