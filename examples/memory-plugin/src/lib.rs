//! A gateway with a memory: it tells a plugin over HTTP when a session begins, and when it is over, so that what the
//! plugin keeps of it is never left `active`.
//!
//! * [`plugin`] is the consumer of the events: two POST requests, with a timeout and some tries.
//! * [`gateway`] is the host of the sessions.
//! * [`receiver`] is a small plugin, for want of a real one: an HTTP server and an SQLite table.

pub mod base_url;
pub mod gateway;
pub mod plugin;
pub mod receiver;
