//! Metrics as a real exporter serves them. Each test has its own exporter.

mod dashboard;
mod operations;
#[cfg(unix)]
mod process;
mod prometheus;
mod registry;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../../../tests/support/store.rs"]
mod store;
mod support;
mod table;
