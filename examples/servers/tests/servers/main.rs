//! Each server as a process of its own, with a real client and a real SIGTERM: one session starts, and has one end.

mod guide;
mod process;
mod systemd;

use std::{path::Path, sync::Arc};

use http_body_util::Empty;
use hyper::{Request, StatusCode, body::Bytes};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, pki_types::ServerName},
};

use crate::process::{Dir, Process, within};

/// Posts `/chat` and returns the id of its session. The connection stays open for as long as what else is returned.
async fn chat(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, is_http2: bool) -> (String, impl Sized) {
    let (io, request) = (TokioIo::new(stream), Request::post("https://localhost/chat"));
    let request = request.header("host", "localhost").body(Empty::<Bytes>::new()).unwrap();
    if is_http2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        (id(&within("a response", sender.send_request(request)).await.unwrap()), (Some(sender), None))
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        (id(&within("a response", sender.send_request(request)).await.unwrap()), (None, Some(sender)))
    }
}

fn id<B>(response: &hyper::Response<B>) -> String {
    assert_eq!(response.status(), StatusCode::OK);
    response.headers()["x-session-id"].to_str().unwrap().to_owned()
}

/// A certificate of this machine, in two files, and a client that trusts it.
fn certificate(dir: &Dir, protocol: &[u8]) -> (String, String, TlsConnector) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (dir.path("certificate.pem"), dir.path("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    (certificate, key, TlsConnector::from(Arc::new(config)))
}

async fn over_tls(protocol: &[u8]) {
    let dir = Dir::new();
    let (certificate, key, connector) = certificate(&dir, protocol);
    let mut process = Process::start(&["tls", &certificate, &key], &[]).await;
    let address = process.line_after("ready ").await;
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = within("a handshake", connector.connect(name, tcp)).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
    let (id, connection) = chat(stream, protocol == b"h2").await;
    process.terminate().await;
    assert_eq!(process.ends().await, [format!("{id} ended: shutdown")]);
    drop(connection);
}

#[tokio::test]
async fn axum_server_with_tls_over_http1() {
    over_tls(b"http/1.1").await;
}

#[tokio::test]
async fn axum_server_with_tls_over_http2() {
    over_tls(b"h2").await;
}

async fn on_a_unix_socket(server: &str) {
    let dir = Dir::new();
    let socket = dir.path("gateway.sock");
    let mut process = Process::start(&[server, &socket], &[]).await;
    assert!(Path::new(&process.line_after("ready ").await).exists());
    let (id, connection) = chat(UnixStream::connect(&socket).await.unwrap(), false).await;
    process.terminate().await;
    assert_eq!(process.ends().await, [format!("{id} ended: shutdown")]);
    drop(connection);
}

#[tokio::test]
async fn axum_on_a_unix_socket() {
    on_a_unix_socket("unix").await;
}

#[tokio::test]
async fn hyper_on_a_unix_socket() {
    on_a_unix_socket("hyper").await;
}

#[tokio::test]
async fn a_worker_without_http() {
    let mut process = Process::start(&["worker"], &[]).await;
    process.write("reading\ndone\n").await;
    let mut lines = vec![process.line().await, process.line().await, process.line().await];
    lines.sort();
    assert_eq!(lines, ["done ended: deleted", "done started", "reading started"]);
    process.terminate().await;
    assert_eq!(process.ends().await, ["reading ended: shutdown"]);
}
