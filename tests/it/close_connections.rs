//! From the lame duck on, clients that keep connections alive are told to go elsewhere.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{Raw, Recorder, Running, h2_client, serve, within};
use axum::{
    Router,
    body::Body,
    response::IntoResponse,
    routing::{any, post},
};
use http::{HeaderMap, Request, Response, StatusCode, Version, header::CONNECTION};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};
use tower::ServiceExt;
use tower_layer::Layer;
use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, Phase};

/// A lame duck that no test waits for.
const LONG: Duration = Duration::from_secs(600);

fn app() -> Router {
    let upgrade = (StatusCode::SWITCHING_PROTOCOLS, [("connection", "upgrade"), ("upgrade", "x")]);
    Router::new()
        .route("/", any(async || "fine"))
        .route("/start", post(async || ([("x-session-id", "a")], "fine")))
        .route("/keep-alive", any(async || ([("connection", "keep-alive, X-Hop")], "fine")))
        .route("/upgrade", any(async move || upgrade.into_response()))
        .route(
            "/stream",
            any(async || Body::from_stream(futures_util::stream::iter([Ok::<_, std::io::Error>("fine")]))),
        )
}

/// A server in the phase of the lame duck.
async fn lame_duck(builder: ActiveSessionsBuilder) -> (ActiveSessions, Running) {
    let sessions = builder.lame_duck_timeout(LONG).build().unwrap();
    let mut server = serve(&sessions, app().layer(sessions.layer())).await;
    server.signal();
    within("the lame duck", async {
        while sessions.phase() != Phase::LameDuck {
            tokio::task::yield_now().await;
        }
    })
    .await;
    (sessions, server)
}

/// The values of `connection` in the head of the response to these bytes.
async fn connection(addr: SocketAddr, request: &str) -> Vec<String> {
    let mut client = Raw::connect(addr).await;
    client.write(request).await;
    let head = client.head().await.to_ascii_lowercase();
    head.lines().filter_map(|line| line.strip_prefix("connection: ").map(str::to_owned)).collect()
}

#[tokio::test]
async fn g08_from_the_lame_duck_on_every_http_1_response_says_close() {
    let (sessions, server) = lame_duck(ActiveSessions::builder()).await;
    for path in ["/", "/start", "/stream", "/missing"] {
        let request = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(connection(server.addr, &request).await, ["close"], "{path}");
    }
    assert!(sessions.contains("a"), "everything else goes on");
    let http_1_0 = "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n";
    assert_eq!(connection(server.addr, http_1_0).await, ["close"]);
    // The host's own word is replaced, but for the names of its hop-by-hop headers.
    let keep_alive = "GET /keep-alive HTTP/1.1\r\nhost: x\r\n\r\n";
    assert_eq!(connection(server.addr, keep_alive).await, ["x-hop, close"]);
    // It is true: the server closes.
    let mut client = Raw::connect(server.addr).await;
    client.write("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(client.rest().await.ends_with(b"fine"));
}

#[tokio::test]
async fn g08_before_the_shutdown_no_response_says_close() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let server = serve(&sessions, app().layer(sessions.layer())).await;
    let none: [&str; 0] = [];
    assert_eq!(connection(server.addr, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await, none);
    assert_eq!(connection(server.addr, "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await, ["keep-alive"]);
    assert!(server.shut_down().await.is_clean());
}

#[tokio::test]
async fn g08_an_upgrade_and_http_2_do_not_say_close() {
    let (sessions, server) = lame_duck(ActiveSessions::builder()).await;
    let upgrade = "GET /upgrade HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    assert_eq!(connection(server.addr, upgrade).await, ["upgrade"]);
    let client = h2_client();
    for _ in 0..2 {
        let request = Request::get(format!("http://{}/", server.addr)).body(Body::empty()).unwrap();
        let response = within("a head", client.request(request)).await.unwrap();
        assert_eq!((response.version(), response.headers().get(CONNECTION)), (Version::HTTP_2, None));
    }
    // A server removes the header from an HTTP/2 response, so what the layer does is seen without one.
    for (version, expected) in [
        (Version::HTTP_09, Some("close")),
        (Version::HTTP_10, Some("close")),
        (Version::HTTP_11, Some("close")),
        (Version::HTTP_2, None),
        (Version::HTTP_3, None),
    ] {
        let request = Request::get("/").version(version).body(Body::empty()).unwrap();
        let response = sessions.layer().layer(app()).oneshot(request).await.unwrap();
        let value = response.headers().get(CONNECTION).map(|value| value.to_str().unwrap());
        assert_eq!(value, expected, "{version:?}");
    }
}

#[tokio::test]
async fn g08_it_can_be_switched_off() {
    let (_, server) = lame_duck(ActiveSessions::builder().close_connections(false)).await;
    let none: [&str; 0] = [];
    assert_eq!(connection(server.addr, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await, none);
    assert_eq!(connection(server.addr, "GET /keep-alive HTTP/1.1\r\nhost: x\r\n\r\n").await, ["keep-alive, x-hop"]);
}

#[tokio::test]
async fn g08_the_options_of_a_connection_header_are_kept() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let _ = sessions.drain(tower_session_end::EndReason::Shutdown).await;
    for (values, expected) in [
        (&[][..], "close"),
        (&["close"], "close"),
        (&["Keep-Alive"], "close"),
        (&["Close", "keep-alive , ,"], "close"),
        (&["upgrade"], "upgrade, close"),
        (&["x-a,  X-B", "keep-alive", "x-c"], "x-a, X-B, x-c, close"),
    ] {
        let host = tower::service_fn(async |_: Request<()>| {
            let mut response = Response::new(String::from("fine"));
            for value in values {
                response.headers_mut().append(CONNECTION, value.parse().unwrap());
            }
            Ok::<_, std::convert::Infallible>(response)
        });
        let response = sessions.layer().layer(host).oneshot(Request::new(())).await.unwrap();
        let headers: &HeaderMap = response.headers();
        assert_eq!(headers.get_all(CONNECTION).iter().collect::<Vec<_>>(), [expected], "{values:?}");
    }
}

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    told: AtomicUsize,
    lost: AtomicUsize,
    moved: AtomicUsize,
}

/// The head of the next response, and its body; `None` if the connection ends first.
async fn response(stream: &mut TcpStream) -> Option<String> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\nfine") {
        if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
            return None;
        }
    }
    Some(String::from_utf8(read).unwrap().to_ascii_lowercase())
}

/// Posts every 50 ms over one connection, and goes to the other server once it is told to, or its connection ends.
async fn client(first: SocketAddr, elsewhere: SocketAddr, seen: Arc<Seen>) {
    let mut stream = TcpStream::connect(first).await.unwrap();
    let mut on_the_other = 0;
    let mut is_elsewhere = false;
    while on_the_other < 2 {
        let request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
        let answer = match stream.write_all(request).await {
            Ok(()) => response(&mut stream).await,
            Err(_) => None,
        };
        let is_told = answer.as_ref().is_some_and(|head| head.contains("\r\nconnection: close\r\n"));
        if answer.is_none() {
            seen.lost.fetch_add(1, Ordering::SeqCst);
        }
        if is_elsewhere {
            on_the_other += 1;
        } else if is_told || answer.is_none() {
            seen.told.fetch_add(usize::from(is_told), Ordering::SeqCst);
            seen.moved.fetch_add(1, Ordering::SeqCst);
            stream = TcpStream::connect(elsewhere).await.unwrap();
            is_elsewhere = true;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn g08_clients_that_keep_connections_alive_go_elsewhere_before_the_listener_closes() {
    const CLIENTS: usize = 32;
    let (_, elsewhere) = Recorder::sessions();
    let other = serve(&elsewhere, app().layer(elsewhere.layer())).await;
    let sessions = ActiveSessions::builder().lame_duck_timeout(Duration::from_secs(2)).build().unwrap();
    let mut server = serve(&sessions, app().layer(sessions.layer())).await;
    let seen = Arc::new(Seen::default());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(client(server.addr, other.addr, Arc::clone(&seen)));
    }
    sleep(Duration::from_millis(100)).await;
    server.signal();
    let report = server.report().await;
    assert!(report.is_clean(), "{report}");
    within("the clients", clients.join_all()).await;
    let count = |count: &AtomicUsize| count.load(Ordering::SeqCst);
    assert_eq!((count(&seen.told), count(&seen.moved), count(&seen.lost)), (CLIENTS, CLIENTS, 0), "told, moved, lost");
    assert!(other.shut_down().await.is_clean());
}
