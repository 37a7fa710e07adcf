//! A holder in a process of its own: this test binary again.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
};

use sqlx::{PgConnection, Row};
use tower_session_end::{
    BoxError, GenerationId, SessionEnd,
    registry::{PostgresTransactionHook, Registry},
};

use super::support::{PATIENCE, PostgresServer, SHORT, builder, done, end, hold, record};

const URL: &str = "POSTGRES_TEST_URL";
const SCHEMA: &str = "POSTGRES_TEST_SCHEMA";
const ROLE: &str = "POSTGRES_TEST_ROLE";

/// What marks a line of the process among those of the test harness.
const MARK: &str = "» ";

/// A process with a role; killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Process {
    /// One that holds a session. Returns once it does, with its generation.
    pub(crate) fn start(server: &PostgresServer, schema: &str) -> (Self, GenerationId) {
        let mut process = Self::with_role(server, schema, "hold");
        let generation = process.hear().parse().unwrap();
        (process, generation)
    }

    pub(crate) fn with_role(server: &PostgresServer, schema: &str, role: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        // Two threads, so that the harness leaves the beginning of the line to this process.
        command.args(["--exact", "registry::postgres::process::in_a_role", "--nocapture", "--test-threads=2"]);
        command.env(URL, server.url()).env(SCHEMA, schema).env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, to, from }
    }

    /// The next line.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        while self.from.read_line(&mut line).unwrap() > 0 {
            if let Some((_, said)) = line.split_once(MARK) {
                return said.trim_end().to_owned();
            }
            line.clear();
        }
        panic!("the process has ended");
    }

    pub(crate) fn send(&mut self, line: &str) {
        self.to.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// `STOP`, `CONT` or `KILL`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// SIGKILL, and waits until it has ended.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{MARK}{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

pub(crate) fn wait_for_a_line() -> String {
    let mut line = String::new();
    assert!(std::io::stdin().lock().read_line(&mut line).unwrap() > 0, "the test is gone");
    line.trim_end().to_owned()
}

/// Says that it is called, and blocks until it may go on.
struct Blocking {
    schema: String,
}

impl PostgresTransactionHook for Blocking {
    async fn session_end(&self, transaction: &mut PgConnection, ends: &[SessionEnd]) -> Result<(), BoxError> {
        let insert =
            format!("INSERT INTO \"ends_of_{}\" VALUES ('{}') RETURNING generation", self.schema, ends[0].generation);
        // Once for the life of a short process.
        let row = sqlx::query(&*insert.leak()).fetch_one(transaction).await?;
        assert_eq!(row.try_get::<String, _>(0)?, ends[0].generation.to_string());
        say("in the hook");
        wait_for_a_line();
        Ok(())
    }
}

/// Not a test by itself: what the process does.
#[test]
fn in_a_role() {
    let (Ok(url), Ok(schema)) = (std::env::var(URL), std::env::var(SCHEMA)) else { return };
    // It must not outlive a test that is stuck.
    thread::spawn(|| {
        thread::sleep(2 * PATIENCE);
        std::process::exit(3);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match std::env::var(ROLE).unwrap().as_str() {
        "hold" => {}
        role => {
            runtime.block_on(super::counters::serve(&url, &schema, role == "recover"));
            std::process::exit(0);
        }
    }
    runtime.block_on(async {
        let hook = Blocking { schema: schema.clone() };
        let holder = builder(&url, &schema).lease(SHORT).transaction_hook("blocking", hook).connect().await.unwrap();
        let record = record("a");
        holder.apply(vec![hold(&record)]).await.unwrap();
        say(record.generation);
        wait_for_a_line();
        let ended = holder.apply(vec![end(&record)]).await;
        assert!(ended.is_ok(), "{ended:?}");
        say(format!("{:?}", holder.apply(vec![done(&record)]).await));
    });
    std::process::exit(0);
}
