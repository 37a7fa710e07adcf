//! The routes. Each handler says what became of the session; the layer does the rest.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{delete, get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_session_end::{ActiveSessions, EndReason, Session, SessionId, SessionUpdate};

use crate::agent::{Agent, Conversation};

pub(crate) fn router(agent: Agent, sessions: &ActiveSessions) -> Router {
    Router::new()
        .route("/sessions", post(open).get(list))
        .route("/session", delete(close))
        .route("/chat", post(chat))
        .route("/reset", post(reset))
        .route("/compact", post(compact))
        .route("/readyz", get(ready))
        .layer(sessions.layer())
        .with_state(agent)
}

/// One header that a response carries beside its body.
type Header = [(&'static str, String); 1];

/// What is said of a session that is not known, or no longer.
const NO_SUCH_SESSION: (StatusCode, &str) = (StatusCode::NOT_FOUND, "no such session\n");

type Rejection = (StatusCode, &'static str);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Open {
    #[serde(default = "main_key")]
    key: String,
}

impl Default for Open {
    fn default() -> Self {
        Self { key: main_key() }
    }
}

fn main_key() -> String {
    "main".to_owned()
}

async fn open(
    State(agent): State<Agent>,
    body: Option<Json<Open>>,
) -> (StatusCode, SessionUpdate, Header, Json<Value>) {
    let Json(Open { key }) = body.unwrap_or_default();
    let conversation = agent.open(key);
    (
        StatusCode::CREATED,
        SessionUpdate::started(session(&conversation)),
        id_header(&conversation),
        body_of(&conversation),
    )
}

async fn chat(State(agent): State<Agent>, id: SessionId, message: String) -> Result<(Header, Json<Value>), Rejection> {
    let (reply, count) = agent.chat(&id, &message).await.ok_or(NO_SUCH_SESSION)?;
    Ok(([("x-session-id", id.to_string())], Json(json!({ "reply": reply, "messageCount": count }))))
}

/// A signal is a list: a reset is an end and a start.
async fn reset(State(agent): State<Agent>, old: SessionId) -> Result<(SessionUpdate, Header, Json<Value>), Rejection> {
    let next = agent.reset(&old).ok_or(NO_SUCH_SESSION)?;
    let signal = SessionUpdate::ended(old, EndReason::Reset).and(SessionUpdate::started(session(&next)));
    Ok((signal, id_header(&next), body_of(&next)))
}

async fn compact(
    State(agent): State<Agent>,
    old: SessionId,
) -> Result<(SessionUpdate, Header, Json<Value>), Rejection> {
    let next = agent.compact(&old).ok_or(NO_SUCH_SESSION)?;
    Ok((SessionUpdate::compacted(old, session(&next)), id_header(&next), body_of(&next)))
}

/// The other way to say it: the layer reads headers too, and needs nothing else from a host.
async fn close(State(agent): State<Agent>, id: SessionId) -> Result<(StatusCode, Header), Rejection> {
    agent.close(&id).ok_or(NO_SUCH_SESSION)?;
    Ok((StatusCode::NO_CONTENT, [("x-session-end", EndReason::Deleted.to_string())]))
}

async fn list(State(agent): State<Agent>) -> Json<Vec<Conversation>> {
    Json(agent.list())
}

/// For the load balancer: no from the signal on, while the lame duck still serves what comes.
async fn ready(sessions: ActiveSessions) -> (StatusCode, &'static str) {
    if sessions.is_ready() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "stopping\n") }
}

/// The session as the hooks will see it.
fn session(conversation: &Conversation) -> Session {
    Session::new(conversation.session_id.clone()).with_key(&conversation.session_key)
}

fn id_header(conversation: &Conversation) -> Header {
    [("x-session-id", conversation.session_id.to_string())]
}

fn body_of(conversation: &Conversation) -> Json<Value> {
    Json(json!({ "sessionId": conversation.session_id, "sessionKey": conversation.session_key }))
}
