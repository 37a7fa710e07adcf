//! Which part of the crate fits which gateway.
//!
//! | the gateway | use |
//! |---|---|
//! | [sends its ids in a header](#ids-in-a-header) | [`ActiveSessions::layer`] |
//! | [is an MCP server](#mcp-servers) | `McpProtocol` |
//! | [keeps the id in a cookie](#ids-in-a-cookie) | `CookieProtocol` |
//! | [serves gRPC](#grpc) | [`ActiveSessions::layer`] |
//! | [uses WebSockets](#websockets) | [`ActiveSessions::guard`] |
//! | [streams events](#event-streams) | the layer, and [`ActiveSessions::closing`] |
//! | [streams a model's tokens](#token-streams) | [`StreamKind::Answer`] |
//! | [runs jobs](#jobs) | [`ActiveSessions::guard`] |
//! | [goes on working after its response](#work-after-the-response) | [`ActiveSessions::work`] |
//! | [starts subagents](#children) | [`Session::with_parent`] |
//! | [shares its listener with the next version](#a-listener-that-is-handed-over) | [`ActiveSessions::accept_until_signal`] |
//! | [sends its ids in no header](#ids-in-no-header) | [`SessionUpdate`], or [`ActiveSessions::note`] |
//! | [accepts ids that were made elsewhere](#ids-made-elsewhere) | `adopt(true)` on the protocol |
//! | [does none of these](#a-custom-protocol) | your own [`SessionProtocol`] |
//! | [expires sessions without a response](#sessions-that-expire-in-the-host) | [`ActiveSessions::snapshot`] |
//!
//! Each of them shuts down the same way: with [`shutdown_on`](ActiveSessions::shutdown_on) where the server takes its
//! signal, and [`finish`](ActiveSessions::finish) around the server, as on the [front page](crate). With a
//! [`lame_duck_timeout`](ActiveSessionsBuilder::lame_duck_timeout), clients that keep HTTP/1 connections alive are told to
//! go elsewhere before the listener closes
//! ([`close_connections`](ActiveSessionsBuilder::close_connections)). The last two
//! sections show consumers of the ends: [a URL](#posting-ends-to-a-url) and [a database](#writing-ends-to-a-database).
//!
//! Pages of their own: [`servers`] beyond `axum::serve`, the order of [`layers`], [`testing`] your hooks, [`operations`], and
//! the [`examples`] of the repository.
//!
//! # Ids in a header
//!
//! The gateway needs no code for this crate. A response with a new `x-session-id` starts a session, and one with
//! `x-session-end: <reason>` ends it. `x-session-compacted-from: <old id>` beside an id compacts the old session into
//! the new one. Other header names are possible: see [`HeaderProtocol`]. A host that replaces an id, and says so only by
//! another `x-session-id` in the response, needs [`on_new_id`](HeaderProtocol::on_new_id): by default the old session
//! stays active.
//!
//! ```
//! # use axum::{Router, routing::post};
//! # use http::HeaderName;
//! # use tower_session_end::{ActiveSessions, HeaderProtocol};
//! # let sessions = ActiveSessions::builder().build()?;
//! let protocol = HeaderProtocol::new().id_header(HeaderName::from_static("x-conversation"));
//! let app: Router = Router::new()
//!     .route("/chat", post(async || [("x-conversation", "4711")]))
//!     .layer(sessions.layer_with(protocol));
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # tower::ServiceExt::oneshot(app, http::Request::post("/chat").body(axum::body::Body::empty())?).await?;
//! # assert!(sessions.contains("4711"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # MCP servers
//!
#![cfg_attr(not(doctest), doc = include_str!("guide/mcp.md"))]
//!
//! # Ids in a cookie
//!
#![cfg_attr(not(doctest), doc = include_str!("guide/cookie.md"))]
//!
//! # gRPC
//!
#![cfg_attr(not(doctest), doc = include_str!("guide/grpc.md"))]
//!
//! # WebSockets
//!
//! A connection is invisible to the layer after its 101. A guard ties the session to the task that holds the socket:
//! the session ends when the guard is dropped, however the task ends. At shutdown
//! [`closing`](crate::SessionGuard::closing) resolves, and the task can send a close frame. Servers do not wait for
//! upgraded connections: keep their tasks in a `TaskTracker` and wait for it if that matters (`cargo run --example
//! websocket`).
//!
//! ```
//! use axum::{extract::ws::{Message, WebSocket, WebSocketUpgrade}, response::Response};
//! # use tower_session_end::{ActiveSessions, EndReason};
//! # async fn talk(socket: &mut WebSocket) {}
//!
//! async fn socket(upgrade: WebSocketUpgrade, sessions: ActiveSessions) -> Response {
//!     let guard = sessions.guard("socket-1").expect("a valid id");
//!     upgrade.on_upgrade(move |mut socket| async move {
//!         tokio::select! {
//!             () = talk(&mut socket) => drop(guard.end(EndReason::Deleted)),
//!             () = guard.closing() => drop(socket.send(Message::Close(None)).await),
//!         }
//!     })
//! }
//! # let _: axum::Router = axum::Router::new().route("/", axum::routing::any(socket));
//! ```
//!
//! # Event streams
//!
//! The layer is enough: an open `text/event-stream` on a `GET` ends with its session, so it does not hold up the
//! shutdown. To send a last event, await [`closing`](ActiveSessions::closing). The stream stays open until the drain is
//! over (`cargo run --example event_stream`).
//!
//! Other endless bodies need a word: add their media type with
//! [`listening_media_types`](ActiveSessionsBuilder::listening_media_types) (`application/x-ndjson`, for example), or mark
//! the response as [`StreamKind::Listening`], whatever its method. Without it, they last until the end of
//! [`connection_drain_timeout`](ActiveSessionsBuilder::connection_drain_timeout), and end with an error.
//!
//! A layer that compresses responses belongs outside of this one (`.layer(sessions.layer())` first, then
//! `.layer(CompressionLayer::new())`). Inside of it, it would not see that this layer ends a stream, and the client
//! would get a torn file.
//!
//! ```
//! use std::convert::Infallible;
//! use axum::response::sse::{Event, Sse};
//! use futures_util::{Stream, StreamExt, stream};
//! # use tower_session_end::ActiveSessions;
//! # fn updates() -> impl Stream<Item = Result<Event, Infallible>> { stream::pending() }
//!
//! async fn events(sessions: ActiveSessions) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
//!     let goodbye = stream::iter([Ok(Event::default().event("goodbye"))]);
//!     Sse::new(updates().take_until(sessions.closing()).chain(goodbye))
//! }
//! # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(events));
//! ```
//!
//! # Token streams
//!
//! A model's tokens as a `text/event-stream` on a `GET` look like a stream to which a client listens. A shutdown would
//! end them in the middle, cleanly, and the client would take the answer for whole. So the handler has to say that it is
//! an answer: then it is work, for which a [`settle_timeout`](ActiveSessionsBuilder::settle_timeout) waits, and it is
//! finished within the [`connection_drain_timeout`](ActiveSessionsBuilder::connection_drain_timeout). The answer to a
//! `POST` needs no mark.
//!
//! ```
//! use std::convert::Infallible;
//! use axum::response::{IntoResponse, sse::{Event, Sse}};
//! use futures_util::{Stream, stream};
//! use tower_session_end::StreamKind;
//! # fn model() -> impl Stream<Item = Result<Event, Infallible>> { stream::pending() }
//!
//! async fn answer() -> impl IntoResponse {
//!     (StreamKind::Answer, Sse::new(model()))
//! }
//! # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(answer));
//! ```
//!
//! # Jobs
//!
//! A guard works without HTTP too. A job that panics, or whose task is aborted, drops its guard, and that ends the
//! session with reason `unknown`.
//!
//! ```
//! # use tower_session_end::{ActiveSessions, EndReason};
//! # async fn work() {}
//! async fn job(sessions: ActiveSessions) {
//!     let guard = sessions.guard("job-1").expect("a valid id");
//!     tokio::select! {
//!         () = work() => drop(guard.end(EndReason::Deleted)),
//!         () = guard.closing() => {} // the drain ends the session, with the reason of the shutdown
//!     }
//! }
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! # let sessions = ActiveSessions::builder().build().unwrap();
//! # job(sessions.clone()).await;
//! # assert!(sessions.is_empty());
//! # });
//! ```
//!
//! # Work after the response
//!
//! A gateway that answers 202 and goes on has no request in flight while it works. A [`WorkGuard`] says that the session
//! is at work: in a shutdown its end waits until the guard is dropped, up to
//! [`settle_timeout`](ActiveSessionsBuilder::settle_timeout). A session guard alone is no work: a shutdown does not wait
//! for an open socket. If the run compacts its session, the work is that of the successor.
//!
//! ```
//! use axum::http::StatusCode;
//! use tower_session_end::{ActiveSessions, SessionId};
//! # async fn run() {}
//!
//! async fn start(sessions: ActiveSessions, id: SessionId) -> StatusCode {
//!     sessions.note(&id);
//!     let work = sessions.work(&id);
//!     tokio::spawn(async move {
//!         run().await;
//!         drop(work);
//!     });
//!     StatusCode::ACCEPTED
//! }
//! # let _: axum::Router = axum::Router::new().route("/", axum::routing::post(start));
//! ```
//!
//! A handler that asks for the shutdown, and waits for it, is work too, so the drain would wait for it in vain. It calls
//! [`exempt_work`](ActiveSessions::exempt_work) with the id of its session first; a run calls
//! [`WorkGuard::exempt`].
//!
//! # Children
//!
//! The session of a subagent names that of its agent as its [parent](crate::Session::parent). When the parent ends, its
//! children end after it, with reason `parent`:
//!
//! ```
//! # use tower_session_end::{ActiveSessions, EndReason, Session};
//! # let sessions = ActiveSessions::builder().build()?;
//! sessions.note("agent");
//! sessions.note(Session::try_from("subagent")?.with_parent("agent"));
//! sessions.end("agent", EndReason::Deleted); // ends both
//! # assert!(sessions.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A listener that is handed over
//!
//! Where two versions share one listener (an inherited socket, or `SO_REUSEPORT`), the old one has to stop accepting at
//! its signal, and not when its drain is over: see [`accept_until_signal`](ActiveSessions::accept_until_signal).
//! `cargo run --example handover` replaces a gateway under load without losing a request.
//!
//! # Ids in no header
//!
//! A handler puts a [`SessionUpdate`] into its response. The layer takes it out, so it is never sent. It can carry
//! more than a header, such as a key and attributes. Where there is no response, or the client may disconnect before
//! it, call [`note`](ActiveSessions::note) on the handle as soon as the session exists. To do both, or one of them
//! twice, is harmless.
//!
//! ```
//! # use axum::extract::Path;
//! # use tower_session_end::{ActiveSessions, EndReason, Session, SessionUpdate};
//! async fn open(Path(user): Path<String>) -> (SessionUpdate, &'static str) {
//!     let session = Session::try_from("4711").expect("a valid id").with_attribute("user", user);
//!     (SessionUpdate::started(session), "welcome")
//! }
//!
//! async fn kick(sessions: ActiveSessions, Path(id): Path<String>) -> String {
//!     format!("was active: {}", sessions.end(id, EndReason::Deleted))
//! }
//! # use axum::{Router, body::Body, routing::post};
//! # use tower::ServiceExt;
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # let sessions = ActiveSessions::builder().build()?;
//! # let app = Router::new().route("/open/{user}", post(open)).route("/kick/{id}", post(kick)).layer(sessions.layer());
//! # app.clone().oneshot(http::Request::post("/open/ann").body(Body::empty())?).await?;
//! # assert_eq!(sessions.get("4711").unwrap().attributes["user"], "ann");
//! # app.oneshot(http::Request::post("/kick/4711").body(Body::empty())?).await?;
//! # assert!(sessions.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Ids made elsewhere
//!
//! Another replica, the client, or the same host before a restart may have made the id. Such a host answers 200
//! without repeating the id, because the session is not new to it. With `adopt(true)` the layer notes the id of a
//! successful request. It is a new generation with its own [`GenerationId`](crate::GenerationId), even if the id had
//! an end before.
//!
//! ```
//! # use tower_session_end::{ActiveSessions, HeaderProtocol, McpProtocol};
//! # let sessions = ActiveSessions::builder().build()?;
//! let by_header = sessions.layer_with(HeaderProtocol::new().adopt(true));
//! let by_mcp = sessions.layer_with(McpProtocol::new().adopt(true));
//! # Ok::<(), tower_session_end::BuildError>(())
//! ```
//!
//! # A custom protocol
//!
//! Implement [`SessionProtocol`]. It answers two questions: which session does a request belong to, and what does a
//! response say about sessions? The response is judged with its request, which knows whether its session is active. In
//! this example the id is in the path, the first successful response starts the session, and a DELETE ends it:
//!
//! ```
//! use http::{Method, request, response};
//! use tower_session_end::{EndReason, RequestInfo, SessionId, SessionProtocol, SessionUpdate};
//!
//! struct Rooms;
//!
//! impl SessionProtocol for Rooms {
//!     fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
//!         request.uri.path().strip_prefix("/rooms/")?.parse().ok()
//!     }
//!
//!     fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate {
//!         match request.id().filter(|_| response.status.is_success()) {
//!             Some(id) if request.method() == Method::DELETE => SessionUpdate::ended(id.clone(), EndReason::Deleted),
//!             Some(id) if !request.is_tracked() => SessionUpdate::started(id.clone()),
//!             _ => SessionUpdate::empty(),
//!         }
//!     }
//! }
//! # use tower::{Layer, ServiceExt, service_fn};
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! # let sessions = tower_session_end::ActiveSessions::builder().build()?;
//! # let host = service_fn(async |_| Ok::<_, std::convert::Infallible>(http::Response::new(String::new())));
//! # let host = sessions.layer_with(Rooms).layer(host);
//! # host.clone().oneshot(http::Request::get("/rooms/7").body(())?).await?;
//! # assert!(sessions.contains("7"));
//! # host.oneshot(http::Request::delete("/rooms/7").body(())?).await?;
//! # assert!(sessions.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Sessions that expire in the host
//!
//! A host may expire a session without any response, and a client may disconnect before there is one. If the host can
//! list its sessions, compare both lists, for example every minute. A session that is active here and unknown to the
//! host has ended; one that only the host knows is active. Ask in the order of this example, so that a session that
//! starts or ends in the meantime is not misjudged. If the host cannot list its sessions, set an
//! [`idle_timeout`](ActiveSessionsBuilder::idle_timeout).
//!
//! ```
//! # use std::{collections::HashSet, sync::{Arc, Mutex}};
//! # use tower_session_end::{ActiveSessions, EndReason};
//! # #[derive(Clone, Default)] struct Host(Arc<Mutex<HashSet<String>>>);
//! # impl Host {
//! #     fn has(&self, id: &str) -> bool { self.0.lock().unwrap().contains(id) }
//! #     fn ids(&self) -> Vec<String> { self.0.lock().unwrap().iter().cloned().collect() }
//! # }
//! fn compare(sessions: &ActiveSessions, host: &Host) {
//!     for session in sessions.snapshot().into_iter().filter(|session| !host.has(session.id.as_str())) {
//!         sessions.end(&session.id, EndReason::Unknown);
//!     }
//!     for id in host.ids() {
//!         if !sessions.contains(&id) && host.has(&id) {
//!             sessions.note(id);
//!         }
//!     }
//! }
//! # let (sessions, host) = (ActiveSessions::builder().build().unwrap(), Host::default());
//! # host.0.lock().unwrap().extend(["both".to_owned(), "host-only".to_owned()]);
//! # sessions.note("active-only");
//! # sessions.note(tower_session_end::Session::try_from("both").unwrap().with_key("kept"));
//! # compare(&sessions, &host);
//! # assert!(!sessions.contains("active-only") && sessions.contains("host-only") && sessions.len() == 2);
//! # assert_eq!(sessions.get("both").unwrap().key.as_deref(), Some("kept"));
//! ```
//!
#![doc = include_str!("guide/consumers.md")]

/// Servers beyond `axum::serve`.
///
#[cfg_attr(not(doctest), doc = include_str!("guide/servers.md"))]
pub mod servers {}

/// The order of layers.
///
#[cfg_attr(not(doctest), doc = include_str!("guide/layers.md"))]
pub mod layers {}

/// Testing your hooks.
///
#[doc = include_str!("guide/testing.md")]
pub mod testing {}

/// Running it: Kubernetes, systemd, containers, metrics, registries.
///
#[doc = include_str!("guide/operations.md")]
#[doc = ""]
#[doc = include_str!("guide/dashboard.svg")]
pub mod operations {}

/// The examples of the repository.
///
#[doc = include_str!("guide/examples.md")]
pub mod examples {}

// For the links, including those of the included files.
#[allow(unused_imports, reason = "this module is documentation only")]
use crate::{
    ActiveSessions, ActiveSessionsBuilder, HeaderProtocol, Session, SessionProtocol, SessionUpdate, StreamKind,
    WorkGuard,
};
