//! Cookie sessions of `tower-sessions`, each with its `session_end`, for `main.rs` and the tests.
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
//!     .layer(sessions.layer_with(CookieProtocol::new("sid"))); // outside, so that it sees the `Set-Cookie`
//! # Ok::<(), tower_session_end::BuildError>(())
//! ```
//!
//! `tower-sessions` expires a session without a response. Set
//! [`idle_timeout`](tower_session_end::ActiveSessionsBuilder::idle_timeout) to the time of its `Expiry::OnInactivity`,
//! so that expiry ends the session too.

/// The code of the guide about cookies is tested here, because it needs tower-sessions.
#[cfg(doctest)]
#[doc = include_str!("../../../src/guide/cookie.md")]
mod guide {}

pub mod app;
pub mod cookie_format;
pub mod event_log;
pub mod store;
pub mod visitor;
