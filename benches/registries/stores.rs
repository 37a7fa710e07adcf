//! The stores of the registries: a file or a server, removed after its row of the table.

use std::{env, fs, path::PathBuf};

use redis::{Client, aio::ConnectionManagerConfig};
use sqlx::PgPool;
use tower_session_end::registry::{PostgresRegistry, RedisRegistry, RegistryError, SqliteRegistry};

use crate::{
    measure::Fallible,
    postgres_server::{self, PostgresServer},
    redis_server::RedisServer,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Redis,
    Postgres,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Redis => "Redis",
            Self::Postgres => "PostgreSQL",
        }
    }
}

#[derive(Debug)]
pub(crate) enum Store {
    Sqlite(Dir),
    Redis(RedisServer),
    Postgres(PostgresServer),
}

impl Store {
    /// An empty store. `None` if this machine does not have it.
    pub(crate) fn new(kind: Kind) -> Fallible<Option<Self>> {
        match kind {
            Kind::Sqlite => Ok(Some(Self::Sqlite(Dir::new()?))),
            Kind::Redis => Ok(has_redis().then(|| Self::Redis(RedisServer::start()))),
            // It syncs each commit, as it does by default. A fleet has many connections.
            Kind::Postgres => {
                let start = || Self::Postgres(PostgresServer::start(&["max_connections=300"]));
                Ok(postgres_server::is_installed().then(start))
            }
        }
    }
}

fn has_redis() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut files =
        env::split_paths(&path).flat_map(|dir| ["redis-server", "valkey-server"].map(|name| dir.join(name)));
    env::var_os("REDIS_SERVER").is_some() || files.any(|file| file.is_file())
}

/// A registry with its defaults.
pub(crate) async fn postgres(server: &PostgresServer) -> Fallible<PostgresRegistry> {
    let registry = PostgresRegistry::builder(PgPool::connect(&server.url()).await?);
    Ok(registry.connect().await?)
}

/// A registry with its defaults.
pub(crate) async fn redis(server: &RedisServer) -> Fallible<RedisRegistry> {
    let connection = Client::open(server.url())?.get_connection_manager_lazy(ConnectionManagerConfig::new())?;
    Ok(RedisRegistry::builder(connection).connect().await?)
}

/// Removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Dir(PathBuf);

impl Dir {
    fn new() -> Fallible<Self> {
        let dir = env::temp_dir().join(format!("tower-session-end-registries-{}", std::process::id()));
        // A killed run with the same process id may have left one.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    pub(crate) fn registry(&self) -> Result<SqliteRegistry, RegistryError> {
        SqliteRegistry::open(self.0.join("sessions.db"))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
