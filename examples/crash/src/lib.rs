//! Shared by the example and its tests: the gateway, its chats and its event log, its client, and its process.

mod chats;
mod client;
mod event_log;
mod host;
mod redis_server;
mod server;

pub use self::{
    chats::{Chat, Chats},
    client::Client,
    event_log::{Entry, EventLog, Kind, now},
    host::{LEASE, Settings, health_log, serve},
    redis_server::RedisServer,
    server::{Gone, PATIENCE, Server, TempDir},
};

/// Any error.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
