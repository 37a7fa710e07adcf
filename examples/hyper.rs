//! Without axum: a plain Tower service behind hyper-util's server, with HTTP/1 and HTTP/2 on one port, the same layer
//! and the same bounded shutdown.
//!
//! ```text
//! cargo run --example hyper
//! ```
//!
//! One client per protocol starts two sessions and ends one of them. Then the process receives SIGTERM while each
//! client waits for an answer. Both get it.

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
    // The whole server is one future, which `finish` bounds. It accepts connections until the sessions have drained,
    // and then waits for its connections.
    let server = async move {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // hyper times out half a request head, but only if it has a timer.
        builder.http1().timer(TokioTimer::new());
        let connections = GracefulShutdown::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let (stream, _) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Most likely out of file descriptors: tries again after a pause.
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
            // A separate task, not one of a `JoinSet` in this future: if `finish` drops this future at the deadline,
            // requests without an answer get a 503, and this task sends it.
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    eprintln!("connection: {error}");
                }
            });
        }
        // New connections are refused from here on, so that clients can try another server.
        drop(listener);
        connections.shutdown().await;
    };

    let served = async { Ok(sessions.finish(server).await.into_result()?) };
    let (report, ()) = tokio::try_join!(served, visit(address, arrivals))?;
    println!("{report}");
    check_ends(ends)?;
    if !report.is_clean() {
        return Err("the shutdown was not clean".into());
    }
    println!("4 sessions over 2 protocols, and each of them had exactly one session_end");
    Ok(())
}

/// The host only sets the headers that the layer reads.
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
        // An answer that is in flight when the shutdown begins, and takes longer than the session drain.
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

/// The requests of the clients, and the SIGTERM of the operator.
async fn visit(address: SocketAddr, mut arrivals: mpsc::UnboundedReceiver<()>) -> Result<(), BoxError> {
    let one = Visitor::new(address, http::Version::HTTP_11);
    let two = Visitor::new(address, http::Version::HTTP_2);
    for (visitor, left, ended) in [(&one, "one-left", "one-ended"), (&two, "two-left", "two-ended")] {
        visitor.get(&format!("/open/{left}"), None).await?;
        visitor.get(&format!("/open/{ended}"), None).await?;
        visitor.get("/end", Some(ended)).await?;
    }

    let stop = async {
        // Waits until both requests are in flight.
        for _ in 0..2 {
            arrivals.recv().await.ok_or("the host has exited")?;
        }
        println!("sending SIGTERM to this process");
        raise_sigterm()?;
        Ok(())
    };
    let (one, two) = (one.get("/slow", Some("one-left")), two.get("/slow", Some("two-left")));
    tokio::try_join!(one, two, stop)?;
    Ok(())
}

/// A client that uses one version of HTTP.
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
        // Reads to the end, so that the connection can be reused.
        response.into_body().collect().await?;
        Ok(())
    }
}

/// Checks the guarantee of the crate: exactly one end for each session.
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

/// std has no safe call for this. The shell that runs `kill` is a child of this process.
fn raise_sigterm() -> io::Result<()> {
    let kill = Command::new("sh").args(["-c", "kill -s TERM $PPID"]).status()?;
    if kill.success() { Ok(()) } else { Err(io::Error::other(format!("kill: {kill}"))) }
}

#[tokio::main]
async fn main() -> ExitCode {
    // Shows warnings and errors; a successful run logs none.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();

    let outcome = match timeout(Duration::from_secs(30), run()).await {
        Ok(outcome) => outcome,
        Err(_) => Err("did not shut down within 30 s".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hyper failed: {error}");
            ExitCode::FAILURE
        }
    }
}
