//! Exactly one `session_end` for every session of a Tower gateway, whatever ends it, and a shutdown that never takes
//! longer than you allowed.
//!
//! A gateway for agents, chats, MCP or games keeps sessions, and plugins and databases want to be told when one is
//! over. When a client says goodbye that is easy. When the process is stopped it is forgotten, and rows stay `active`
//! for ever. This crate watches a gateway's responses, remembers which sessions are active, and at a graceful shutdown
//! ends every one of them, within one budget, before the connections drain.
//!
//! # Quick start
//!
//! ```no_run
//! use std::time::Duration;
//! use axum::{Router, routing::post};
//! use tower_session_end::{ActiveSessions, SessionEnd, SessionId, signal};
//!
//! async fn chat(id: Option<SessionId>) -> [(&'static str, String); 1] {
//!     // The host gives out its ids as it likes; here in the header `x-session-id`.
//!     [("x-session-id", id.map_or_else(|| "4711".to_owned(), |id| id.to_string()))]
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let sessions = ActiveSessions::builder()
//!         .drain_timeout(Duration::from_secs(2))
//!         .on_session_end(async |end: SessionEnd| println!("{} is over: {}", end.session.id, end.reason))
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
//! Your gateway speaks MCP, or gRPC, or keeps its ids in cookies? The [`guide`] has a few lines for each.
//!
//! # How it works
//!
//! * **A response opens a session**: the layer reads every response head by a [`SessionProtocol`] (by default
//!   [`HeaderProtocol`]: `x-session-id`) and *notes* an id that is new. A handler can say more with a
//!   [`SessionUpdate`], or call [`ActiveSessions::note`] itself.
//! * **It ends once**: by a response, by [`end`](ActiveSessions::end), by a compaction into a successor, because it was
//!   idle or there were too many, because its [`SessionGuard`] was dropped, or by the drain. Whoever takes it out of the
//!   table owes the one [`SessionEnd`]; every other attempt finds nothing. Each time an id is noted anew it is a new
//!   *generation*, with an [`GenerationId`] of its own.
//! * **Hooks run in the background**, in order for each session, at the same time for different ones. One that hangs,
//!   fails or panics disturbs nobody else.
//! * **At the signal** the phase goes from [`Open`](Phase::Open) over [`LameDuck`](Phase::LameDuck) to
//!   [`Closing`](Phase::Closing): every session is ended, every hook awaited until the deadline. Then the connections
//!   drain, until theirs; what is born meanwhile is ended too. At [`Closed`](Phase::Closed) it is over, and
//!   [`finish`](ActiveSessions::finish) has the report.
//!
//! # The budget of a stop
//!
//! | | default | bounds |
//! |---|---|---|
//! | [`lame_duck_timeout`](ActiveSessionsBuilder::lame_duck_timeout) | 0 | from the signal, while readiness probes say no |
//! | [`drain_timeout`](ActiveSessionsBuilder::drain_timeout) | 2 s | all `session_end` hooks, settling included |
//! | [`connection_drain_timeout`](ActiveSessionsBuilder::connection_drain_timeout) | 10 s | requests and streams that go on |
//!
//! The sum is what a stop takes at most: 12 s by default. It takes less as soon as there is nothing to wait for. Under
//! Kubernetes it has to be less than `terminationGracePeriodSeconds` (30 s by default), in which a `preStop` hook counts.
//!
//! # The exit
//!
//! After `finish` no task of this crate runs. But code inside `tokio::task::spawn_blocking`, or any thread that blocks,
//! cannot be stopped, and a runtime that is dropped waits for it: at the end of `#[tokio::main]`, a hook that is stuck
//! there holds the process. If your hooks block, end the runtime without waiting:
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
//! A drain helps a process that is asked to stop. For one that is killed, and for sessions that several replicas serve,
//! give the builder a [registry]: births and ends are recorded, and whoever comes after a crash, or survives it,
//! delivers the `session_end` that is owed.
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
//! # What is not promised
//!
//! * Across a crash exactly once is not to be had: an end whose hook had run and whose record was not removed yet is
//!   delivered again, with the same [`GenerationId`], at most five times.
//!
//! * A client that disconnects before the response head is there leaves a session that the layer never saw. Where that
//!   matters, call [`note`](ActiveSessions::note) in the handler, as soon as the session is there.
//! * Without a [registry] what is in memory dies with the process: after SIGKILL, or a power cut, nobody is told.
//! * Hooks that block *all* threads of the runtime block its timers too, and with them every deadline. Blocking work
//!   belongs into `spawn_blocking`.
//! * A connection that was upgraded is invisible after its 101: tie its session to a [`SessionGuard`].
//! * axum and hyper do not wait for upgraded connections, and neither can this crate: keep their tasks in a
//!   `TaskTracker`, and wait for it.
//!
//! # A map of the source
//!
//! | | |
//! |---|---|
//! | `session/` | the vocabulary: ids, sessions, reasons, events, phases |
//! | `observability/` | what it says about itself: [events, spans and metrics](observability) |
//! | `hook.rs` | what the user plugs in |
//! | `sync.rs` | the few words of shared state, swappable for a schedule explorer |
//! | `registry/` | the durable record: the trait, SQLite, Redis |
//! | `tracker/` | who is active: the sharded map, generations, the claim, the order of hooks, what is to be written |
//! | `dispatch/` | the hook pool: patience, pacing, deadline; the recorder, which writes and keeps the lease |
//! | `report.rs`, `stop.rs` | what a stop came to, and what the handle remembers of it |
//! | `lifecycle.rs`, `guard.rs`, `upkeep.rs`, `durable.rs` | [`ActiveSessions`]: note, end, compact; guards; idle expiry and the cap; recovery |
//! | `builder/` | configuration and its checks |
//! | `shutdown/` | signals, the drain, `finish` |
//! | `protocol/` | the trait and its presets |
//! | `http/`, `extract.rs` | the layer, its service, future and body; axum's extractors |
//! | `guide.rs`, `guide/` | what to use for which gateway; documentation alone |
//!
//! Each imports only what stands above it.
//!
//! # Features
//!
//! * `axum` (default): the extractors ([`ActiveSessions`], [`SessionId`]) and [`SessionUpdate`] as a response. The
//!   layer itself needs no axum, and no feature.
//! * `cookie`: `CookieProtocol`, for ids in a cookie.
//! * `metrics`: [numbers](observability#metrics) for the `metrics` facade.
//! * `full`: all of them.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod error;
#[cfg(any(doc, doctest))]
pub mod guide;
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
    },
    hooks::{HookError, HookFailure, HookOutput, SessionHook},
    http::{ResponseFuture, SessionBody, SessionLayer, SessionService},
    protocol::{HeaderProtocol, McpProtocol, RequestInfo, SessionProtocol, SessionUpdate},
    session::{
        EndReason, GenerationId, IdempotencyKey, InvalidGenerationId, InvalidSessionId, Phase, Session, SessionContext,
        SessionEnd, SessionId, SessionStart,
    },
    shutdown::{
        FinishOutput, ShutdownFuture,
        report::{ConnectionReport, DrainReport, EndStage, ShutdownReport, UnfinishedEnd},
        signal,
    },
};
