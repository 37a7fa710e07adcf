//! HTTP/2 without TLS (prior knowledge): plain routes and gRPC on one port, under one layer, served by axum and by
//! hyper.

mod support;

use axum::{Router, routing::post};
use bytes::Bytes;
use grpc::{AgentServer, ChatRequest, Empty, OpenRequest};
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{By, Mode, OddAgent, RawClient, Recorder, call, message, serve_by, within};
use tokio::net::TcpStream;
use tonic::service::Routes;

/// Plain HTTP routes beside the gRPC services.
fn app(agent: OddAgent) -> Routes {
    let plain = Router::new()
        .route("/open", post(async || [("x-session-id", "plain")]))
        .route("/end", post(async || (StatusCode::NO_CONTENT, [("x-session-end", "reset")])));
    Routes::from(plain).add_service(AgentServer::new(agent))
}

fn request(addr: std::net::SocketAddr, path: &str, id: Option<&str>) -> Request<Full<Bytes>> {
    let mut request = Request::post(format!("http://{addr}{path}")).header("host", "agent");
    if let Some(id) = id {
        request = request.header("x-session-id", id);
    }
    request.body(Full::default()).unwrap()
}

#[tokio::test]
async fn plain_routes_and_grpc_share_a_port_and_a_layer() {
    for by in By::ALL {
        let (recorder, sessions) = Recorder::sessions();
        let server = serve_by(by, &sessions, Some(sessions.layer()), app(OddAgent::new().0)).await;

        let mut plain = RawClient::connect(server.addr).await;
        let opened = plain.send(request(server.addr, "/open", None)).await;
        assert_eq!((opened.status, opened.header("x-session-id")), (StatusCode::OK, Some(&b"plain"[..])), "{by:?}");
        // A gRPC call on the same connection, in the same session.
        let chat = message(&ChatRequest { message: "hello".into() });
        let chatted = plain.call("Chat", &[("x-session-id", "plain")], chat).await;
        assert_eq!(chatted.trailer("grpc-status"), Some(&b"0"[..]), "{by:?}");
        let ended = plain.send(request(server.addr, "/end", Some("plain"))).await;
        assert_eq!(ended.status, StatusCode::NO_CONTENT, "{by:?}");

        let mut client = server.client().await;
        client.open(OpenRequest { key: "rpc".into() }).await.unwrap();
        client.compact(call("rpc", Empty {})).await.unwrap();

        let report = server.shut_down().await;
        assert!(report.is_clean(), "{by:?}: {report}");
        assert_eq!(recorder.ended(), ["plain reset", "rpc compaction", "rpc-next shutdown"], "{by:?}");
        assert_eq!(recorder.started(), ["plain", "rpc", "rpc-next"], "{by:?}");
    }
}

#[tokio::test]
async fn g10_an_open_stream_over_h2c_does_not_exceed_the_budget() {
    for by in By::ALL {
        let recorder = Recorder::default();
        let budget = std::time::Duration::from_millis(400);
        let sessions = recorder.builder().connection_drain_timeout(budget).build().unwrap();
        let mut server = serve_by(by, &sessions, Some(sessions.layer()), app(OddAgent::new().0)).await;
        let mut client = server.client().await;
        client.open(OpenRequest { key: "a".into() }).await.unwrap();
        let mut ticks = client.watch(Mode::Stays.of(call("a", Empty {}))).await.unwrap().into_inner();
        within("a tick", ticks.message()).await.unwrap().unwrap();

        server.signal();
        let last = within("the end of the stream", async {
            loop {
                match ticks.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => break Ok(()),
                    Err(status) => break Err(status),
                }
            }
        })
        .await;
        let report = server.report().await;

        assert!(last.is_err(), "{by:?}: the client must see an error");
        assert!(report.connections.timed_out && report.sessions.is_clean(), "{by:?}: {report}");
        assert_eq!(recorder.ended(), ["a shutdown"], "{by:?}");
    }
}

#[tokio::test]
async fn axum_serves_http1_and_h2c_on_the_same_port() {
    let (recorder, sessions) = Recorder::sessions();
    let server = serve_by(By::Axum, &sessions, Some(sessions.layer()), app(OddAgent::new().0)).await;
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let (mut one, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let (mut two, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });

    let opened = within("h1", one.send_request(request(server.addr, "/open", None))).await.unwrap();
    assert_eq!((opened.version(), &opened.headers()["x-session-id"]), (Version::HTTP_11, &"plain".parse().unwrap()));
    within("h1 body", opened.into_body().collect()).await.unwrap();
    let ended = within("h2", two.send_request(request(server.addr, "/end", Some("plain")))).await.unwrap();
    assert_eq!((ended.version(), ended.status()), (Version::HTTP_2, StatusCode::NO_CONTENT));

    assert!(server.shut_down().await.is_clean());
    assert_eq!(recorder.ended(), ["plain reset"]);
}
