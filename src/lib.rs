//! A Tower layer that gives every session of a gateway exactly one `session_end`, and a shutdown with a time limit.
//!
//! A gateway for agents, chats, MCP or games keeps sessions, and its plugins and databases need to know when one ends.
//! A client that says goodbye ends its session. A process that shuts down does not: its rows stay `active`. This crate
//! watches the gateway's responses, tracks the active sessions, and ends every one of them in a graceful shutdown,
//! within one budget, before the connections drain.
//!
//! # Quick start
//!
//! ```no_run
//! use std::time::Duration;
//! use axum::{Router, routing::post};
//! use tower_session_end::{ActiveSessions, SessionEnd, SessionId, signal};
//!
//! async fn chat(id: Option<SessionId>) -> [(&'static str, String); 1] {
//!     // The gateway makes its own ids. This one sends them in the header `x-session-id`.
//!     [("x-session-id", id.map_or_else(|| "4711".to_owned(), |id| id.to_string()))]
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let sessions = ActiveSessions::builder()
//!         .drain_timeout(Duration::from_secs(2))
//!         .on_session_end(async |end: SessionEnd| println!("{} ended: {}", end.session.id, end.reason))
//!         .build()?;
//!
//!     let app = Router::new().route("/chat", post(chat)).layer(sessions.layer());
//!
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!     let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signal::terminate()));
//!     let report = sessions.finish(server).await.into_result()?;
//!     println!("{report}");
//!     Ok(())
//! }
//! ```
//!
//! A hook that uses a client or a database is a closure that owns one, and gives a clone of it to each future. (An
//! `async move |end|` that captures cannot be a hook: its future would borrow from the closure, and a hook outlives the
//! call.)
//!
//! ```
//! use tower_session_end::{ActiveSessions, SessionEnd};
//! # #[derive(Clone)]
//! # struct Client;
//! # impl Client {
//! #     async fn complete(&self, _: &SessionEnd) -> Result<(), std::io::Error> { Ok(()) }
//! # }
//! # fn connect() -> Client { Client }
//!
//! let client = connect(); // a pool, or anything else that is cheap to clone
//! let sessions = ActiveSessions::builder()
//!     .on_session_end(move |end: SessionEnd| {
//!         let client = client.clone();
//!         async move { client.complete(&end).await }
//!     })
//!     .build()?;
//! # Ok::<(), tower_session_end::BuildError>(())
//! ```
//!
//! The [`guide`] shows which part of the crate fits which gateway (MCP, cookies, gRPC, WebSockets, event streams,
//! jobs), and which consumer of the ends (a URL, a database). Its modules are about other servers, the order of layers,
//! tests of your hooks, and operations.
//!
//! # How it works
//!
//! * **A response starts a session.** The layer reads every response head with a [`SessionProtocol`], by default
//!   [`HeaderProtocol`], and *notes* the id in `x-session-id`. A new id starts a session. A handler can also return a
//!   [`SessionUpdate`], or call [`ActiveSessions::note`].
//! * **It ends once**: by a response, by [`end`](ActiveSessions::end), by a compaction into a successor, with its
//!   [parent](Session::parent), by idle expiry, at the end of its lifetime, by eviction, by the drop of its
//!   [`SessionGuard`], or by the drain. A refusal (404) ends it only if no sign of life follows. Only the first of them fires its
//!   [`SessionEnd`]. If the same id is noted again, a new *generation* starts, with a [`GenerationId`] of its own.
//! * **Hooks run in the background.** The hooks of one session run in order, those of different sessions at the same
//!   time. A hook that hangs, fails or panics delays no other session.
//! * **At the signal** the phase goes from [`Open`](Phase::Open) over [`LameDuck`](Phase::LameDuck) to
//!   [`Closing`](Phase::Closing). Every session ends, and the drain waits for the hooks until its deadline. Then the
//!   connections drain until theirs. A session that starts in `Closing` ends at once. In [`Closed`](Phase::Closed) all
//!   is over, and [`finish`](ActiveSessions::finish) returns the report.
//!
//! # The budget of a shutdown
//!
//! | setting | default | limits |
//! |---|---|---|
//! | [`lame_duck_timeout`](ActiveSessionsBuilder::lame_duck_timeout) | 0 s | the time from the signal to the drain, in which readiness probes fail |
//! | [`drain_timeout`](ActiveSessionsBuilder::drain_timeout) | 2 s | all `session_end` hooks, including [`settle_timeout`](ActiveSessionsBuilder::settle_timeout) (0 s) for work: requests in flight and [`WorkGuard`]s |
//! | [`connection_drain_timeout`](ActiveSessionsBuilder::connection_drain_timeout) | 10 s | the requests and streams after the drain |
//!
//! A shutdown takes at most their sum, 12 s by default, and less if there is nothing to wait for. In Kubernetes the sum
//! has to be less than `terminationGracePeriodSeconds` (30 s by default), which includes the `preStop` hook.
//!
//! After `finish` no task of this crate runs. But code inside `tokio::task::spawn_blocking`, and any other thread that
//! blocks, cannot be stopped, and dropping a runtime waits for it: at the end of `#[tokio::main]`, a hook that is stuck
//! there delays the exit. If your hooks block, end the runtime without waiting:
//!
//! ```
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> { Ok(()) }
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let runtime = tokio::runtime::Runtime::new()?;
//!     let result = runtime.block_on(serve()); // the server, and `finish`
//!     runtime.shutdown_background();
//!     result
//! }
//! ```
//!
//! # Crashes and replicas
//!
//! Without a [registry], sessions are kept in memory: after SIGKILL or a power failure, their ends are lost. With a
//! registry, starts and ends are recorded, and the next process, or another replica, delivers the pending ends:
//!
//! ```no_run
//! # #[cfg(feature = "sqlite")]
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_session_end::{ActiveSessions, registry::SqliteRegistry};
//!
//! let sessions = ActiveSessions::builder().registry(SqliteRegistry::open("sessions.db")?).build()?;
//! println!("{}", sessions.recover().await); // before serving
//! # Ok(())
//! # }
//! ```
//!
//! Several processes on one registry are replicas: if several of them serve a session, a shutdown ends it on the last
//! of them only. An end on one of them is an end for all: the others learn of it within two heartbeats.
//!
//! **What is promised:** within the life of a process, exactly one `session_end` for each generation. After a crash,
//! delivery is at-least-once: if the process died after a hook ran and before the registry recorded that, the hook is
//! called again, for the same [`GenerationId`]. Consumers that cannot take the same end twice have to deduplicate by
//! [`SessionEnd::idempotency_key`]. On SQLite and PostgreSQL, what a transaction hook writes takes effect once.
//!
//! **If a hook fails:** with a registry it is called again after 1, 2, 4 and 8 s. Then the end is a dead letter: the
//! registry keeps it until an operator asks to deliver it again.
//!
//! **In an outage of the registry:** no request fails. A session that the host has just made starts, and ends, as without a
//! registry. The hooks of all other sessions wait, because another replica may hold them; see
//! [`registry`](ActiveSessionsBuilder::registry).
//!
//! # What is not promised
//!
//! * A response to a request that began before its session ended does not start the session anew. The layer remembers at
//!   least the last 65,536 ends for that: a response head that is later than that many ends may start it.
//! * A client that disconnects before the response head leaves a session that the layer has not seen. Call
//!   [`note`](ActiveSessions::note) in the handler, as soon as the session exists, where that matters.
//! * Hooks that block *all* threads of the runtime also block its timers, and so every deadline. Put blocking work in
//!   `spawn_blocking`.
//! * After its 101 response, an upgraded connection is invisible to the layer: tie its session to a [`SessionGuard`].
//! * axum and hyper do not wait for upgraded connections, and neither does this crate. Track their tasks with a
//!   `tokio_util::task::TaskTracker`, and wait for it.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `axum` | yes | the extractors for [`ActiveSessions`] and [`SessionId`], and [`SessionUpdate`] and [`StreamKind`] as parts of a response; [`AcceptUntilSignal`] as a listener of `axum::serve`; the layer itself needs no axum |
//! | `cookie` | no | `CookieProtocol`, for ids in a cookie |
//! | `metrics` | no | [metrics](observability#metrics) for the recorder of the `metrics` crate |
//! | `sqlite` | no | `registry::SqliteRegistry`, a registry in a file, for the processes of one machine |
//! | `postgres` | no | `registry::PostgresRegistry`, a registry in a PostgreSQL database, with hooks that write in its transactions |
//! | `redis` | no | `registry::RedisRegistry`, a registry on Redis or Valkey, for the processes of several machines |
//! | `redis-cluster` | no | `redis`, and its cluster client |
//! | `full` | no | all of the above |
//! | `registry-conformance` | no | `registry::conformance`, the tests for a [`Registry`](registry::Registry) of your own |
//! | `full` | no | `axum`, `cookie`, `metrics`, `postgres`, `redis`, `redis-cluster` and `sqlite` |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
#[cfg(any(doc, doctest))]
pub mod guide;
/// The code of the README is tested as the documentation is.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../README.md")]
mod readme {}
mod handle;
mod hooks;
mod housekeeper;
mod http;
pub mod observability;
mod panic;
mod persist;
mod protocol;
pub mod registry;
mod session;
mod shutdown;
mod sync;
mod tasks;
mod tracker;

#[cfg(feature = "axum")]
pub use self::http::{MissingSessionLayer, SessionIdRejection};
#[cfg(feature = "cookie")]
pub use self::protocol::CookieProtocol;
pub use self::{
    error::BoxError,
    handle::{
        ActiveSessions, ActiveSessionsBuilder, BuildError, ClosingFuture, NoteOutcome, RecoveryReport, SessionGuard,
        WorkGuard,
    },
    hooks::{HookError, HookFailure, HookOutput, SessionHook},
    http::{ResponseFuture, SessionBody, SessionLayer, SessionService, StreamKind},
    protocol::{HeaderProtocol, McpProtocol, OnNewId, RequestInfo, SessionProtocol, SessionUpdate},
    session::{
        EndReason, GenerationId, IdempotencyKey, InvalidGenerationId, InvalidSessionId, Phase, Session, SessionContext,
        SessionEnd, SessionId, SessionStart,
    },
    shutdown::{
        AcceptUntilSignal, FinishOutput, ShutdownFuture,
        progress::{DrainProgress, DrainWatch},
        report::{ConnectionReport, DrainReport, EndStage, ShutdownReport, UnfinishedEnd},
        signal,
    },
};
