//! A PostgreSQL server, and what happens to it.

use std::{
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread::sleep,
    time::Duration,
};

use crash::{Error, now};
use tokio::task::spawn_blocking;

use crate::postgres_server::PostgresServer;

/// The server. One thing happens to it at a time.
pub(crate) struct Postgres {
    server: Arc<Mutex<PostgresServer>>,
    url: String,
}

impl Postgres {
    pub(crate) async fn start() -> Result<Self, Error> {
        let server = spawn_blocking(|| PostgresServer::start(&[])).await?;
        let url = server.url();
        Ok(Self { server: Arc::new(Mutex::new(server)), url })
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    async fn with<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut PostgresServer) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let server = Arc::clone(&self.server);
        Ok(spawn_blocking(move || call(&mut server.lock().unwrap_or_else(PoisonError::into_inner))).await?)
    }

    /// As [`Store::block`](crate::store::Store::block).
    pub(crate) async fn block(&self, way: u64, length: Duration) -> Result<(&'static str, [u64; 2]), Error> {
        match way {
            0 => Ok(("SIGSTOP of the server", self.with(move |server| pause(server, 0, length)).await??)),
            1 => {
                // A new connection works for a moment.
                let [from, _] = self.with(move |server| pause(server, 1, length)).await??;
                Ok(("SIGSTOP of its connections", [from; 2]))
            }
            2 => Ok(("LOCK TABLE sessions", self.with(move |server| lock(server, "sessions", length)).await??)),
            3 => Ok(("LOCK TABLE holders", self.with(move |server| lock(server, "holders", length)).await??)),
            4 => {
                let restart = |server: &mut PostgresServer| {
                    server.kill();
                    let from = now();
                    server.start_again();
                    [from, now()]
                };
                Ok(("restart -m immediate", self.with(restart).await?))
            }
            _ => {
                let times = self.with(|server| {
                    let from = now();
                    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
                    server.try_ask(kill).map(|_| [from; 2])
                });
                Ok(("pg_terminate_backend", times.await??))
            }
        }
    }

    /// The rows that are left.
    pub(crate) async fn left(&self) -> Result<Vec<String>, Error> {
        let count = "SELECT * FROM (SELECT count(*) || ' rows of sessions' FROM session_end.sessions
            UNION ALL SELECT count(*) || ' rows of holds' FROM session_end.holds
            UNION ALL SELECT count(*) || ' rows of notices' FROM session_end.notices) t (rows) WHERE rows NOT LIKE '0 %'";
        let left = self.with(move |server| server.try_ask(count)).await??;
        Ok(left.lines().map(str::to_owned).collect())
    }
}

/// SIGSTOP to the processes of the server but the first ones, also to new ones, and SIGCONT after this time.
fn pause(server: &PostgresServer, but: usize, length: Duration) -> Result<[u64; 2], String> {
    let (mut stopped, mut from) = (Vec::new(), None);
    loop {
        let is_new = |process: &u32| !stopped.contains(process);
        let new: Vec<_> = server.processes().into_iter().skip(but).filter(is_new).collect();
        if !new.is_empty() {
            signal("STOP", &new)?;
            stopped.extend(new);
            continue;
        }
        let from = *from.get_or_insert_with(now);
        let until = now();
        if until - from >= length.as_micros() as u64 {
            signal("CONT", &stopped)?;
            return Ok([from, until]);
        }
        sleep(Duration::from_millis(2));
    }
}

fn signal(name: &str, processes: &[u32]) -> Result<(), String> {
    let processes = processes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    // One that has ended meanwhile is no error.
    let script = format!("kill -s {name} {processes} 2>/dev/null || true");
    Command::new("sh").arg("-c").arg(script).status().map(drop).map_err(|error| error.to_string())
}

/// Holds the strongest lock of a table for this long.
fn lock(server: &PostgresServer, table: &str, length: Duration) -> Result<[u64; 2], String> {
    let micros = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let hold = format!(
        "BEGIN; LOCK TABLE session_end.{table}; SELECT {micros}; SELECT pg_sleep({}); SELECT {micros}; COMMIT",
        length.as_secs_f64()
    );
    let answer = server.try_ask(&hold)?;
    let times: Vec<u64> = answer.lines().filter_map(|line| line.trim().parse().ok()).collect();
    match times[..] {
        [from, until] => Ok([from, until]),
        _ => Err(format!("{hold}: {answer}")),
    }
}
