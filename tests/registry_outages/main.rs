//! Real registries that are out of reach: what a request, a birth and a drain notice of it.

#[path = "../support/recorder.rs"]
mod recorder;
#[path = "../support/redis_server.rs"]
mod redis_server;

mod costs;
mod redis;
mod sqlite;
mod support;
