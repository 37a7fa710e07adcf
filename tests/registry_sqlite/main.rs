//! The registry in an SQLite file.

mod broken;
mod conformance;
mod crashes;
mod files;
mod process;
#[path = "../support/random.rs"]
mod random;
mod roles;
mod support;
