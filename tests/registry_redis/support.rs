//! Holders on a server, and what they say.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime},
};

use redis::{Client, aio::ConnectionManager, aio::ConnectionManagerConfig};
use tower_session_end::{
    EndReason, EventId, Session, SessionId,
    registry::{Applied, Change, EndRecord, Orphan, Record, RedisRegistry, RedisRegistryBuilder, Registry, RegistryError},
};

pub(crate) use crate::redis_server::RedisServer;

/// Longer than a busy machine needs for a beat.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) async fn manager(server: &RedisServer) -> ConnectionManager {
    let config = ConnectionManagerConfig::new().set_max_delay(Duration::from_millis(200));
    Client::open(server.url()).unwrap().get_connection_manager_with_config(config).await.unwrap()
}

/// With a command timeout that a busy machine does not reach.
pub(crate) async fn builder(server: &RedisServer) -> RedisRegistryBuilder<ConnectionManager> {
    RedisRegistry::builder(manager(server).await).lease(LONG).command_timeout(Duration::from_secs(10))
}

pub(crate) async fn holder(server: &RedisServer) -> RedisRegistry {
    builder(server).await.connect().await.unwrap()
}
