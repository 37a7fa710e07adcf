//! No axum: a plain Tower service behind hyper-util's server, HTTP/1 and HTTP/2 on one port, with the same layer and the
//! same bounded stop.
//!
//! ```text
//! cargo run --example hyper
//! ```
//!
//! One client for each protocol opens two sessions and ends one of them. Then the process is told to stop, while each
//! client waits for an answer: both get it.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    process::{Command, ExitCode},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{sleep, timeout},
};
use tower::{Layer, service_fn};
use tower_session_end::{ActiveSessions, BoxError, EndReason, SessionEnd, signal};
use tracing_subscriber::filter::LevelFilter;

async fn run() -> Result<(), BoxError> {
    let (ended, ends) = mpsc::unbounded_channel();
    let sessions = ActiveSessions::builder()
        .drain_timeout(Duration::from_secs(2))
        .connection_drain_timeout(Duration::from_secs(5))
        .on_session_end(move |end: SessionEnd| {
            println!("session_end    {:<10} {}", end.session.id, end.reason);
            let ended = ended.clone();
            async move { ended.send(end) }
        })
        .build()?;

    let (arrived, arrivals) = mpsc::unbounded_channel();
    let (closing, listener) = (sessions.clone(), TcpListener::bind("127.0.0.1:0").await?);
    let address = listener.local_addr()?;
    let service = sessions.layer().layer(service_fn(move |request| host(request, closing.clone(), arrived.clone())));

    let shutdown = sessions.shutdown_on(signal::terminate());
    // All of the server is one future, for `finish` to bound: first it accepts, also while the sessions drain, and then
    // it waits for its connections.
    let server = async move {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // hyper gives up on half a request head by itself, but only if it has a timer.
        builder.http1().timer(TokioTimer::new());
        let connections = GracefulShutdown::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let (stream, _) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, most likely: that is better in a while.
                        eprintln!("accept: {error}");
                        sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = &mut shutdown => break,
            };
            let service = TowerToHyperService::new(service.clone());
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
            let connection = connections.watch(connection);
            // A task of its own, not one of a `JoinSet` in here: when `finish` has to cut the server off, requests
            // without an answer get a 503, and somebody has to send it.
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    eprintln!("connection: {error}");
                }
            });
        }
        // Whoever connects from here on is refused, and can try another server.
        drop(listener);
        connections.shutdown().await;
    };

    let served = async { Ok(sessions.finish(server).await.into_result()?) };
    let (report, ()) = tokio::try_join!(served, visit(address, arrivals))?;
    println!("{report}");
    check_ends(ends)?;
    if !report.is_clean() {
        return Err("the stop was not clean".into());
    }
    println!("4 sessions over 2 protocols, and each of them had exactly one session_end");
    Ok(())
}

/// The host knows nothing of the layer but the headers.
async fn host<B>(
    request: Request<B>,
    sessions: ActiveSessions,
    arrived: mpsc::UnboundedSender<()>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let mut response = Response::new(Empty::new());
    match request.uri().path() {
        "/end" => {
            response.headers_mut().insert("x-session-end", http::HeaderValue::from_static("deleted"));
        }
        // An answer that is under way when the stop begins, and takes longer than the session drain.
        "/slow" => {
            let _ = arrived.send(());
            sessions.closing().await;
            sleep(Duration::from_millis(200)).await;
        }
        path => match path.strip_prefix("/open/").map(http::HeaderValue::from_str) {
            Some(Ok(id)) => {
                response.headers_mut().insert("x-session-id", id);
            }
            Some(Err(_)) | None => *response.status_mut() = StatusCode::NOT_FOUND,
        },
    }
    Ok(response)
}

/// What the clients do, and the operator.
async fn visit(address: SocketAddr, mut arrivals: mpsc::UnboundedReceiver<()>) -> Result<(), BoxError> {
    let one = Visitor::new(address, http::Version::HTTP_11);
    let two = Visitor::new(address, http::Version::HTTP_2);
    for (visitor, left, ended) in [(&one, "one-left", "one-ended"), (&two, "two-left", "two-ended")] {
        visitor.get(&format!("/open/{left}"), None).await?;
        visitor.get(&format!("/open/{ended}"), None).await?;
        visitor.get("/end", Some(ended)).await?;
    }

    let stop = async {
        // Both requests are under way.
        for _ in 0..2 {
            arrivals.recv().await.ok_or("the host is gone")?;
        }
        println!("telling myself to stop, with SIGTERM");
        raise_sigterm()?;
        Ok(())
    };
    let (one, two) = (one.get("/slow", Some("one-left")), two.get("/slow", Some("two-left")));
    tokio::try_join!(one, two, stop)?;
    Ok(())
}

/// A client that speaks one version only.
struct Visitor {
    address: SocketAddr,
    version: http::Version,
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Visitor {
    fn new(address: SocketAddr, version: http::Version) -> Self {
        let http2_only = version == http::Version::HTTP_2;
        let client = Client::builder(TokioExecutor::new()).http2_only(http2_only).build_http();
        Self { address, version, client }
    }

    async fn get(&self, path: &str, session: Option<&str>) -> Result<(), BoxError> {
        let mut request = Request::get(format!("http://{}{path}", self.address));
        if let Some(id) = session {
            request = request.header("x-session-id", id);
        }
        let response: Response<Incoming> = self.client.request(request.body(Empty::new())?).await?;
        if !response.status().is_success() || response.version() != self.version {
            return Err(format!("{path}: {} over {:?}", response.status(), response.version()).into());
        }
        // To its end, so that the connection can be used again.
        response.into_body().collect().await?;
        Ok(())
    }
}

/// The promise of the crate: one end for each session.
fn check_ends(mut ends: mpsc::UnboundedReceiver<SessionEnd>) -> Result<(), BoxError> {
    let mut seen = Vec::new();
    while let Ok(end) = ends.try_recv() {
        seen.push((end.session.id.to_string(), end.reason));
    }
    seen.sort();
    let expected = [
        ("one-ended", EndReason::Deleted),
        ("one-left", EndReason::Shutdown),
        ("two-ended", EndReason::Deleted),
        ("two-left", EndReason::Shutdown),
    ];
    let expected = expected.map(|(id, reason)| (id.to_owned(), reason));
    if seen == expected { Ok(()) } else { Err(format!("expected {expected:?}, got {seen:?}").into()) }
}

/// There is no safe call for this in std, but any shell has `kill`, and its parent is this process.
fn raise_sigterm() -> io::Result<()> {
    let kill = Command::new("sh").args(["-c", "kill -s TERM $PPID"]).status()?;
    if kill.success() { Ok(()) } else { Err(io::Error::other(format!("kill: {kill}"))) }
}

#[tokio::main]
async fn main() -> ExitCode {
    // The crate says what went wrong; in a good run that is nothing.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();

    let outcome = match timeout(Duration::from_secs(30), run()).await {
        Ok(outcome) => outcome,
        Err(_) => Err("did not stop within 30 s".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hyper failed: {error}");
            ExitCode::FAILURE
        }
    }
}
