//! The gateway: hands out sessions, ends them, compacts them, and dies when it is told to.

use std::{
    collections::hash_map::RandomState,
    future::pending,
    hash::BuildHasher,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use axum::{
    Router,
    http::HeaderName,
    routing::{get, post},
};
use tower_session_end::{
    ActiveSessions, ActiveSessionsBuilder, SessionEnd, SessionId, SessionStart,
    registry::{RedisRegistry, SqliteRegistry},
    signal,
};

use crate::{Diary, Error};

/// What a gateway is told when it is started: the words of its command line, after `serve`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file that the hooks write to.
    pub diary: PathBuf,
    /// `sqlite:<file>`, or the URL of a Redis.
    pub registry: String,
    /// How the process calls itself in the diary.
    pub name: String,
    /// What is odd about this one: `-`, or a number of milliseconds that each end takes, or `start-hangs`.
    pub mood: String,
}

impl Settings {
    /// The words of the command line.
    #[must_use]
    pub fn to_args(&self) -> [String; 4] {
        let Self { diary, registry, name, mood } = self.clone();
        [diary.to_string_lossy().into_owned(), registry, name, mood]
    }

    /// # Errors
    ///
    /// There are not four of them.
    pub fn from_args(args: &[String]) -> Result<Self, Error> {
        match args {
            [diary, registry, name, mood] => {
                Ok(Self { diary: diary.into(), registry: registry.clone(), name: name.clone(), mood: mood.clone() })
            }
            _ => Err("serve <diary> <registry> <name> <mood>".into()),
        }
    }
}

/// Serves until SIGTERM. Prints what it recovered, then where it listens, and in the end its report.
///
/// # Errors
///
/// The registry cannot be used, or the server fails.
pub async fn serve(settings: Settings) -> Result<(), Error> {
    let diary = Diary::open(&settings.diary, &settings.name)?;
    let delay = Duration::from_millis(settings.mood.parse().unwrap_or(0));
    let start_hangs = settings.mood == "start-hangs";
    let starts = diary.clone();
    let builder = ActiveSessions::builder()
        .drain_timeout(Duration::from_secs(10))
        .recovery_timeout(Duration::from_secs(30))
        .on_session_start(move |start: SessionStart| {
            let diary = starts.clone();
            async move {
                if start_hangs {
                    pending::<()>().await;
                }
                diary.start(&start)
            }
        })
        .on_session_end(move |end: SessionEnd| {
            let diary = diary.clone();
            async move {
                tokio::time::sleep(delay).await;
                diary.end(&end)
            }
        });
    let sessions = with_registry(builder, &settings.registry).await?.build()?;

    // Before serving: what a process that was killed has left behind is delivered first.
    println!("{}", sessions.recover().await);

    // Registered before anybody knows where to find this process.
    let stop = sessions.shutdown_on(signal::terminate());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}", listener.local_addr()?);
    let server = axum::serve(listener, app(&sessions)).with_graceful_shutdown(stop);
    let report = sessions.finish(server).await.into_result()?;
    println!("{report}");
    if report.is_clean() { Ok(()) } else { Err("the stop was not clean".into()) }
}

async fn with_registry(builder: ActiveSessionsBuilder, registry: &str) -> Result<ActiveSessionsBuilder, Error> {
    if let Some(file) = registry.strip_prefix("sqlite:") {
        return Ok(builder.registry(SqliteRegistry::open(file)?));
    }
    let connection = redis::Client::open(registry)?.get_connection_manager().await?;
    // Short, so that the others do not have to wait for long when this one is killed.
    let registry = RedisRegistry::builder(connection).lease(Duration::from_secs(2)).connect().await?;
    Ok(builder.registry(registry))
}

fn app(sessions: &ActiveSessions) -> Router {
    Router::new()
        .route("/open", post(async || id_header(&fresh_id())))
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

async fn sessions_here(sessions: ActiveSessions) -> String {
    sessions.snapshot().iter().map(|session| format!("{}\n", session.id)).collect()
}

/// SIGKILL, with no time to say anything.
async fn die() {
    let _ = std::process::Command::new("sh").args(["-c", "kill -s KILL $PPID"]).status();
    pending::<()>().await;
}
