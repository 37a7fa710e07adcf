//! The registries that can be tested: how to start one, stop it for a while, and see what is left in it.

use std::{fs::File, path::PathBuf, time::Duration};

use crash::{Error, PATIENCE, RedisServer, TempDir, now};
use rusqlite::Connection;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::postgres::Postgres;

/// Which registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    Redis,
    Sqlite,
}

/// A registry that outlives its processes.
pub(crate) enum Store {
    Postgres(Postgres),
    Redis(RedisServer),
    Sqlite(TempDir),
}

impl Store {
    pub(crate) async fn start(kind: Kind) -> Result<Self, Error> {
        Ok(match kind {
            Kind::Postgres => Self::Postgres(Postgres::start().await?),
            Kind::Redis => Self::Redis(RedisServer::with(&["--enable-debug-command", "yes"]).await?),
            Kind::Sqlite => Self::Sqlite(TempDir::new()?),
        })
    }

    pub(crate) const fn kind(&self) -> Kind {
        match self {
            Self::Postgres(_) => Kind::Postgres,
            Self::Redis(_) => Kind::Redis,
            Self::Sqlite(_) => Kind::Sqlite,
        }
    }

    /// As the gateway's argument.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Postgres(postgres) => postgres.url(),
            Self::Redis(redis) => redis.url(),
            Self::Sqlite(dir) => format!("sqlite:{}", database(dir).display()),
        }
    }

    /// How long a gateway may be silent before others recover its sessions. `None`: for as long as it lives.
    pub(crate) const fn lease(&self) -> Option<Duration> {
        match self {
            Self::Postgres(_) | Self::Redis(_) => Some(crash::LEASE),
            Self::Sqlite(_) => None,
        }
    }

    /// Keeps every gateway from using the registry for this long. One of several ways, chosen by `way`. Returns which, and from
    /// when until when nothing was carried out.
    pub(crate) async fn block(&self, way: u64, length: Duration) -> Result<(&'static str, [u64; 2]), Error> {
        match self {
            Self::Postgres(postgres) => postgres.block(way, length).await,
            Self::Redis(redis) => {
                let command = format!("DEBUG SLEEP {}", length.as_secs_f64());
                let all = [b"TIME", command.as_bytes(), b"TIME"].join(&b"\r\n"[..]);
                // Twice the time: others compete for the processor.
                let mut answers = timeout(length * 2 + PATIENCE, ask_all(redis.port(), &all, 3)).await??.into_iter();
                let mut next = || answers.next().unwrap_or_default();
                let (from, slept, until) = (micros(&next())?, next(), micros(&next())?);
                if slept == ["OK"] {
                    Ok(("DEBUG SLEEP", [from, until]))
                } else {
                    Err(format!("{command}: {slept:?}").into())
                }
            }
            Self::Sqlite(dir) if way % 3 == 2 => {
                let lock = File::options().read(true).write(true).open(leases(dir).join("LOCK"))?;
                let lock = spawn_blocking(move || lock.lock().map(|()| lock)).await??;
                let from = now();
                sleep(length).await;
                let until = now();
                lock.unlock()?;
                Ok(("the lock of the leases", [from, until]))
            }
            Self::Sqlite(dir) => {
                let (path, exclusive) = (database(dir), way % 3 == 1);
                let block = move || -> Result<[u64; 2], rusqlite::Error> {
                    let connection = Connection::open(path)?;
                    connection.busy_timeout(PATIENCE)?;
                    connection.execute_batch(if exclusive { "BEGIN EXCLUSIVE" } else { "BEGIN IMMEDIATE" })?;
                    let from = now();
                    std::thread::sleep(length);
                    let until = now();
                    connection.execute_batch("ROLLBACK")?;
                    Ok([from, until])
                };
                let times = spawn_blocking(block).await??;
                Ok((if exclusive { "BEGIN EXCLUSIVE" } else { "BEGIN IMMEDIATE" }, times))
            }
        }
    }

    /// What the registry still has: sessions and ends, by their keys, or the number of rows of a table.
    pub(crate) async fn left(&self) -> Result<Vec<String>, Error> {
        match self {
            Self::Postgres(postgres) => postgres.left().await,
            Self::Redis(redis) => {
                let mut keys = ask(redis.port(), "KEYS *").await?;
                // Those of the deployment, which stay.
                keys.retain(|key| key.contains(":session") || key.contains(":end") || key.contains(":g:"));
                Ok(keys)
            }
            Self::Sqlite(dir) => {
                let path = database(dir);
                let count = move || -> Result<Vec<String>, rusqlite::Error> {
                    let connection = Connection::open(path)?;
                    let tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'
                        AND name NOT IN ('holders', 'settings', 'chats')";
                    let tables: Vec<String> =
                        connection.prepare(tables)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
                    let mut left = Vec::new();
                    for table in tables {
                        let rows: i64 =
                            connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?;
                        if rows > 0 {
                            left.push(format!("{rows} rows of {table}"));
                        }
                    }
                    Ok(left)
                };
                Ok(spawn_blocking(count).await??)
            }
        }
    }
}

fn database(dir: &TempDir) -> PathBuf {
    dir.file("sessions.db")
}

fn leases(dir: &TempDir) -> PathBuf {
    dir.file("sessions.db-leases")
}

/// The answer to `TIME`, in microseconds.
fn micros(time: &[String]) -> Result<u64, Error> {
    let [seconds, micros] = time else { return Err(format!("TIME: {time:?}").into()) };
    Ok(seconds.parse::<u64>()? * 1_000_000 + micros.parse::<u64>()?)
}

/// Sends one command without quotes; returns the strings of its answer.
async fn ask(port: u16, command: &str) -> Result<Vec<String>, Error> {
    Ok(ask_all(port, command.as_bytes(), 1).await?.remove(0))
}

/// Sends so many commands, one a line; returns the strings of each answer.
async fn ask_all(port: u16, commands: &[u8], count: usize) -> Result<Vec<Vec<String>>, Error> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    stream.get_mut().write_all(&[commands, b"\r\n"].concat()).await?;
    let mut answers = Vec::new();
    for _ in 0..count {
        answers.push(answer(&mut stream).await?);
    }
    Ok(answers)
}

async fn answer(stream: &mut BufReader<TcpStream>) -> Result<Vec<String>, Error> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let Some(count) = line.strip_prefix('*') else { return Ok(vec![line.trim()[1..].to_owned()]) };
    let mut items = Vec::new();
    for _ in 0..count.trim().parse::<usize>()? {
        let mut length = String::new();
        stream.read_line(&mut length).await?;
        let mut item = vec![0; length.trim()[1..].parse::<usize>()? + 2];
        stream.read_exact(&mut item).await?;
        items.push(String::from_utf8_lossy(&item[..item.len() - 2]).into_owned());
    }
    Ok(items)
}
