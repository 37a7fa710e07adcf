//! The built gateway as a whole process: real HTTP, real signals, a real SQLite file.
#![cfg(unix)]

mod routes;
mod stop;
mod support;
