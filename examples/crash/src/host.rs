//! The gateway: starts, ends and compacts sessions, and kills itself on request.

use std::{
    collections::hash_map::RandomState,
    future::pending,
    hash::BuildHasher,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use axum::{
    Router,
    http::HeaderName,
    routing::{get, post},
};
use sqlx::postgres::PgPoolOptions;
use tower_session_end::{
    ActiveSessions, ActiveSessionsBuilder, SessionEnd, SessionId, SessionStart,
    registry::{PostgresRegistry, RedisRegistry, SqliteRegistry},
    signal,
};

use crate::{Chats, Error, EventLog};

/// The lease on Redis and PostgreSQL. Short, so that other processes recover the sessions of one soon after it is killed.
pub const LEASE: Duration = Duration::from_secs(2);

/// The settings of a gateway: the arguments of its command line, after `serve`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file to which the hooks write.
    pub event_log: PathBuf,
    /// `sqlite:<file>`, with the table of [`Chats`] in it, or the URL of a PostgreSQL or a Redis.
    pub registry: String,
    /// The name of the process in the event log.
    pub name: String,
    /// `-` for none, or the number of milliseconds that each end takes, or `start-hangs`, or `small`: few sessions, which
    /// are soon idle.
    pub fault: String,
}

impl Settings {
    /// The arguments of the command line.
    #[must_use]
    pub fn to_args(&self) -> [String; 4] {
        let Self { event_log, registry, name, fault } = self.clone();
        [event_log.to_string_lossy().into_owned(), registry, name, fault]
    }

    /// # Errors
    ///
    /// The number of arguments is not four.
    pub fn from_args(args: &[String]) -> Result<Self, Error> {
        match args {
            [event_log, registry, name, fault] => Ok(Self {
                event_log: event_log.into(),
                registry: registry.clone(),
                name: name.clone(),
                fault: fault.clone(),
            }),
            _ => Err("serve <event_log> <registry> <name> <fault>".into()),
        }
    }
}

/// Serves until SIGTERM. Prints the report of the recovery, then the address, and at the end the report of the
/// shutdown.
///
/// # Errors
///
/// The registry cannot be used, or the server fails.
pub async fn serve(settings: Settings) -> Result<(), Error> {
    let event_log = EventLog::open(&settings.event_log, &settings.name)?;
    let delay = Duration::from_millis(settings.fault.parse().unwrap_or(0));
    let start_hangs = settings.fault == "start-hangs";
    let starts = event_log.clone();
    let mut builder = ActiveSessions::builder()
        .drain_timeout(Duration::from_secs(10))
        .recovery_timeout(Duration::from_secs(30))
        .on_session_start(move |start: SessionStart| {
            let event_log = starts.clone();
            async move {
                if start_hangs {
                    pending::<()>().await;
                }
                event_log.start(&start)
            }
        })
        .on_session_end(move |end: SessionEnd| {
            let event_log = event_log.clone();
            async move {
                tokio::time::sleep(delay).await;
                event_log.end(&end)
            }
        });
    if settings.fault == "small" {
        builder = builder.idle_timeout(Duration::from_secs(3)).max_sessions(40);
    }
    let sessions = with_registry(builder, &settings.registry).await?.build()?;
    if settings.fault == "small" {
        let health = EventLog::open(&health_log(&settings.event_log), &settings.name)?;
        tokio::spawn(watch(sessions.clone(), health));
    }

    // Before serving, delivers the ends that a killed process left behind.
    println!("{}", sessions.recover().await);

    // Registered before the address is printed, so that no signal is missed.
    let stop = sessions.shutdown_on(signal::terminate());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}", listener.local_addr()?);
    let server = axum::serve(listener, app(&sessions)).with_graceful_shutdown(stop);
    let report = sessions.finish(server).await.into_result()?;
    println!("{report}");
    if report.is_clean() { Ok(()) } else { Err("the shutdown was not clean".into()) }
}

/// The file to which each process writes when its registry becomes degraded, and when it is restored.
#[must_use]
pub fn health_log(event_log: &Path) -> PathBuf {
    event_log.with_extension("health")
}

async fn watch(sessions: ActiveSessions, log: EventLog) {
    let mut is_degraded = false;
    loop {
        if is_degraded != sessions.is_degraded() {
            is_degraded = !is_degraded;
            let _ = log.health(is_degraded);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn with_registry(builder: ActiveSessionsBuilder, registry: &str) -> Result<ActiveSessionsBuilder, Error> {
    if let Some(file) = registry.strip_prefix("sqlite:") {
        let registry = SqliteRegistry::builder(file)
            .heartbeat_interval(Duration::from_millis(500))
            .transaction_hook("chats", Chats)
            .open()?;
        Chats::create_table(registry.path())?;
        return Ok(builder.registry(registry));
    }
    if registry.starts_with("postgres:") {
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy(registry)?;
        return Ok(builder.registry(PostgresRegistry::builder(pool).lease(LEASE).connect().await?));
    }
    let connection = redis::Client::open(registry)?.get_connection_manager().await?;
    let registry = RedisRegistry::builder(connection).lease(LEASE).connect().await?;
    Ok(builder.registry(registry))
}

fn app(sessions: &ActiveSessions) -> Router {
    Router::new()
        .route("/open", post(async || id_header(&fresh_id())))
        .route("/open/recorded", post(open_recorded))
        .route("/say", post(async |id: SessionId| id_header(id.as_str())))
        .route("/end", post(async |_: SessionId| [(HeaderName::from_static("x-session-end"), "deleted")]))
        .route(
            "/compact",
            post(async |old: SessionId| {
                let [(name, id)] = id_header(&fresh_id());
                [(name, id), (HeaderName::from_static("x-session-compacted-from"), old.to_string())]
            }),
        )
        .route("/sessions", get(sessions_here))
        .route("/die", post(die))
        .layer(sessions.layer())
}

fn id_header(id: &str) -> [(HeaderName, String); 1] {
    [(HeaderName::from_static("x-session-id"), id.to_owned())]
}

/// Different in every process.
fn fresh_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("s-{:016x}", RandomState::new().hash_one(NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Waits for the record as long as it takes. The layer waits for 250 ms.
async fn open_recorded(sessions: ActiveSessions) -> [(HeaderName, String); 1] {
    let id = fresh_id();
    // False while the registry does not answer.
    while !sessions.note(id.as_str()).recorded().await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    id_header(&id)
}

async fn sessions_here(sessions: ActiveSessions) -> String {
    sessions.snapshot().iter().map(|session| format!("{}\n", session.id)).collect()
}

/// Kills this process with SIGKILL.
async fn die() {
    let _ = std::process::Command::new("sh").args(["-c", "kill -s KILL $PPID"]).status();
    pending::<()>().await;
}
