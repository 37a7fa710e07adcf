//! The registry on a real redis-server: what it promises, and what becomes of it when the server or a holder fails.

#[path = "registry_redis/conformance.rs"]
mod conformance;
#[path = "registry_redis/connections.rs"]
mod connections;
#[path = "registry_redis/cost.rs"]
mod cost;
#[path = "registry_redis/failovers.rs"]
mod failovers;
#[path = "registry_redis/leases.rs"]
mod leases;
#[path = "registry_redis/outages.rs"]
mod outages;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "registry_redis/support.rs"]
mod support;
#[path = "registry_redis/way.rs"]
mod way;
