//! Rows in a real SQLite file, as a gateway stores them: a log of ended sessions, or one row per session that is
//! completed when the session ends.

use std::{
    env, fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::UNIX_EPOCH,
};

use rusqlite::{Connection, params};
use tower_session_end::{BoxError, SessionEnd};

use crate::{Figures, measure::Fallible, scenarios::id};

/// A write-ahead log that is synced at every commit, and a cache that holds all pages.
const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA cache_size = -65536;
    CREATE TABLE sessions (id TEXT PRIMARY KEY, started_at INTEGER NOT NULL, ended_at INTEGER, reason TEXT);
    CREATE TABLE ends (id TEXT NOT NULL, ended_at INTEGER NOT NULL, reason TEXT NOT NULL);
";

/// The statement for an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Appends a row.
    Insert,
    /// Updates the row of the session. Ends arrive in random order, so a batch changes about one page per row.
    Update,
}

impl Work {
    const fn sql(self) -> &'static str {
        match self {
            Self::Insert => "INSERT INTO ends (id, ended_at, reason) VALUES (?1, ?2, ?3)",
            Self::Update => "UPDATE sessions SET ended_at = ?2, reason = ?3 WHERE id = ?1",
        }
    }

    const fn count(self) -> &'static str {
        match self {
            Self::Insert => "SELECT count(DISTINCT id) FROM ends WHERE reason = 'shutdown' AND ended_at > 0",
            Self::Update => "SELECT count(*) FROM sessions WHERE reason = 'shutdown' AND ended_at > 0",
        }
    }
}

/// The file is removed when this is dropped.
pub(crate) struct Rows {
    connection: Arc<Mutex<Connection>>,
    work: Work,
    dir: PathBuf,
}

impl Rows {
    /// A file with `n` active sessions.
    pub(crate) fn new(work: Work, n: usize) -> Fallible<Self> {
        let dir = env::temp_dir().join(format!("tower-session-end-drain-{}", std::process::id()));
        // A killed run with the same process id may have left one.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        let mut connection = Connection::open(dir.join("gateway.db"))?;
        connection.execute_batch(SCHEMA)?;
        let transaction = connection.transaction()?;
        {
            let mut insert = transaction.prepare("INSERT INTO sessions (id, started_at) VALUES (?1, 0)")?;
            (0..n).try_for_each(|number| insert.execute([id(number)]).map(drop))?;
        }
        transaction.commit()?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), work, dir })
    }

    /// Writes these ends in one transaction.
    pub(crate) fn write(&self, ends: &[SessionEnd]) -> rusqlite::Result<()> {
        write(&self.connection, self.work, ends)
    }

    /// A batch hook that writes the ends in `spawn_blocking`.
    pub(crate) fn hook(&self) -> impl Fn(Vec<SessionEnd>) -> Write + Send + Sync + 'static {
        let (connection, work) = (Arc::clone(&self.connection), self.work);
        move |ends| {
            let connection = Arc::clone(&connection);
            Box::pin(async move { Ok(tokio::task::spawn_blocking(move || write(&connection, work, &ends)).await??) })
        }
    }

    /// Checks that the file has every reported end. It may also have batches that were running at the deadline or came
    /// later.
    pub(crate) fn check(&self, figures: &Figures) -> Fallible<()> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let rows: u32 = connection.query_row(self.work.count(), (), |row| row.get(0))?;
        let ended = figures.iter().find(|(name, _)| *name == "ended").map_or(0, |(_, ended)| *ended as usize);
        if rows as usize >= ended { Ok(()) } else { Err(format!("{rows} rows, but {ended} ends").into()) }
    }
}

type Write = std::pin::Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

impl Drop for Rows {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn write(connection: &Mutex<Connection>, work: Work, ends: &[SessionEnd]) -> rusqlite::Result<()> {
    let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
    let transaction = connection.transaction()?;
    {
        let mut statement = transaction.prepare(work.sql())?;
        for end in ends {
            let at = (end.started_at + end.duration).duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
            statement.execute(params![end.session.id.as_str(), at, end.reason.as_str()])?;
        }
    }
    transaction.commit()
}
