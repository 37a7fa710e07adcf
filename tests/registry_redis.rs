//! The registry on a real redis-server: what it promises, and what becomes of it when the server or a holder fails.

#[path = "registry_redis/conformance.rs"]
mod conformance;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "registry_redis/support.rs"]
mod support;
