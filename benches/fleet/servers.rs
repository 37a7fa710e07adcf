//! A registry on either server, and what the server does.

use std::time::{Duration, Instant};

use redis::{Client, aio::ConnectionManagerConfig};
use sqlx::postgres::PgPoolOptions;
use tower_session_end::registry::{
    Applied, Change, Heartbeat, Orphan, PostgresRegistry, RedisRegistry, Registry, RegistryError,
};

use crate::{measure::Fallible, stores::Store};

/// A heartbeat comes each second.
pub(crate) const LEASE: Duration = Duration::from_secs(4);

/// The connections of one replica.
const CONNECTIONS: u32 = 2;

const NO_SERVER: &str = "SQLite has no server for a fleet";

/// A registry of one replica, over connections of its own.
pub(crate) async fn registry(store: &Store) -> Fallible<AnyRegistry> {
    Ok(match store {
        Store::Sqlite(_) => return Err(NO_SERVER.into()),
        Store::Redis(server) => {
            let connection = Client::open(server.url())?.get_connection_manager_lazy(ConnectionManagerConfig::new())?;
            AnyRegistry::Redis(RedisRegistry::builder(connection).lease(LEASE).connect().await?)
        }
        Store::Postgres(server) => {
            let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(&server.url()).await?;
            AnyRegistry::Postgres(PostgresRegistry::builder(pool).lease(LEASE).connect().await?)
        }
    })
}

/// The commands or transactions that the server has carried out.
pub(crate) fn served(store: &Store) -> Fallible<u64> {
    match store {
        Store::Sqlite(_) => Err(NO_SERVER.into()),
        Store::Redis(server) => {
            let info = server.ask("INFO stats");
            let count = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
            Ok(count.ok_or("no count of commands")?.trim().parse()?)
        }
        Store::Postgres(server) => Ok(server.ask("SELECT sum(xact_commit)::bigint FROM pg_stat_database").parse()?),
    }
}

pub(crate) enum AnyRegistry {
    Redis(RedisRegistry),
    Postgres(PostgresRegistry),
}

impl Registry for AnyRegistry {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        match self {
            Self::Redis(registry) => registry.apply(changes).await,
            Self::Postgres(registry) => registry.apply(changes).await,
        }
    }

    async fn apply_before(&self, changes: Vec<Change>, deadline: Instant) -> Result<Vec<Applied>, RegistryError> {
        match self {
            Self::Redis(registry) => registry.apply_before(changes, deadline).await,
            Self::Postgres(registry) => registry.apply_before(changes, deadline).await,
        }
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        match self {
            Self::Redis(registry) => registry.heartbeat().await,
            Self::Postgres(registry) => registry.heartbeat().await,
        }
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        match self {
            Self::Redis(registry) => registry.claim_orphans(max).await,
            Self::Postgres(registry) => registry.claim_orphans(max).await,
        }
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        match self {
            Self::Redis(registry) => registry.release_lease().await,
            Self::Postgres(registry) => registry.release_lease().await,
        }
    }

    fn lease_is_valid(&self) -> bool {
        match self {
            Self::Redis(registry) => registry.lease_is_valid(),
            Self::Postgres(registry) => registry.lease_is_valid(),
        }
    }

    fn heartbeat_interval(&self) -> Duration {
        match self {
            Self::Redis(registry) => registry.heartbeat_interval(),
            Self::Postgres(registry) => registry.heartbeat_interval(),
        }
    }
}
