//! The two stores: memory, and a SQLite file that outlives the process.

use std::path::Path;

use tower_session_end::BoxError;
use tower_sessions::MemoryStore;
use tower_sessions_rusqlite_store::{RusqliteStore, tokio_rusqlite::Connection};

/// The store of `tower-sessions`.
#[derive(Clone, Debug)]
pub enum Store {
    /// In memory.
    Memory(MemoryStore),
    /// In a SQLite file.
    Sqlite(RusqliteStore),
}

impl Store {
    /// An empty store in memory.
    #[must_use]
    pub fn memory() -> Self {
        Self::Memory(MemoryStore::default())
    }

    /// The store in this file, which is created if it does not exist.
    ///
    /// # Errors
    ///
    /// SQLite's error if the file cannot be opened or is not a database.
    pub async fn sqlite(file: &Path) -> Result<Self, BoxError> {
        let store = RusqliteStore::new(Connection::open(file).await?);
        store.migrate().await?;
        Ok(Self::Sqlite(store))
    }

    /// The name in the output.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Sqlite(_) => "SQLite",
        }
    }
}

/// The ids of the sessions in the file, sorted.
///
/// # Errors
///
/// SQLite's error if the file is not that of a [`Store`].
pub fn ids_in(file: &Path) -> Result<Vec<String>, BoxError> {
    let db = rusqlite::Connection::open(file)?;
    let mut select = db.prepare("SELECT id FROM tower_sessions ORDER BY id")?;
    Ok(select.query_map((), |row| row.get(0))?.collect::<Result<_, _>>()?)
}
