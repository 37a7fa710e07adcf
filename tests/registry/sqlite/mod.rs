//! The registry in an SQLite file.

mod commits;
mod conformance;
mod contention;
mod corruption;
mod counters;
mod crashes;
mod dead_letters;
mod deployment;
mod disk_full;
mod handle;
#[cfg(feature = "metrics")]
mod metrics;
mod multi_process;
mod notices;
mod operator_views;
mod panics;
mod process;
mod recovery;
mod stuck_reader;
mod support;
mod transaction;
