//! A gateway that reports the start and the end of each session to a memory plugin over HTTP, so that the plugin keeps
//! no session `active` after its end.
//!
//! * [`plugin`] is the consumer of the events: two POST requests, with a timeout and retries.
//! * [`gateway`] is the host of the sessions.
//! * [`receiver`] is a minimal plugin for the example: an HTTP server and an SQLite table.

pub mod base_url;
pub mod gateway;
pub mod limits;
pub mod plugin;
pub mod receiver;
