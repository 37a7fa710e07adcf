//! The consumer of the events: one row for each generation of each session.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, Transaction, named_params};
use tower_session_end::{BoxError, SessionEnd, SessionStart};

/// `generation` is the key, not the session's id: an id may be reused, and each generation gets an end of its own.
/// `end_count` is a count and not a flag, so that a second end would show.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS sessions (
        generation        TEXT PRIMARY KEY,
        session_id      TEXT NOT NULL,
        session_key     TEXT,
        resumed_from    TEXT,
        status          TEXT NOT NULL CHECK (status IN ('active', 'completed')),
        started_at      INTEGER NOT NULL,
        ended_at        INTEGER,
        reason          TEXT,
        next_session_id TEXT,
        message_count   INTEGER,
        start_count     INTEGER NOT NULL DEFAULT 0,
        end_count       INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX IF NOT EXISTS sessions_by_status ON sessions (status);
";

/// An upsert, so that the end is written even if the start was not.
const COMPLETE: &str = "
    INSERT INTO sessions (generation, session_id, session_key, status, started_at, ended_at, reason, next_session_id,
                          message_count, end_count)
    VALUES (:generation, :session_id, :session_key, 'completed', :started_at, :ended_at, :reason, :next_session_id,
            :message_count, 1)
    ON CONFLICT (generation) DO UPDATE SET
        status = 'completed', ended_at = :ended_at, reason = :reason, next_session_id = :next_session_id,
        message_count = :message_count, end_count = end_count + 1
";

/// Cheap to clone. All clones share one connection.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    connection: Arc<Mutex<Connection>>,
    delay: Duration,
}

impl Store {
    pub(crate) fn open(path: &Path) -> Result<Self, BoxError> {
        let connection = Connection::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        // With WAL, other connections can read during a write. With `normal`, a commit does not wait for the disk: a
        // crash of the process loses nothing, a power cut loses the last commits.
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.busy_timeout(Duration::from_secs(1))?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), delay: Duration::ZERO })
    }

    /// Delays each transaction that ends sessions.
    pub(crate) fn slowed_by(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Writes the start of a session.
    pub(crate) async fn insert(self, start: SessionStart) -> Result<(), BoxError> {
        self.transaction(move |transaction| {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO sessions (generation, session_id, session_key, resumed_from, status, started_at, start_count)
                 VALUES (:generation, :session_id, :session_key, :resumed_from, 'active', :started_at, 1)
                 ON CONFLICT (generation) DO UPDATE SET start_count = start_count + 1",
            )?;
            insert.execute(named_params! {
                ":generation": start.generation.to_string(),
                ":session_id": start.session.id.as_str(),
                ":session_key": start.session.key,
                ":resumed_from": start.resumed_from.as_ref().map(|id| id.as_str()),
                ":started_at": unix_millis(SystemTime::now()),
            })?;
            Ok(())
        })
        .await
    }

    /// Writes the ends of sessions, in one transaction.
    pub(crate) async fn complete(self, ends: Vec<SessionEnd>) -> Result<(), BoxError> {
        let delay = self.delay;
        self.transaction(move |transaction| {
            thread::sleep(delay);
            let mut complete = transaction.prepare_cached(COMPLETE)?;
            for end in ends {
                complete.execute(named_params! {
                    ":generation": end.generation.to_string(),
                    ":session_id": end.session.id.as_str(),
                    ":session_key": end.session.key,
                    ":started_at": unix_millis(end.started_at),
                    ":ended_at": unix_millis(end.started_at + end.duration),
                    ":reason": end.reason.as_str(),
                    ":next_session_id": end.next.as_ref().map(|next| next.id.as_str()),
                    ":message_count": end.requests,
                })?;
            }
            Ok(())
        })
        .await
    }

    /// SQLite blocks its thread, so it runs in `spawn_blocking`.
    async fn transaction<F>(self, work: F) -> Result<(), BoxError>
    where
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<()> + Send + 'static,
    {
        tokio::task::spawn_blocking(move || {
            let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
            let transaction = connection.transaction()?;
            work(&transaction)?;
            Ok(transaction.commit()?)
        })
        .await?
    }
}

fn unix_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
