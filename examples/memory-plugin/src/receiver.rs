//! A minimal memory plugin: it stores the status of each session in an SQLite table.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use rusqlite::{Connection, OptionalExtension, named_params};
use serde::Deserialize;
use tower_session_end::BoxError;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS sdk_sessions (
        content_session_id TEXT PRIMARY KEY,
        project            TEXT NOT NULL,
        prompt             TEXT NOT NULL,
        status             TEXT NOT NULL CHECK (status IN ('active', 'completed', 'failed')),
        completed_at       INTEGER
    ) STRICT;
";

/// The table. Cheap to clone. All clones share one connection.
#[derive(Clone, Debug)]
pub struct Store(Arc<Mutex<Connection>>);

impl Store {
    /// Opens the file, and creates it and its table if they do not exist. `:memory:` opens a database in memory.
    ///
    /// # Errors
    ///
    /// SQLite's error, with the name of the file.
    pub fn open(path: &Path) -> Result<Self, BoxError> {
        Self::try_open(path).map_err(|error| format!("{}: {error}", path.display()).into())
    }

    fn try_open(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        // With WAL, other connections can read during a write.
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// The status of the session, if it exists.
    ///
    /// # Errors
    ///
    /// SQLite's error.
    pub async fn status(&self, id: &str) -> Result<Option<String>, BoxError> {
        let id = id.to_owned();
        let query = "SELECT status FROM sdk_sessions WHERE content_session_id = ?1";
        self.run(move |db| db.query_row(query, [id], |row| row.get(0)).optional()).await
    }

    /// The number of active sessions.
    ///
    /// # Errors
    ///
    /// SQLite's error.
    pub async fn active(&self) -> Result<u64, BoxError> {
        let query = "SELECT count(*) FROM sdk_sessions WHERE status = 'active'";
        self.run(move |db| db.query_row(query, [], |row| row.get(0))).await
    }

    /// Marks the session as active, also if it was completed before.
    async fn init(&self, init: Init) -> Result<(), BoxError> {
        self.run(move |db| {
            let mut upsert = db.prepare_cached(
                "INSERT INTO sdk_sessions (content_session_id, project, prompt, status)
                 VALUES (:id, :project, :prompt, 'active')
                 ON CONFLICT (content_session_id) DO UPDATE
                 SET project = :project, prompt = :prompt, status = 'active', completed_at = NULL",
            )?;
            upsert.execute(named_params! {
                ":id": init.content_session_id, ":project": init.project, ":prompt": init.prompt
            })
        })
        .await
        .map(drop)
    }

    /// Marks the session as completed. False if it does not exist.
    async fn complete(&self, complete: Complete) -> Result<bool, BoxError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        self.run(move |db| {
            let mut update = db.prepare_cached(
                "UPDATE sdk_sessions SET status = 'completed', completed_at = :now WHERE content_session_id = :id",
            )?;
            update.execute(named_params! { ":id": complete.content_session_id, ":now": now })
        })
        .await
        .map(|rows| rows == 1)
    }

    /// SQLite blocks its thread, so it runs in `spawn_blocking`.
    async fn run<T, F>(&self, work: F) -> Result<T, BoxError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let connection = Arc::clone(&self.0);
        let work = move || work(&connection.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(tokio::task::spawn_blocking(work).await??)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Init {
    content_session_id: String,
    project: String,
    prompt: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Complete {
    content_session_id: String,
}

/// The plugin's two routes.
pub fn router(store: Store) -> Router {
    Router::new()
        .route("/api/sessions/init", post(init))
        .route("/api/sessions/complete", post(complete))
        .with_state(store)
}

type Answer = Result<Json<serde_json::Value>, (StatusCode, String)>;

async fn init(State(store): State<Store>, Json(init): Json<Init>) -> Answer {
    store.init(init).await.map_err(|error| internal(&error))?;
    Ok(Json(serde_json::json!({ "status": "active" })))
}

async fn complete(State(store): State<Store>, Json(complete): Json<Complete>) -> Answer {
    if !store.complete(complete).await.map_err(|error| internal(&error))? {
        return Err((StatusCode::NOT_FOUND, "no such session\n".to_owned()));
    }
    Ok(Json(serde_json::json!({ "status": "completed" })))
}

fn internal(error: &BoxError) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
}
