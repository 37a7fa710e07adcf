//! The two stores: memory, and a SQLite file that outlives the process.

use std::path::Path;

use tower_session_end::BoxError;
use tower_sessions::MemoryStore;
use tower_sessions_rusqlite_store::{RusqliteStore, tokio_rusqlite::Connection};

/// Where `tower-sessions` keeps its sessions.
#[derive(Clone, Debug)]
pub enum Store {
    /// As long as the process lives, and no longer.
    Memory(MemoryStore),
    /// In a file.
    Sqlite(RusqliteStore),
}

impl Store {
    /// An empty one.
    #[must_use]
    pub fn memory() -> Self {
        Self::Memory(MemoryStore::default())
    }

    /// The one in this file, which is made if there is none.
    ///
    /// # Errors
    ///
    /// SQLite's, if the file cannot be opened or is no database.
    pub async fn sqlite(file: &Path) -> Result<Self, BoxError> {
        let store = RusqliteStore::new(Connection::open(file).await?);
        store.migrate().await?;
        Ok(Self::Sqlite(store))
    }

    /// The word for it in a line of output.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Sqlite(_) => "SQLite",
        }
    }
}

/// The ids of the sessions that the file holds, sorted.
///
/// # Errors
///
/// SQLite's, if it is no file of a [`Store`].
pub fn ids_in(file: &Path) -> Result<Vec<String>, BoxError> {
    let db = rusqlite::Connection::open(file)?;
    let mut select = db.prepare("SELECT id FROM tower_sessions ORDER BY id")?;
    Ok(select.query_map((), |row| row.get(0))?.collect::<Result<_, _>>()?)
}
