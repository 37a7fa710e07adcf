//! The registries on a real SQLite file and a real redis-server.

mod support;

mod registry {
    mod outages;
    mod redis;
    mod sqlite;
}
