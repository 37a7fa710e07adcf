//! rmcp's Streamable HTTP server with the layer, driven by rmcp's own client: nested in an axum router, and directly
//! behind hyper.
//!
//! ```text
//! cargo run -p mcp-gateway
//! ```
//!
//! One client sends a DELETE, one stays silent until rmcp expires its session, one uses the protocol revision without
//! sessions, and one waits for a tool when the process receives SIGTERM. The program counts, and fails if a session
//! did not have exactly one `session_end`.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    process::{Command, ExitCode},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mcp_gateway::{Mount, NotifyingManager, Tools, call, connect, serve};
use rmcp::{
    ClientLifecycleMode,
    model::ProtocolVersion,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use serde_json::json;
use tokio::{sync::watch, time::timeout};
use tower_session_end::{
    ActiveSessions, BoxError, EndReason, GenerationId, McpProtocol, SessionEnd, SessionHook, SessionStart, signal,
};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// rmcp expires a session after this time without a message. Its own default is five minutes.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

async fn run(mount: Mount) -> Result<(), BoxError> {
    println!("\n{mount:?}");
    let event_log = EventLog::default();
    let sessions = ActiveSessions::builder()
        // A part of the drain's two seconds, in which a call in flight keeps its session.
        .settle_timeout(Duration::from_secs(1))
        .connection_drain_timeout(Duration::from_secs(5))
        .hook(event_log.clone())
        .build()?;

    let mut local = LocalSessionManager::default();
    local.session_config.keep_alive = Some(KEEP_ALIVE);
    let manager = Arc::new(NotifyingManager::new(local, &sessions));
    let (thinking, calls) = watch::channel(0);
    let config = StreamableHttpServerConfig::default();
    let host = StreamableHttpService::new(move || Ok(Tools::new(thinking.clone())), manager, config);

    let (address, served) = serve(mount, host, McpProtocol::new(), &sessions, signal::terminate()).await?;
    let served = async { Ok(served.await?) };
    let (report, ()) = tokio::try_join!(served, visit(address, &sessions, &event_log, calls))?;
    println!("{report}");
    if !report.is_clean() {
        return Err("the shutdown was not clean".into());
    }
    event_log.check()
}

/// The requests of the clients, and the SIGTERM of the operator.
async fn visit(
    address: SocketAddr,
    sessions: &ActiveSessions,
    event_log: &EventLog,
    mut calls: watch::Receiver<usize>,
) -> Result<(), BoxError> {
    let polite = connect(address, ClientLifecycleMode::Initialize).await?;
    call(&polite, "remember", json!({ "text": "milk" })).await?;
    polite.cancel().await?;
    event_log.wait_for(EndReason::Deleted).await?;

    let silent = connect(address, ClientLifecycleMode::Initialize).await?;
    event_log.wait_for(EndReason::Idle).await?;
    // Its session has ended, so this DELETE is for an unknown id.
    silent.cancel().await?;

    let preferred_versions = vec![ProtocolVersion::V_2026_07_28];
    let modern = connect(address, ClientLifecycleMode::Discover { preferred_versions }).await?;
    println!("a client of 2026-07-28: {}", call(&modern, "remember", json!({ "text": "bread" })).await?);
    modern.cancel().await?;
    if !sessions.is_empty() {
        return Err("a session is active, expected none".into());
    }

    let waiting = connect(address, ClientLifecycleMode::Initialize).await?;
    let stop = async {
        calls.wait_for(|calls| *calls == 1).await?;
        println!("sending SIGTERM to this process");
        raise_sigterm()?;
        Ok(())
    };
    let answer = async { Ok::<_, BoxError>(call(&waiting, "think", json!({ "millis": 500 })).await?) };
    let (answer, ()) = tokio::try_join!(answer, stop)?;
    println!("the answer to a call that was in flight: {answer}");
    waiting.cancel().await?;
    Ok(())
}

/// std has no safe call for this. The shell that runs `kill` is a child of this process.
fn raise_sigterm() -> io::Result<()> {
    let kill = Command::new("sh").args(["-c", "kill -s TERM $PPID"]).status()?;
    if kill.success() { Ok(()) } else { Err(io::Error::other(format!("kill: {kill}"))) }
}

/// The consumer of the events: prints and counts them.
#[derive(Clone, Default)]
struct EventLog {
    /// The number of starts and ends per generation.
    seen: Arc<Mutex<HashMap<GenerationId, (u32, u32)>>>,
    reasons: watch::Sender<Vec<EndReason>>,
}

impl SessionHook for EventLog {
    async fn session_start(&self, start: SessionStart) -> Result<(), BoxError> {
        // The ids are credentials.
        println!("session_start  {}", start.session.id.redacted());
        self.count(start.generation, |(starts, _)| *starts += 1);
        Ok(())
    }

    async fn session_end(&self, end: SessionEnd) -> Result<(), BoxError> {
        println!("session_end    {}  {}", end.session.id.redacted(), end.reason);
        self.count(end.generation, |(_, ends)| *ends += 1);
        self.reasons.send_modify(|reasons| reasons.push(end.reason));
        Ok(())
    }
}

impl EventLog {
    fn count(&self, event: GenerationId, add: impl FnOnce(&mut (u32, u32))) {
        add(self.seen.lock().unwrap_or_else(PoisonError::into_inner).entry(event).or_default());
    }

    async fn wait_for(&self, reason: EndReason) -> Result<(), BoxError> {
        self.reasons.subscribe().wait_for(|reasons| reasons.contains(&reason)).await?;
        Ok(())
    }

    fn check(&self) -> Result<(), BoxError> {
        let expected = [EndReason::Deleted, EndReason::Idle, EndReason::Shutdown];
        let reasons = self.reasons.borrow().clone();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons != expected || seen.values().any(|counts| *counts != (1, 1)) {
            return Err(format!("expected one start and one end for {expected:?}, got {reasons:?} of {seen:?}").into());
        }
        println!("3 sessions, and each of them had exactly one session_end");
        Ok(())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    // Shows warnings and errors of this crate; a successful run logs none. rmcp's client would warn that its last
    // DELETE failed.
    let ours = Targets::new().with_target("tower_session_end", LevelFilter::WARN);
    tracing_subscriber::registry().with(fmt::layer().with_writer(io::stderr)).with(ours).init();

    for mount in Mount::ALL {
        let outcome = match timeout(Duration::from_secs(30), run(mount)).await {
            Ok(outcome) => outcome,
            Err(_) => Err("did not shut down within 30 s".into()),
        };
        if let Err(error) = outcome {
            eprintln!("mcp-gateway failed: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
