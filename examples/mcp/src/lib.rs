//! An MCP server on rmcp whose sessions have exactly one `session_end` each, for `main.rs` and the tests.
//!
//! * [`Tools`]: the host. It has no code for `tower-session-end`.
//! * [`serve`]: the layer around it, nested in an axum router or directly behind hyper, and the order of a shutdown.
//! * [`NotifyingManager`]: a session manager that reports the sessions that rmcp ends without a response, such as idle
//!   ones.
//! * [`connect`]: rmcp's own client.

mod client;

/// The code of the guide about MCP is tested here, because it needs rmcp.
#[cfg(doctest)]
#[doc = include_str!("../../../src/guide/mcp.md")]
mod guide {}

mod manager;
mod server;
mod tools;
mod unavailable;

pub use self::{
    client::{Connected, call, connect},
    manager::NotifyingManager,
    server::{Mount, Served, serve},
    tools::Tools,
};
