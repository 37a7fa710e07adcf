//! The built gateway as a child process: real HTTP, real signals, a real SQLite file.
#![cfg(unix)]

mod routes;
mod shutdown;
mod support;
