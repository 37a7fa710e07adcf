//! A holder in a process of its own: this test binary again.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
};

use tower_session_end::{
    GenerationId,
    registry::{Record, RedisRegistry, Registry, RegistryError},
};

use super::support::{PATIENCE, RedisServer, SHORT, builder, end, hold, record};

const URL: &str = "REDIS_TEST_URL";

/// What marks a line of the process among those of the test harness.
const MARK: &str = "» ";

/// A process that holds one session and ends it when it is told to; killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Process {
    /// Returns once it holds the session, with its generation.
    pub(crate) fn start(server: &RedisServer) -> (Self, GenerationId) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        // Two threads, so that the harness leaves the beginning of the line to us.
        command.args(["--exact", "registry::redis::process::in_a_role", "--nocapture", "--test-threads=2"]);
        command.env(URL, server.url()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut process = Self { child, to, from };
        let generation = process.hear().parse().unwrap();
        (process, generation)
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

    /// Tells it to end its session.
    pub(crate) fn go(&mut self) {
        self.to.write_all(b"go\n").unwrap();
    }

    /// `STOP` or `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{MARK}{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Not a test by itself: what the process does.
#[test]
fn in_a_role() {
    let Ok(url) = std::env::var(URL) else { return };
    // It must not outlive a test that is stuck.
    thread::spawn(|| {
        thread::sleep(2 * PATIENCE);
        std::process::exit(3);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let holder = builder(&url).lease(SHORT).command_timeout(SHORT * 9 / 10).connect().await.unwrap();
        let record = record("a");
        holder.apply(vec![hold(&record)]).await.unwrap();
        say(record.generation);
        let mut line = String::new();
        assert!(std::io::stdin().lock().read_line(&mut line).unwrap() > 0, "the test is gone");
        say(end_it(&holder, &record).await);
    });
    std::process::exit(0);
}

/// As the writer does: repeats after an outage, holds again after a loss. Says the losses and the answer.
async fn end_it(holder: &RedisRegistry, record: &Record) -> String {
    let mut losses = String::new();
    for _ in 0..100 {
        match holder.apply(vec![end(record)]).await {
            Ok(answers) => return format!("{losses}{:?}", answers[0]),
            Err(RegistryError::Unavailable(_)) => tokio::time::sleep(SHORT / 10).await,
            Err(RegistryError::DataLost) => {
                losses.push_str("DataLost ");
                let _ = holder.apply(vec![hold(record)]).await;
            }
            Err(error) => losses.push_str(&format!("{error:?} ")),
        }
    }
    format!("{losses}and no answer")
}
