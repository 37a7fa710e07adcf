//! Cookie sessions of `tower-sessions`, each with its `session_end`: what `main.rs` shows and the tests try.
//!
//! Three lines put the layer around a host that keeps its sessions with `tower-sessions`:
//!
//! ```
//! # use tower_session_end::{ActiveSessions, CookieProtocol};
//! # use tower_sessions::{MemoryStore, SessionManagerLayer};
//! # let routes = axum::Router::new();
//! let sessions = ActiveSessions::builder().build()?;
//! let app: axum::Router = routes
//!     .layer(SessionManagerLayer::new(MemoryStore::default()).with_name("sid"))
//!     .layer(sessions.layer_with(CookieProtocol::new("sid"))); // around it, so that it sees the cookie being set
//! # Ok::<(), tower_session_end::BuildError>(())
//! ```
//!
//! `tower-sessions` forgets a session that expires without a word. Give
//! [`idle_timeout`](tower_session_end::ActiveSessionsBuilder::idle_timeout) the time of its `Expiry::OnInactivity`, and
//! that is an end too.

/// What the guide of our crate says about cookies. Its code is tried here: there it would need tower-sessions.
#[cfg(doctest)]
#[doc = include_str!("../../../src/guide/cookie.md")]
mod guide {}

pub mod app;
pub mod journal;
pub mod seal;
pub mod store;
pub mod visitor;
