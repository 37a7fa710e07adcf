//! The registry in an SQLite file.

mod broken;
mod conformance;
mod support;
