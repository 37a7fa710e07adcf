//! Processes that are killed, on each registry: no session is without an end, and none has two under different names.

#[path = "../../../../tests/support/redis_server.rs"]
mod redis_server;

mod rounds;
mod support;
mod windows;
