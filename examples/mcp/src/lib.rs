//! An MCP server on rmcp whose sessions have exactly one `session_end` each: what `main` runs, and the tests too.
//!
//! * [`Tools`]: the host. It knows nothing of `tower-session-end`.
//! * [`serve`]: the layer around it, nested in an axum router or straight behind hyper, and the order of a stop.
//! * [`Telling`]: a session manager that tells what no response does: rmcp ends idle sessions by itself.
//! * [`connect`]: rmcp's own client.

mod client;

/// What the guide of our crate says about MCP. Its code is tried here: there it would need rmcp.
#[cfg(doctest)]
#[doc = include_str!("../../../src/guide/mcp.md")]
mod guide {}

mod manager;
mod server;
mod tools;

pub use self::{
    client::{Connected, call, connect},
    manager::Telling,
    server::{Mount, Served, serve},
    tools::Tools,
};
