//! Cookie sessions of `tower-sessions`, each with its `session_end`, in one go:
//!
//! ```text
//! cargo run -p tower-sessions-example
//! ```
//!
//! Five lives of a server, each with browsers that log in, go on under a new id, and log out, over a real socket, and
//! with a real SIGTERM at its end:
//!
//! 1. the store in memory, plain cookies
//! 2. the same, with our layer inside of `tower-sessions` instead of around it
//! 3. the store in memory, signed cookies
//! 4. the store in a SQLite file, encrypted cookies
//! 5. that file after a restart: the browsers go on with the cookies of before
//!
//! It exits with 0 only if every session had exactly one end, with the right reason, and none was missed.

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
    journal::Journal,
    seal::Seal,
    store::{Store, ids_in},
    visitor::Visitor,
};
use tracing_subscriber::filter::LevelFilter;

async fn run(dir: &Path) -> Result<(), BoxError> {
    let (memory, plain) = (Store::memory(), Seal::Plain);
    let life = live("memory, plain", |sessions| app::outside(sessions, &memory, &plain), first_visit).await?;
    first_visit_is_complete(&life.journal)?;

    let memory = Store::memory();
    let life = live("memory, plain, inside", |sessions| app::inside(sessions, &memory, &plain), first_visit).await?;
    first_visit_is_complete(&life.journal)?;

    let (memory, signed) = (Store::memory(), Seal::Signed(Key::generate()));
    let life = live("memory, signed", |sessions| app::outside(sessions, &memory, &signed), first_visit).await?;
    first_visit_is_complete(&life.journal)?;

    let (file, private) = (dir.join("sessions.db"), Seal::Private(Key::generate()));
    let sqlite = Store::sqlite(&file).await?;
    let before = live("SQLite, encrypted", |sessions| app::outside(sessions, &sqlite, &private), first_visit).await?;
    first_visit_is_complete(&before.journal)?;
    drop(sqlite);
    // What the store still holds is what the stop has ended: nothing else was left, and nothing was missed.
    let mut ended = ids(&before.journal, "shutdown");
    ended.sort();
    ensure(ids_in(&file)? == ended, "the store and the journal do not agree")?;

    let sqlite = Store::sqlite(&file).await?;
    let adopting = |sessions: &ActiveSessions| {
        // A host that goes on with its sessions sets no cookie for them again.
        app::outside_with(sessions, &sqlite, &private, private.protocol().adopt(true))
    };
    let browsers = before.browsers;
    let after = live("SQLite, encrypted, after a restart", adopting, async move |address| {
        second_visit(address, browsers).await
    })
    .await?;
    ensure(after.journal.summary() == "deleted 1, shutdown 1", "alice goes on, and carol logs out")?;
    let seen: HashSet<_> = before.journal.ends().into_iter().map(|end| end.generation).collect();
    for end in after.journal.ends() {
        ensure(ended.contains(&end.session.id.to_string()), "a session of before")?;
        ensure(!seen.contains(&end.generation), "an event of its own")?;
    }
    Ok(())
}

/// What is left of a server that was stopped.
struct Life {
    journal: Journal,
    browsers: Browsers,
}

/// A server, from its start to the end of its stop, and its visitors.
async fn live(
    title: &str,
    app: impl FnOnce(&ActiveSessions) -> Router,
    visit: impl AsyncFnOnce(SocketAddr) -> Result<Browsers, BoxError>,
) -> Result<Life, BoxError> {
    println!("\n== {title}");
    let journal = Journal::aloud();
    let sessions = ActiveSessions::builder()
        // That of the cookies: `tower-sessions` forgets a session in silence.
        .idle_timeout(Duration::from_secs(60 * 60))
        .hook(journal.clone())
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
    ensure(report.is_clean(), "the stop was not clean")?;
    ensure(sessions.is_empty(), "a session was left")?;
    journal.check()?;
    Ok(Life { journal, browsers })
}

/// Those that have a session when they leave.
struct Browsers {
    alice: Visitor,
    carol: Visitor,
}

async fn first_visit(address: SocketAddr) -> Result<Browsers, BoxError> {
    // NoteOutcome; used; compacted into a new id; used.
    let alice = Visitor::new(address)?;
    alice.post("/login/alice").await?;
    alice.post("/say").await?;
    let before = alice.cookie()?;
    alice.post("/cycle").await?;
    ensure(alice.cookie()? != before, "a new id is another cookie")?;
    answers(alice.post("/say").await?, 200, "alice 2")?;

    // NoteOutcome from a redirect; ended when the cookie is removed.
    let bob = Visitor::new(address)?;
    answers(bob.post("/login/bob/redirect").await?, 200, "bob")?;
    bob.post("/logout").await?;
    ensure(bob.cookie()?.is_none(), "the cookie is gone")?;

    // One cookie of many is the session's.
    let carol = Visitor::new(address)?;
    carol.post("/login/carol/many").await?;

    // A failed login is counted in a session, and a visitor with no session has none.
    let dave = Visitor::new(address)?;
    answers(dave.post("/attempt").await?, 401, "")?;
    answers(dave.post("/attempt").await?, 401, "")?;
    answers(Visitor::new(address)?.get("/").await?, 200, "nobody")?;
    Ok(Browsers { alice, carol })
}

fn first_visit_is_complete(journal: &Journal) -> Result<(), BoxError> {
    ensure(journal.summary() == "compaction 1, deleted 1, shutdown 3", "alice, bob, carol and dave")
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
fn ids(journal: &Journal, reason: &str) -> Vec<String> {
    let ends = journal.ends().into_iter().filter(|end| end.reason.to_string() == reason);
    ends.map(|end| end.session.id.to_string()).collect()
}

fn answers(answer: (impl Into<u16>, String), status: u16, body: &str) -> Result<(), BoxError> {
    let (found, said) = (answer.0.into(), answer.1);
    if (found, said.as_str()) == (status, body) {
        return Ok(());
    }
    Err(format!("the answer should be {status} {body:?}, and is {found} {said:?}").into())
}

fn ensure(condition: bool, what: &str) -> Result<(), BoxError> {
    if condition { Ok(()) } else { Err(format!("not as it should be: {what}").into()) }
}

/// There is no safe call for this in std, but any shell has `kill`, and its parent is this process.
fn raise_sigterm() -> io::Result<()> {
    let kill = Command::new("sh").args(["-c", "kill -s TERM $PPID"]).status()?;
    if kill.success() { Ok(()) } else { Err(io::Error::other(format!("kill: {kill}"))) }
}

/// A directory that goes with this process.
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
    tokio::time::timeout(Duration::from_secs(60), run(&dir.0)).await.map_err(|_| "not over within 60 s")?
}

#[tokio::main]
async fn main() -> ExitCode {
    // `tower-sessions` and the crate say what went wrong; in a good run that is nothing.
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
