//! Numbers as a real exporter serves them, each test with an exporter of its own.

#[cfg(unix)]
mod process;
mod registry;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../../../tests/support/store.rs"]
mod store;
mod support;
mod table;
