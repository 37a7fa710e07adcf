//! The gateway of the storm, and what it writes down.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncReadExt, task::yield_now, time::sleep};
use tower_session_end::{ActiveSessions, BoxError, EndReason, SessionId};

use super::millis;

/// The gateway, and what it did.
pub(crate) struct Host {
    pub(crate) sessions: ActiveSessions,
    pub(crate) ids: AtomicU64,
    /// Ids of sessions that a head opened.
    pub(crate) opened: Mutex<BTreeSet<String>>,
    /// Ids that a guard was made for.
    pub(crate) guarded: Mutex<BTreeSet<String>>,
    /// Requests of clients that stay, and heads that the layer let out for them.
    pub(crate) begun: AtomicU64,
    pub(crate) answered: AtomicU64,
}

impl Host {
    pub(crate) fn new(sessions: &ActiveSessions) -> Arc<Self> {
        Arc::new(Self {
            sessions: sessions.clone(),
            ids: AtomicU64::new(0),
            opened: Mutex::default(),
            guarded: Mutex::default(),
            begun: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        })
    }

    fn new_id(&self) -> String {
        format!("s-{}", self.ids.fetch_add(1, SeqCst))
    }

    pub(crate) fn app(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/{what}/{wait}/{chunks}", post(answer))
            .route("/events", get(events))
            .route("/socket", get(socket))
            .with_state(Arc::clone(self))
            .layer(self.sessions.layer())
            .layer(from_fn_with_state(Arc::clone(self), watch))
    }
}

/// Sees what goes into the layer and what it lets out, whether or not the client comes to see it.
async fn watch(State(host): State<Arc<Host>>, request: Request, next: Next) -> Response {
    let stays = u64::from(request.headers().contains_key("x-stays"));
    host.begun.fetch_add(stays, SeqCst);
    let response = next.run(request).await;
    host.answered.fetch_add(stays, SeqCst);
    if response.status() == StatusCode::OK && response.headers().contains_key("x-opened") {
        let id = response.headers()["x-session-id"].to_str().unwrap().to_owned();
        assert!(host.opened.lock().unwrap().insert(id), "the host repeated itself");
    }
    response
}

/// Opens, compacts, ends or chats, after a while, and with a body that dribbles.
async fn answer(
    State(host): State<Arc<Host>>,
    Path((what, wait, chunks)): Path<(String, u64, u64)>,
    id: Option<SessionId>,
    _: Bytes,
) -> Response {
    if wait == 0 {
        yield_now().await
    } else {
        sleep(millis(wait)).await
    }
    let response = match (&*what, &id) {
        ("open", _) => Response::builder().header("x-session-id", host.new_id()).header("x-opened", ""),
        ("compact", Some(old)) => {
            let response = Response::builder().header("x-session-id", host.new_id()).header("x-opened", "");
            response.header("x-session-compacted-from", old.as_str())
        }
        ("end", Some(_)) => Response::builder().header("x-session-end", "deleted"),
        (_, Some(id)) => Response::builder().header("x-session-id", id.as_str()),
        (_, None) => Response::builder(),
    };
    let dribble = stream::iter(0..chunks).then(async |_| {
        sleep(millis(10)).await;
        Ok::<_, BoxError>("and so on to the ")
    });
    let body = dribble.chain(stream::iter([Ok("end")]));
    response.body(if chunks == 0 { "end".into() } else { Body::from_stream(body) }).unwrap()
}

/// Has something to say now and then, for ever.
async fn events(id: Option<SessionId>) -> Response {
    let words = stream::repeat("data: word\n\n").then(async |word| {
        sleep(millis(25)).await;
        Ok::<_, BoxError>(word)
    });
    let mut response = Response::builder().header("content-type", "text/event-stream");
    if let Some(id) = id {
        response = response.header("x-session-id", id.as_str());
    }
    response.body(Body::from_stream(stream::iter([Ok("data: hello\n\n")]).chain(words))).unwrap()
}

/// A guard until the client or the stop ends it, on the session of the request or on a new one.
async fn socket(State(host): State<Arc<Host>>, id: Option<SessionId>, mut request: Request) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    let id = id.map_or_else(|| host.new_id(), |id| id.to_string());
    host.guarded.lock().unwrap().insert(id.clone());
    let guard = host.sessions.guard(id.as_str()).unwrap();
    tokio::spawn(async move {
        if let Ok(socket) = upgrade.await {
            let mut socket = TokioIo::new(socket);
            tokio::select! {
                _ = socket.read_u8() => drop(guard.end(EndReason::Reset)),
                () = guard.closing() => {}
            }
        }
    });
    let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header("x-session-id", id);
    response.header("connection", "upgrade").header("upgrade", "words").body(Body::empty()).unwrap()
}
