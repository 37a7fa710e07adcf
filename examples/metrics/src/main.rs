//! Session metrics in a Prometheus exporter, before and after a shutdown.
//!
//! ```text
//! cargo run -p metrics-example
//! ```
//!
//! The gateway listens on one port and its metrics on another, with clients over real sockets and a real SIGTERM.
//! Sessions end for every reason, and hooks fail, panic and hang. The example scrapes the exporter before and after
//! the shutdown, prints the output, and exits with 0 only if every value is right and no session id appears.

use std::{
    collections::BTreeSet,
    future::pending,
    io,
    process::{Command, ExitCode},
    time::Duration,
};

use axum::{
    Router,
    extract::Path,
    response::{AppendHeaders, IntoResponse},
    routing::post,
};
use metrics_example::{
    exporter::{Scraped, recorder},
    scrape::Scrape,
};
use reqwest::Client;
use tokio::net::TcpListener;
use tower_session_end::{
    ActiveSessions, BoxError, EndReason, Session, SessionEnd, SessionHook, SessionId, SessionStart, SessionUpdate,
    signal,
};
use tracing_subscriber::filter::LevelFilter;

/// A consumer whose hooks fail, panic or hang for some sessions.
struct Archive;

impl SessionHook for Archive {
    async fn session_start(&self, _: SessionStart) -> Result<(), BoxError> {
        Ok(())
    }

    async fn session_end(&self, end: SessionEnd) -> Result<(), BoxError> {
        match end.session.key.as_deref() {
            Some("erin") => Err("the disk is full".into()),
            Some("frank") => panic!("a bug in the archive"),
            Some("grace") => pending().await,
            _ => Ok(()),
        }
    }

    fn name(&self) -> &str {
        "archive"
    }
}

/// Starts a session.
async fn hello(Path(who): Path<String>) -> impl IntoResponse {
    let id = uuid::Uuid::new_v4().to_string();
    (
        SessionUpdate::started(Session::try_from(id.clone()).expect("a UUID is an id").with_key(who)),
        AppendHeaders([("x-session-id", id)]),
    )
}

/// Uses the session of the request.
async fn say(id: SessionId) -> impl IntoResponse {
    AppendHeaders([("x-session-id", id.to_string())])
}

/// Ends the session.
async fn end(id: SessionId, Path(reason): Path<String>) -> SessionUpdate {
    let Ok(reason) = reason.parse::<EndReason>();
    SessionUpdate::ended(id, reason)
}

/// Compacts the session into a new id.
async fn compact(id: SessionId) -> impl IntoResponse {
    let new = uuid::Uuid::new_v4().to_string();
    (SessionUpdate::compacted(id, new.clone()), AppendHeaders([("x-session-id", new)]))
}

/// Forgets the session: the host has finalised it by itself.
async fn finalise(sessions: ActiveSessions, id: SessionId) {
    sessions.forget(&id);
}

/// A bug in the host: the header value is not a valid id.
async fn broken() -> impl IntoResponse {
    AppendHeaders([("x-session-id", "two words")])
}

fn app(sessions: &ActiveSessions) -> Router {
    Router::new()
        .route("/hello/{who}", post(hello))
        .route("/say", post(say))
        .route("/end/{reason}", post(end))
        .route("/compact", post(compact))
        .route("/finalise", post(finalise))
        .route("/broken", post(broken))
        .layer(sessions.layer())
}

/// The clients, and every id that they received.
struct Clients {
    http: Client,
    base: String,
    ids: BTreeSet<String>,
}

impl Clients {
    async fn post(&mut self, path: &str, id: Option<&str>) -> Result<Option<String>, BoxError> {
        let request = self.http.post(format!("{}{path}", self.base));
        let request = if let Some(id) = id { request.header("x-session-id", id) } else { request };
        let response = request.send().await?.error_for_status()?;
        let id = response.headers().get("x-session-id").and_then(|id| id.to_str().ok()?.parse::<SessionId>().ok());
        let id = id.map(|id| id.to_string());
        self.ids.extend(id.clone());
        Ok(id)
    }

    async fn hello(&mut self, who: &str) -> Result<String, BoxError> {
        Ok(self.post(&format!("/hello/{who}"), None).await?.ok_or("the answer has no session")?)
    }
}

/// The requests before the shutdown.
async fn visit(clients: &mut Clients) -> Result<(), BoxError> {
    let alice = clients.hello("alice").await?;
    clients.post("/say", Some(&alice)).await?;
    clients.post("/end/reset", Some(&alice)).await?;
    let bob = clients.hello("bob").await?;
    let bob = clients.post("/compact", Some(&bob)).await?.ok_or("the answer has no successor")?;
    let carol = clients.hello("carol").await?;
    clients.post("/finalise", Some(&carol)).await?;
    for unlucky in ["erin", "frank"] {
        let id = clients.hello(unlucky).await?;
        clients.post("/end/deleted", Some(&id)).await?;
    }
    clients.post("/broken", None).await?;
    // `max_sessions` is 3, so karl's session evicts one of the others.
    let others = [bob, clients.hello("ivan").await?, clients.hello("judy").await?];
    clients.hello("karl").await?;
    for id in others {
        clients.post("/end/deleted", Some(&id)).await?;
    }
    clients.hello("grace").await?;
    clients.hello("henry").await?;
    Ok(())
}

async fn run() -> Result<(), BoxError> {
    // The recorder has to be installed before the handle is built.
    let recorder = recorder()?;
    let scraped = Scraped::serve(recorder.handle()).await?;
    metrics::set_global_recorder(recorder).map_err(|_| "a recorder is already installed")?;
    let sessions = ActiveSessions::builder()
        .max_sessions(3)
        .drain_timeout(Duration::from_millis(500))
        .connection_drain_timeout(Duration::from_secs(2))
        .keep_if(|session, _| session.key.as_deref() == Some("henry"))
        .hook(Archive)
        .on_session_end_batch(100, async |_| {})
        .build()?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let mut clients = Clients { http: Client::new(), base, ids: BTreeSet::new() };
    let shutdown = sessions.shutdown_on(signal::terminate());
    let server = axum::serve(listener, app(&sessions)).with_graceful_shutdown(shutdown);
    let served = async { Ok(sessions.finish(server).await.into_result()?) };
    let visited = async {
        visit(&mut clients).await?;
        // Hooks run in the background; these take a few milliseconds.
        let mut before = scraped.fetch().await?;
        while Scrape::parse(&before)?.value(ARCHIVED) < 7.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            before = scraped.fetch().await?;
        }
        raise_sigterm()?;
        Ok::<_, BoxError>(before)
    };
    let (report, before) = tokio::try_join!(served, visited)?;
    // An exporter waits for its last scrape here. tokio still handles SIGINT and SIGTERM, so this ends the waiting:
    let again = signal::terminate();
    tokio::spawn(async {
        again.await;
        std::process::exit(1);
    });
    let after = scraped.fetch().await?;

    println!("== before the shutdown\n{before}\n== after the shutdown\n{after}\n{report}\n");
    check("before the shutdown", &before, &BEFORE, &clients.ids)?;
    check("after the shutdown", &after, &AFTER, &clients.ids)?;
    ensure(clients.ids.len() == 11, "expected ten sessions and one successor")
}

const ARCHIVED: &str = r#"session_hook_duration_seconds_count{kind="end",hook="archive"}"#;

const BEFORE: [(&str, f64); 13] = [
    ("session_active", 3.0),
    ("session_starts_total", 11.0),
    (r#"session_ends_total{reason="reset"}"#, 1.0),
    (r#"session_ends_total{reason="compaction"}"#, 1.0),
    (r#"session_ends_total{reason="deleted"}"#, 4.0),
    (r#"session_ends_total{reason="evicted"}"#, 1.0),
    (r#"session_ends_total{reason="shutdown"}"#, 0.0),
    (r#"session_releases_total{cause="forgotten"}"#, 1.0),
    (r#"session_hook_duration_seconds_count{kind="start",hook="archive"}"#, 11.0),
    (ARCHIVED, 7.0),
    // The ends of erin and frank.
    (r#"session_hook_failures_total{kind="end",hook="archive"}"#, 2.0),
    ("session_ignored_ids_total", 1.0),
    ("session_drain_duration_seconds_count", 0.0),
];

const AFTER: [(&str, f64); 12] = [
    ("session_active", 0.0),
    ("session_starts_total", 11.0),
    (r#"session_ends_total{reason="shutdown"}"#, 2.0),
    (r#"session_releases_total{cause="kept"}"#, 1.0),
    // The hook of grace never returns.
    (ARCHIVED, 8.0),
    (r#"session_hook_failures_total{kind="start",hook="archive"}"#, 0.0),
    (r#"session_hook_failures_total{kind="end",hook="archive"}"#, 2.0),
    ("session_unfinished_ends", 1.0),
    // The drain waited for it until its deadline.
    ("session_drain_duration_seconds_count", 1.0),
    (r#"session_drain_duration_seconds_bucket{le="0.1"}"#, 0.0),
    ("session_registry_degraded", 0.0),
    ("session_registry_degradations_total", 0.0),
];

fn check(when: &str, text: &str, expected: &[(&str, f64)], ids: &BTreeSet<String>) -> Result<(), BoxError> {
    let scrape = Scrape::parse(text)?;
    for (sample, value) in expected {
        let found = scrape.value(sample);
        ensure(found == *value, &format!("{when}, {sample} is {found}, expected {value}"))?;
    }
    scrape.balances()?;
    let batches = |(sample, _): (&String, &f64)| sample.contains(r#"_count{kind="batch""#);
    ensure(scrape.samples.iter().any(batches), "the batch hook has no duration")?;
    // Not even the first part of an id may appear.
    ensure(!ids.iter().any(|id| text.contains(&id[..8])), "an id appears in the metrics")
}

fn ensure(condition: bool, what: &str) -> Result<(), BoxError> {
    if condition { Ok(()) } else { Err(format!("check failed: {what}").into()) }
}

/// std has no safe call for this. The shell that runs `kill` is a child of this process.
fn raise_sigterm() -> io::Result<()> {
    let kill = Command::new("sh").args(["-c", "kill -s TERM $PPID"]).status()?;
    if kill.success() { Ok(()) } else { Err(io::Error::other(format!("kill: {kill}"))) }
}

#[tokio::main]
async fn main() -> ExitCode {
    // Errors only: the hooks that fail on purpose log warnings.
    tracing_subscriber::fmt().with_max_level(LevelFilter::ERROR).with_writer(io::stderr).init();
    std::panic::set_hook(Box::new(|_| {}));
    let in_time = tokio::time::timeout(Duration::from_secs(60), run()).await;
    match in_time.unwrap_or_else(|_| Err("did not finish within 60 s".into())) {
        Ok(()) => {
            println!("every value is right, and no session id appears");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("metrics example: {error}");
            ExitCode::FAILURE
        }
    }
}
