//! The registry in an SQLite file.

mod conformance;
mod support;
