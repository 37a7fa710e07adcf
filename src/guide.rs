//! Which part of the crate fits which gateway.
//!
//! | my gateway ... | use |
//! |---|---|
//! | [sends its ids in a header](#it-sends-its-ids-in-a-header) | [`ActiveSessions::layer`] |
//! | [is an MCP server](#it-is-an-mcp-server) | `McpProtocol` |
//! | [keeps the id in a cookie](#it-keeps-the-id-in-a-cookie) | `CookieProtocol` |
//! | [speaks gRPC](#it-speaks-grpc) | [`ActiveSessions::layer`] |
//! | [talks over WebSockets](#it-talks-over-websockets) | [`ActiveSessions::guard`] |
//! | [streams events](#it-streams-events) | the layer, and [`ActiveSessions::closing`] |
//! | [runs jobs](#it-runs-jobs) | [`ActiveSessions::guard`] |
//! | [has ids that are in no header](#it-has-ids-that-are-in-no-header) | [`SessionUpdate`], or [`ActiveSessions::note`] |
//! | [takes ids that were made elsewhere](#it-takes-ids-that-were-made-elsewhere) | `adopt(true)` on the protocol |
//! | [is like none of these](#it-is-like-none-of-these) | a [`SessionProtocol`] of yours |
//! | [forgets sessions without a word](#it-forgets-sessions-without-a-word) | [`ActiveSessions::snapshot`] |
//!
//! All of them end the same way: [`shutdown_on`](ActiveSessions::shutdown_on) where the server takes its signal, and
//! [`finish`](ActiveSessions::finish) around the server, as on the [front page](crate). For the consumers of the ends, see
//! [a service that posts them](#tell-a-url) and [a database](#tell-a-database).
//!
//! # It sends its ids in a header
//!
//! The gateway needs no code of this crate. A response with a new `x-session-id` starts a session, one with `x-session-end:
//! <reason>` ends it, and `x-session-compacted-from: <old id>` beside an id makes it the successor of another session. The names
//! can be changed: see [`HeaderProtocol`].
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
//! # It is an MCP server
//!
#![cfg_attr(not(doctest), doc = include_str!("guide/mcp.md"))]
//!
//! # It keeps the id in a cookie
//!
#![cfg_attr(not(doctest), doc = include_str!("guide/cookie.md"))]
//!
//! # It speaks gRPC
//!
#![cfg_attr(not(doctest), doc = include_str!("guide/grpc.md"))]
//!
//! # It talks over WebSockets
//!
//! A layer does not see a connection after its 101. A guard ties the session to the task that holds the socket: when the task
//! ends, the session ends. At a shutdown `closing()` resolves, and the task can send a close frame. axum does not wait for
//! upgraded connections: keep their tasks in a `TaskTracker` and wait for it (`cargo run --example websocket`).
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
//! # It streams events
//!
//! The layer is enough: an open `text/event-stream` ends with its session, so that none holds the stop. For a last event
//! listen to `closing`; there is time for it until the drain is over (`cargo run --example event_stream`).
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
//! # It runs jobs
//!
//! A guard, and no HTTP. A job that panics, or whose task is aborted, drops its guard, which ends the session with reason
//! `unknown`.
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
//! # It has ids that are in no header
//!
//! A handler returns a `SessionUpdate`, which is never sent. It can carry more than a header: a key, a tenant. Where there is no
//! response, or a client may leave before it, call `note` as soon as the session exists. Doing both, or one of them twice, is
//! harmless.
//!
//! ```
//! # use axum::extract::Path;
//! # use tower_session_end::{ActiveSessions, EndReason, Session, SessionUpdate};
//! async fn open(Path(user): Path<String>) -> (SessionUpdate, &'static str) {
//!     (SessionUpdate::started(Session::try_from("4711").expect("a valid id").with_attribute("user", user)), "welcome")
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
//! # It takes ids that were made elsewhere
//!
//! By another replica, by the client, or by itself before a restart: such a host answers 200 and says nothing of the id,
//! because for it there is nothing new. With `adopt(true)` the id that a successful request carried is noted. It is a new
//! generation, with an `generation` of its own, also where the id had an end before.
//!
//! ```
//! # use tower_session_end::{ActiveSessions, HeaderProtocol, McpProtocol};
//! # let sessions = ActiveSessions::builder().build()?;
//! let of_headers = sessions.layer_with(HeaderProtocol::new().adopt(true));
//! let of_mcp = sessions.layer_with(McpProtocol::new().adopt(true));
//! # Ok::<(), tower_session_end::BuildError>(())
//! ```
//!
//! # It is like none of these
//!
//! Then say how its HTTP speaks of sessions. Which one does a request belong to? And what does a response say, of a
//! request of which we know whether its session is active? Here the id is in the path, the first successful answer opens,
//! and a DELETE ends:
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
//! # It forgets sessions without a word
//!
//! A host may expire a session with no response, and a client may leave before a response. If the host can list its sessions,
//! compare about once a minute: end what the handle has and the host lacks, note what the host has and the handle lacks. Ask in
//! this order, so that a session that starts or ends meanwhile is not confused. If the host cannot list them, set an
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
//!     for ours in sessions.snapshot().into_iter().filter(|ours| !host.has(ours.id.as_str())) {
//!         sessions.end(&ours.id, EndReason::Unknown);
//!     }
//!     for theirs in host.ids() {
//!         if !sessions.contains(&theirs) && host.has(&theirs) {
//!             sessions.note(theirs);
//!         }
//!     }
//! }
//! # let (sessions, host) = (ActiveSessions::builder().build().unwrap(), Host::default());
//! # host.0.lock().unwrap().extend(["both".to_owned(), "theirs".to_owned()]);
//! # sessions.note("ours");
//! # sessions.note(tower_session_end::Session::try_from("both").unwrap().with_key("kept"));
//! # compare(&sessions, &host);
//! # assert!(!sessions.contains("ours") && sessions.contains("theirs") && sessions.len() == 2);
//! # assert_eq!(sessions.get("both").unwrap().key.as_deref(), Some("kept"));
//! ```
//!
#![doc = include_str!("guide/consumers.md")]
// For the links, those of the included parts too.
#[allow(unused_imports, reason = "documentation is all that is here")]
use crate::{ActiveSessions, ActiveSessionsBuilder, HeaderProtocol, SessionProtocol, SessionUpdate};
