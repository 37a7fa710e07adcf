//! [`Chats`]: a table in the file of the registry, and the hook that writes it.

use std::path::Path;

use tower_session_end::{
    BoxError, SessionEnd, SessionStart,
    registry::{
        SqliteTransactionHook,
        rusqlite::{self, Connection, Transaction},
    },
};

/// One row for each generation of a session: a session that starts again after its end gets a second row.
///
/// The times are those of the transactions. [`SessionEnd::started_at`] and [`SessionEnd::duration`] have those of the processes.
/// `ends` is here to show that no end is written twice. An application does not need it.
const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS chats (
        generation TEXT PRIMARY KEY,
        id TEXT NOT NULL,
        started_at TEXT NOT NULL DEFAULT current_timestamp,
        ended_at TEXT,
        reason TEXT,
        ends INTEGER NOT NULL DEFAULT 0
    )";

/// Writes in the transactions of the registry: a row commits with the record of its session, and its end with the removal of that
/// record. So no statement here has to expect that it is repeated.
#[derive(Debug)]
pub struct Chats;

impl SqliteTransactionHook for Chats {
    fn session_start(&self, transaction: &Transaction<'_>, start: &SessionStart) -> Result<(), BoxError> {
        let mut insert = transaction.prepare_cached("INSERT INTO chats (generation, id) VALUES (?1, ?2)")?;
        insert.execute((start.generation.to_string(), start.session.id.as_str()))?;
        Ok(())
    }

    fn session_end(&self, transaction: &Transaction<'_>, ends: &[SessionEnd]) -> Result<(), BoxError> {
        let mut update = transaction.prepare_cached(
            "UPDATE chats SET ends = ends + 1, reason = ?2, ended_at = current_timestamp WHERE generation = ?1",
        )?;
        for end in ends {
            update.execute((end.generation.to_string(), end.reason.as_str()))?;
        }
        Ok(())
    }
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chat {
    /// The session.
    pub id: String,
    /// The reason of its end; `None` while it is active.
    pub reason: Option<String>,
    /// When it ended, in UTC.
    pub ended_at: Option<String>,
    /// How many ends were written.
    pub ends: i64,
}

impl Chats {
    /// Creates the table in the file of a registry.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn create_table(file: &Path) -> rusqlite::Result<()> {
        Connection::open(file)?.execute_batch(TABLE)
    }

    /// All rows, over a connection of their own.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn read(file: &Path) -> rusqlite::Result<Vec<Chat>> {
        let connection = Connection::open(file)?;
        let mut rows = connection.prepare("SELECT id, reason, ended_at, ends FROM chats")?;
        rows.query_map((), |row| {
            Ok(Chat { id: row.get(0)?, reason: row.get(1)?, ended_at: row.get(2)?, ends: row.get(3)? })
        })?
        .collect()
    }
}
