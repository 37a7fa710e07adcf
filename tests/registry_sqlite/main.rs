//! The registry in an SQLite file.

mod broken;
mod conformance;
mod crashes;
mod files;
mod in_use;
mod operator;
mod process;
#[path = "../support/random.rs"]
mod random;
mod roles;
mod support;
