//! What the example and its tests share: the gateway, its diary, and how to start it, talk to it and kill it.

mod client;
mod diary;
mod host;
mod redis_server;
mod server;

pub use self::{
    client::Client,
    diary::{Diary, Entry, Kind},
    host::{Settings, serve},
    redis_server::RedisServer,
    server::{Gone, PATIENCE, Server, TempDir},
};

/// Any error.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
