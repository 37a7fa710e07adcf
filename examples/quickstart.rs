//! The crate in one run: a real axum server, a real client, a real SIGTERM.
//!
//! ```text
//! cargo run --example quickstart
//! ```
//!
//! Three sessions start. One is reset, and one is compacted into a successor. Then the process receives SIGTERM, while
//! the store behind the hook is still writing these two ends. One more session starts *during* the drain. Every
//! session gets exactly one `session_end`; the program counts them, and fails otherwise.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    process::{Command, ExitCode},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, extract::Path, http::StatusCode, routing::post};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::net::TcpListener;
use tower_session_end::{
    ActiveSessions, BoxError, DrainWatch, GenerationId, Session, SessionEnd, SessionHook, SessionId, SessionStart,
    SessionUpdate, signal,
};
use tracing_subscriber::filter::LevelFilter;

/// Sessions that start in this run: three, the successor of a compaction, and one during the drain.
const GENERATIONS: u64 = 5;

async fn run() -> Result<(), BoxError> {
    // 1. The handle tracks the active sessions. It takes your hooks and the time budget of the shutdown.
    let event_log = EventLog::new();
    let sessions = ActiveSessions::builder().drain_timeout(Duration::from_secs(2)).hook(event_log.clone()).build()?;

    // 2. The layer reads the responses of your handlers.
    let app = Router::new()
        .route("/open/{key}", post(open))
        .route("/reset", post(reset))
        .route("/compact/{key}", post(compact))
        .layer(sessions.layer());

    // 3. On SIGTERM or Ctrl-C the sessions are drained first, the connections after them.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signal::terminate()));

    // 4. A watch of the drain, for a progress bar or a log.
    tokio::spawn(show(sessions.drain_progress(), event_log.bar.clone()));

    // 5. `finish` runs the server, bounds its shutdown, and returns the report. This is all that a gateway needs; this
    //    example also runs its own client at the same time.
    let served = async { Ok(sessions.finish(server).await.into_result()?) };
    let (report, ()) = tokio::try_join!(served, visit(address, &sessions, &event_log))?;

    event_log.bar.finish_and_clear();
    println!("\n{report}");
    event_log.check()
}

/// Shows the drain on the bar, and prints a line a second while it lasts. This one is over sooner.
async fn show(mut watch: DrainWatch, bar: ProgressBar) {
    let mut last_line = None;
    while let Some(progress) = watch.changed().await {
        bar.set_length(progress.of);
        bar.set_position(progress.ended);
        if last_line.get_or_insert_with(Instant::now).elapsed() >= Duration::from_secs(1) {
            bar.suspend(|| println!("draining: {progress}"));
            last_line = Some(Instant::now());
        }
    }
}

/// Starts a session. A [`SessionUpdate`] can carry more than a header, and is never sent. The header is for the
/// client. The layer reads both, and starts the session once.
async fn open(Path(key): Path<String>) -> Result<(SessionUpdate, [(&'static str, String); 1]), StatusCode> {
    let id = new_id(&key)?;
    let header = [("x-session-id", id.to_string())];
    Ok((SessionUpdate::started(Session::new(id).with_key(key)), header))
}

/// Ends the session of the request. A header is enough, so a host needs no code for this crate.
async fn reset(_: SessionId) -> [(&'static str, &'static str); 1] {
    [("x-session-end", "reset")]
}

/// Continues under a new id: ends the old session and starts its successor, in one step.
async fn compact(
    old: SessionId,
    Path(key): Path<String>,
) -> Result<(SessionUpdate, [(&'static str, String); 1]), StatusCode> {
    let id = new_id(&key)?;
    let header = [("x-session-id", id.to_string())];
    Ok((SessionUpdate::compacted(old, Session::new(id).with_key(key)), header))
}

/// Readable ids for this example. In production, use ids that a client cannot guess.
fn new_id(key: &str) -> Result<SessionId, StatusCode> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    SessionId::new(format!("{key}-{number}")).map_err(|_| StatusCode::BAD_REQUEST)
}

/// The requests of the clients, and the SIGTERM of the operator.
async fn visit(address: SocketAddr, sessions: &ActiveSessions, event_log: &EventLog) -> Result<(), BoxError> {
    let visitor = Visitor { address, client: Client::builder(TokioExecutor::new()).build_http() };
    visitor.post("/open/telegram", None).await?;
    let discord = visitor.post("/open/discord", None).await?;
    let slack = visitor.post("/open/slack", None).await?;
    visitor.post("/reset", discord).await?;
    visitor.post("/compact/slack", slack).await?;

    event_log.print("sending SIGTERM to this process");
    event_log.bar.set_draw_target(ProgressDrawTarget::stderr());
    raise_sigterm()?;

    // The server still accepts requests while the drain runs: this session starts during the drain.
    sessions.closing().await;
    visitor.post("/open/matrix", None).await?;
    Ok(())
}

/// std has no safe call for this. The shell that runs `kill` is a child of this process.
fn raise_sigterm() -> io::Result<()> {
    let kill = Command::new("sh").args(["-c", "kill -s TERM $PPID"]).status()?;
    if kill.success() { Ok(()) } else { Err(io::Error::other(format!("kill: {kill}"))) }
}

struct Visitor {
    address: SocketAddr,
    client: Client<HttpConnector, Empty<Bytes>>,
}

impl Visitor {
    /// Posts, with a session id if given; returns the session id of the answer.
    async fn post(&self, path: &str, session: Option<String>) -> Result<Option<String>, BoxError> {
        let mut request = axum::http::Request::post(format!("http://{}{path}", self.address));
        if let Some(id) = session {
            request = request.header("x-session-id", id);
        }
        let response = self.client.request(request.body(Empty::new())?).await?;
        if !response.status().is_success() {
            return Err(format!("{path}: {}", response.status()).into());
        }
        let id = response.headers().get("x-session-id").map(|id| id.to_str().map(str::to_owned)).transpose()?;
        // Reads to the end, so that the connection can be reused.
        response.into_body().collect().await?;
        Ok(id)
    }
}

/// The consumer of the events: prints and counts them.
#[derive(Clone)]
struct EventLog {
    /// Starts and ends by generation. A session id may be reused; a generation id never is.
    seen: Arc<Mutex<HashMap<GenerationId, (u32, u32)>>>,
    /// A store with one connection. The ends wait for it, so that the drain takes visible time.
    store: Arc<tokio::sync::Mutex<()>>,
    bar: ProgressBar,
}

impl SessionHook for EventLog {
    async fn session_start(&self, start: SessionStart) -> Result<(), BoxError> {
        let key = start.session.key.as_deref().unwrap_or("-");
        match &start.resumed_from {
            Some(old) => self.print(&format!("session_start  {:<12} {key}, resumed from {old}", start.session.id)),
            None => self.print(&format!("session_start  {:<12} {key}", start.session.id)),
        }
        self.count(start.generation, |(starts, _)| *starts += 1);
        Ok(())
    }

    async fn session_end(&self, end: SessionEnd) -> Result<(), BoxError> {
        let one_at_a_time = self.store.lock().await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        drop(one_at_a_time);

        match &end.next {
            Some(next) => self.print(&format!("session_end    {:<12} {} into {}", end.session.id, end.reason, next.id)),
            None => self.print(&format!("session_end    {:<12} {}", end.session.id, end.reason)),
        }
        self.count(end.generation, |(_, ends)| *ends += 1);
        Ok(())
    }
}

impl EventLog {
    fn new() -> Self {
        // Hidden until the shutdown, and always if stderr is not a terminal.
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{spinner} draining {wide_bar} {pos} of {len} session_end");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(50));
        Self { seen: Arc::default(), store: Arc::default(), bar }
    }

    /// Prints a line above the bar.
    fn print(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }

    fn count(&self, event: GenerationId, add: impl FnOnce(&mut (u32, u32))) {
        add(self.seen.lock().unwrap_or_else(PoisonError::into_inner).entry(event).or_default());
    }

    /// Checks the guarantee of the crate: one start and one end for each generation of each session.
    fn check(&self) -> Result<(), BoxError> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((event, (starts, ends))) = seen.iter().find(|(_, counts)| **counts != (1, 1)) {
            return Err(format!("generation {event} had {starts} session_start and {ends} session_end").into());
        }
        if seen.len() as u64 != GENERATIONS {
            return Err(format!("{} sessions started, expected {GENERATIONS}", seen.len()).into());
        }
        println!("{GENERATIONS} sessions started, and each of them had exactly one session_end");
        Ok(())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    // Shows warnings and errors; a successful run logs none.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();

    let outcome = match tokio::time::timeout(Duration::from_secs(30), run()).await {
        Ok(outcome) => outcome,
        Err(_) => Err("did not shut down within 30 s".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart failed: {error}");
            ExitCode::FAILURE
        }
    }
}
