//! Cookie sessions of `tower-sessions`, each with its `session_end`.
//!
//! ```text
//! cargo run -p tower-sessions-example
//! ```
//!
//! Runs five servers, one after the other. In each, browsers log in, get a new id, and log out, over a real socket;
//! then the process receives a real SIGTERM:
//!
//! 1. the store in memory, plain cookies
//! 2. the same, with the layer inside of `tower-sessions` instead of outside
//! 3. the store in memory, signed cookies
//! 4. the store in a SQLite file, encrypted cookies
//! 5. the same file after a restart: the browsers use the cookies from before
//!
//! It exits with 0 only if every session had exactly one end, with the right reason.

use std::{
    collections::HashSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use axum::Router;
use tokio::net::TcpListener;
use tower_session_end::{ActiveSessions, BoxError, signal};
use tower_sessions::cookie::Key;
use tower_sessions_example::{
    app,
    cookie_format::CookieFormat,
    event_log::EventLog,
    store::{Store, ids_in},
    visitor::Visitor,
};
use tracing_subscriber::filter::LevelFilter;

async fn run(dir: &Path) -> Result<(), BoxError> {
    let (memory, plain) = (Store::memory(), CookieFormat::Plain);
    let life = live("memory, plain", |sessions| app::outside(sessions, &memory, &plain), first_visit).await?;
    first_visit_is_complete(&life.event_log)?;

    let memory = Store::memory();
    let life = live("memory, plain, inside", |sessions| app::inside(sessions, &memory, &plain), first_visit).await?;
    first_visit_is_complete(&life.event_log)?;

    let (memory, signed) = (Store::memory(), CookieFormat::Signed(Key::generate()));
    let life = live("memory, signed", |sessions| app::outside(sessions, &memory, &signed), first_visit).await?;
    first_visit_is_complete(&life.event_log)?;

    let (file, private) = (dir.join("sessions.db"), CookieFormat::Private(Key::generate()));
    let sqlite = Store::sqlite(&file).await?;
    let before = live("SQLite, encrypted", |sessions| app::outside(sessions, &sqlite, &private), first_visit).await?;
    first_visit_is_complete(&before.event_log)?;
    drop(sqlite);
    // The shutdown ended exactly the sessions that the store still has.
    let mut ended = ids(&before.event_log, "shutdown");
    ended.sort();
    ensure(ids_in(&file)? == ended, "the store and the event log differ")?;

    let sqlite = Store::sqlite(&file).await?;
    let adopting = |sessions: &ActiveSessions| {
        // The host does not set the cookie of an existing session again, so the layer has to adopt it.
        app::outside_with(sessions, &sqlite, &private, private.protocol().adopt(true))
    };
    let browsers = before.browsers;
    let after = live("SQLite, encrypted, after a restart", adopting, async move |address| {
        second_visit(address, browsers).await
    })
    .await?;
    ensure(
        after.event_log.summary() == "deleted 1, shutdown 1",
        "expected a shutdown for alice and a logout for carol",
    )?;
    let seen: HashSet<_> = before.event_log.ends().into_iter().map(|end| end.generation).collect();
    for end in after.event_log.ends() {
        ensure(
            ended.contains(&end.session.id.to_string()),
            "an end of a session that did not exist before the restart",
        )?;
        ensure(!seen.contains(&end.generation), "the generation was used before the restart")?;
    }
    Ok(())
}

/// The events of a server that has shut down, and the result of its visitors.
struct Life {
    event_log: EventLog,
    browsers: Browsers,
}

/// Runs a server and its visitors, from its start to the end of its shutdown.
async fn live(
    title: &str,
    app: impl FnOnce(&ActiveSessions) -> Router,
    visit: impl AsyncFnOnce(SocketAddr) -> Result<Browsers, BoxError>,
) -> Result<Life, BoxError> {
    println!("\n== {title}");
    let event_log = EventLog::aloud();
    let sessions = ActiveSessions::builder()
        // The expiry of the cookies: `tower-sessions` expires a session without a response.
        .idle_timeout(Duration::from_secs(60 * 60))
        .hook(event_log.clone())
        .build()?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server =
        axum::serve(listener, app(&sessions)).with_graceful_shutdown(sessions.shutdown_on(signal::terminate()));
    let served = async { Ok(sessions.finish(server).await.into_result()?) };
    let visited = async {
        let browsers = visit(address).await?;
        println!("SIGTERM");
        raise_sigterm()?;
        Ok::<_, BoxError>(browsers)
    };
    let (report, browsers) = tokio::try_join!(served, visited)?;

    println!("{report}");
    ensure(report.is_clean(), "the shutdown was not clean")?;
    ensure(sessions.is_empty(), "a session is still active")?;
    event_log.check()?;
    Ok(Life { event_log, browsers })
}

/// The visitors that still have a session at the end.
struct Browsers {
    alice: Visitor,
    carol: Visitor,
}

async fn first_visit(address: SocketAddr) -> Result<Browsers, BoxError> {
    // Noted; used; compacted into a new id; used.
    let alice = Visitor::new(address)?;
    alice.post("/login/alice").await?;
    alice.post("/say").await?;
    let before = alice.cookie()?;
    alice.post("/cycle").await?;
    ensure(alice.cookie()? != before, "the new id has the same cookie")?;
    answers(alice.post("/say").await?, 200, "alice 2")?;

    // Noted from a redirect; ended when the cookie is removed.
    let bob = Visitor::new(address)?;
    answers(bob.post("/login/bob/redirect").await?, 200, "bob")?;
    bob.post("/logout").await?;
    ensure(bob.cookie()?.is_none(), "the cookie was not removed")?;

    // The session cookie is one of several cookies.
    let carol = Visitor::new(address)?;
    carol.post("/login/carol/many").await?;

    // A failed login starts a session. A visitor who does not log in has none.
    let dave = Visitor::new(address)?;
    answers(dave.post("/attempt").await?, 401, "")?;
    answers(dave.post("/attempt").await?, 401, "")?;
    answers(Visitor::new(address)?.get("/").await?, 200, "nobody")?;
    Ok(Browsers { alice, carol })
}

fn first_visit_is_complete(event_log: &EventLog) -> Result<(), BoxError> {
    ensure(
        event_log.summary() == "compaction 1, deleted 1, shutdown 3",
        "the ends of alice, bob, carol and dave differ from the expected ones",
    )
}

async fn second_visit(address: SocketAddr, before: Browsers) -> Result<Browsers, BoxError> {
    let Browsers { alice, carol } = before;
    let (alice, carol) = (alice.moved_to(address), carol.moved_to(address));
    answers(alice.get("/").await?, 200, "alice")?;
    answers(carol.get("/").await?, 200, "carol")?;
    carol.post("/logout").await?;
    Ok(Browsers { alice, carol })
}

/// The sessions that ended with this reason.
fn ids(event_log: &EventLog, reason: &str) -> Vec<String> {
    let ends = event_log.ends().into_iter().filter(|end| end.reason.to_string() == reason);
    ends.map(|end| end.session.id.to_string()).collect()
}

fn answers(answer: (impl Into<u16>, String), status: u16, body: &str) -> Result<(), BoxError> {
    let (found, said) = (answer.0.into(), answer.1);
    if (found, said.as_str()) == (status, body) {
        return Ok(());
    }
    Err(format!("expected the answer {status} {body:?}, got {found} {said:?}").into())
}

fn ensure(condition: bool, what: &str) -> Result<(), BoxError> {
    if condition { Ok(()) } else { Err(format!("check failed: {what}").into()) }
}

/// std has no safe call for this. The shell that runs `kill` is a child of this process.
fn raise_sigterm() -> io::Result<()> {
    let kill = Command::new("sh").args(["-c", "kill -s TERM $PPID"]).status()?;
    if kill.success() { Ok(()) } else { Err(io::Error::other(format!("kill: {kill}"))) }
}

/// A directory that is removed when this process exits.
struct Dir(PathBuf);

impl Dir {
    fn new() -> io::Result<Self> {
        let dir = std::env::temp_dir().join(format!("tower-sessions-example-{}", std::process::id()));
        fs::create_dir(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn run_in_time() -> Result<(), BoxError> {
    let dir = Dir::new()?;
    tokio::time::timeout(Duration::from_secs(60), run(&dir.0)).await.map_err(|_| "did not finish within 60 s")?
}

#[tokio::main]
async fn main() -> ExitCode {
    // Shows warnings and errors of `tower-sessions` and the crate; a successful run logs none.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();
    match run_in_time().await {
        Ok(()) => {
            println!("\nevery session had exactly one session_end");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("tower-sessions example: {error}");
            ExitCode::FAILURE
        }
    }
}
