//! The registries on a real SQLite file, a real redis-server and a real PostgreSQL server.

mod support;

mod registry {
    #[cfg(all(feature = "redis", feature = "sqlite"))]
    mod outages;
    #[cfg(feature = "postgres")]
    mod postgres;
    #[cfg(feature = "redis-cluster")]
    mod redis;
    #[cfg(feature = "sqlite")]
    mod sqlite;
}
