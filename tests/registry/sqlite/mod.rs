//! The registry in an SQLite file.

mod conformance;
mod contention;
mod corruption;
mod crashes;
mod disk_full;
mod handle;
mod multi_process;
mod operator_views;
mod panics;
mod process;
mod support;
