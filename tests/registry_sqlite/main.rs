//! The registry in an SQLite file.

mod broken;
mod conformance;
mod crashes;
mod disks;
mod files;
mod handle;
mod in_use;
mod operator;
mod process;
#[path = "../support/random.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod random;
#[path = "../support/recorder.rs"]
mod recorder;
mod roles;
mod support;
