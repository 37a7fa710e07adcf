//! A deployment that loses no request: the next version takes over the listener of the running one.
//!
//! ```text
//! cargo run --example handover
//! ```
//!
//! This process is the supervisor. It binds a listener, and starts version 1 of a gateway with it. While eight clients
//! send requests, it starts version 2 with the same listener, and sends SIGTERM to version 1. From its signal on,
//! version 1 accepts no connection (`accept_until_signal`), and tells its clients to come anew. Its sessions end, and
//! it exits. The program counts, and fails if a request was lost, if version 1 started a session while its own ended,
//! or if a session did not have exactly one `session_end`.

use std::{
    env,
    future::Future,
    io::{self, stdin},
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    process::{ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::post};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};
use tower_session_end::{ActiveSessions, BoxError, SessionEnd, SessionId, signal};
use tracing_subscriber::filter::LevelFilter;

/// The gateway, as a child process. Its listener is its standard input.
async fn gateway(version: &'static str) -> Result<(), BoxError> {
    let ends = Arc::new(AtomicU64::new(0));
    let starts = Arc::new(AtomicU64::new(0));
    let (started, ended) = (Arc::clone(&starts), Arc::clone(&ends));
    let sessions = ActiveSessions::builder()
        // Time for kept-alive connections: from the signal on, each gets its next answer with `connection: close`.
        .lame_duck_timeout(Duration::from_secs(1))
        .drain_timeout(Duration::from_secs(5))
        .on_session_start(move |_| {
            started.fetch_add(1, Ordering::SeqCst);
            async {}
        })
        .on_session_end(move |_: SessionEnd| {
            let ended = Arc::clone(&ended);
            async move {
                // In this time a listener that still accepted would get new sessions.
                sleep(Duration::from_millis(300)).await;
                ended.fetch_add(1, Ordering::SeqCst);
            }
        })
        .build()?;
    let signals = signal::terminate();

    let listener = std::net::TcpListener::from(stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let listener = sessions.accept_until_signal(TcpListener::from_std(listener)?);

    let handle = sessions.clone();
    let app = Router::new()
        .route("/", post(async move |id: Option<SessionId>| talk(version, &handle, id)))
        .layer(sessions.layer());
    println!("ready");
    let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signals));
    let report = sessions.finish(server).await.into_result()?;
    eprintln!("{version}: {report}");
    let (starts, ends) = (starts.load(Ordering::SeqCst), ends.load(Ordering::SeqCst));
    println!("{starts} {ends} {}", report.sessions.late_starts);
    if report.is_clean() { Ok(()) } else { Err("the shutdown was not clean".into()) }
}

/// Goes on with the session of the request, or starts one.
fn talk(
    version: &'static str,
    sessions: &ActiveSessions,
    id: Option<SessionId>,
) -> ([(&'static str, String); 1], &'static str) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let known = id.filter(|id| sessions.contains(id));
    let id = known.map_or_else(|| format!("{version}-{}", NEXT.fetch_add(1, Ordering::Relaxed)), |id| id.to_string());
    ([("x-session-id", id)], version)
}

/// A version of the gateway, as its supervisor sees it.
struct Version {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Version {
    async fn start(version: &str, listener: &std::net::TcpListener) -> Result<Self, BoxError> {
        let mut child = Command::new(env::current_exe()?)
            .arg(version)
            .stdin(Stdio::from(OwnedFd::from(listener.try_clone()?)))
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().ok_or("stdout is piped")?;
        let mut this = Self { child, lines: BufReader::new(stdout).lines() };
        this.line().await?;
        println!("{version} is ready");
        Ok(this)
    }

    async fn line(&mut self) -> Result<String, BoxError> {
        Ok(self.lines.next_line().await?.ok_or("the gateway has exited")?)
    }

    /// Sends SIGTERM, waits for the exit, and checks the counts. Returns the number of its sessions.
    async fn stop(mut self) -> Result<u64, BoxError> {
        let id = self.child.id().ok_or("the gateway has exited")?;
        // std has no safe call for this.
        let kill = Command::new("sh").arg("-c").arg(format!("kill -s TERM {id}")).status().await?;
        if !kill.success() {
            return Err(format!("kill: {kill}").into());
        }
        let counts = self.line().await?;
        let status = self.child.wait().await?;
        let counts = counts.split(' ').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        match counts[..] {
            [starts, ends, 0] if starts == ends && status.success() => Ok(starts),
            _ => Err(format!("[starts, ends, late starts] = {counts:?}, {status}").into()),
        }
    }
}

/// The clients, and what they got.
#[derive(Clone, Default)]
struct Clients {
    by_v1: Arc<AtomicU64>,
    by_v2: Arc<AtomicU64>,
    are_done: Arc<AtomicBool>,
}

impl Clients {
    /// One client after the other, each with a connection and a session of its own for 20 requests.
    async fn run(self, address: SocketAddr) -> Result<(), BoxError> {
        while !self.are_done.load(Ordering::SeqCst) {
            // A request that is lost is an error, and is not sent again.
            let client = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build_http();
            let mut session = None;
            for _ in 0..20 {
                let mut request = http::Request::post(format!("http://{address}/"));
                if let Some(id) = &session {
                    request = request.header("x-session-id", id);
                }
                let response = client.request(request.body(Empty::<Bytes>::new())?).await?;
                if !response.status().is_success() {
                    return Err(response.status().to_string().into());
                }
                session = response.headers().get("x-session-id").cloned();
                // Reads to the end, so that the connection can be reused.
                let version = response.into_body().collect().await?.to_bytes();
                let by = if version == "v1" { &self.by_v1 } else { &self.by_v2 };
                by.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_millis(1)).await;
            }
        }
        Ok(())
    }
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        sleep(Duration::from_millis(5)).await;
    }
}

/// Replaces version 1 by version 2, which it returns.
async fn deploy(clients: Clients, listener: std::net::TcpListener) -> Result<Version, BoxError> {
    let v1 = Version::start("v1", &listener).await?;
    until(|| clients.by_v1.load(Ordering::SeqCst) > 500).await;
    let v2 = Version::start("v2", &listener).await?;
    println!("sending SIGTERM to v1");
    let sessions = v1.stop().await?;
    println!("v1 has exited: {sessions} sessions, each with one session_end; started in its drain: 0");
    let before = clients.by_v2.load(Ordering::SeqCst);
    until(|| clients.by_v2.load(Ordering::SeqCst) > before + 500).await;
    clients.are_done.store(true, Ordering::SeqCst);
    Ok(v2)
}

async fn supervisor() -> Result<(), BoxError> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let clients = Clients::default();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..8 {
        running.spawn(clients.clone().run(address));
    }
    let all = async {
        while let Some(client) = running.join_next().await {
            client??;
        }
        Ok(())
    };
    let ((), v2) = tokio::try_join!(all, deploy(clients.clone(), listener))?;
    let sessions = v2.stop().await?;
    println!("v2 has exited: {sessions} sessions, each with one session_end");
    let (by_v1, by_v2) = (clients.by_v1.load(Ordering::SeqCst), clients.by_v2.load(Ordering::SeqCst));
    println!("{} requests, {by_v1} to v1 and {by_v2} to v2, and each was answered", by_v1 + by_v2);
    Ok(())
}

async fn limited(run: impl Future<Output = Result<(), BoxError>>) -> Result<(), BoxError> {
    timeout(Duration::from_secs(30), run).await.unwrap_or_else(|_| Err("not over within 30 s".into()))
}

#[tokio::main]
async fn main() -> ExitCode {
    // Shows warnings and errors; a successful run logs none.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();

    let outcome = match env::args().nth(1).as_deref() {
        Some("v1") => limited(gateway("v1")).await,
        Some("v2") => limited(gateway("v2")).await,
        _ => limited(supervisor()).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("handover failed: {error}");
            ExitCode::FAILURE
        }
    }
}
