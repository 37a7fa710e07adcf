//! The routes. Each handler reports the change of its session; the layer does the rest.

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

/// The answer for a session that is unknown or has ended.
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

/// A reset is an end and a start in one [`SessionUpdate`].
async fn reset(State(agent): State<Agent>, old: SessionId) -> Result<(SessionUpdate, Header, Json<Value>), Rejection> {
    let next = agent.reset(&old).ok_or(NO_SUCH_SESSION)?;
    let update = SessionUpdate::ended(old, EndReason::Reset).and(SessionUpdate::started(session(&next)));
    Ok((update, id_header(&next), body_of(&next)))
}

async fn compact(
    State(agent): State<Agent>,
    old: SessionId,
) -> Result<(SessionUpdate, Header, Json<Value>), Rejection> {
    let next = agent.compact(&old).ok_or(NO_SUCH_SESSION)?;
    Ok((SessionUpdate::compacted(old, session(&next)), id_header(&next), body_of(&next)))
}

/// Reports the end with a header instead of a [`SessionUpdate`]. The layer reads both.
async fn close(State(agent): State<Agent>, id: SessionId) -> Result<(StatusCode, Header), Rejection> {
    agent.close(&id).ok_or(NO_SUCH_SESSION)?;
    Ok((StatusCode::NO_CONTENT, [("x-session-end", EndReason::Deleted.to_string())]))
}

async fn list(State(agent): State<Agent>) -> Json<Vec<Conversation>> {
    Json(agent.list())
}

/// For the load balancer: 503 from the signal on, while requests are still served in the lame-duck phase.
async fn ready(sessions: ActiveSessions) -> (StatusCode, &'static str) {
    if sessions.is_ready() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n") }
}

/// The session that the hooks receive.
fn session(conversation: &Conversation) -> Session {
    Session::new(conversation.session_id.clone()).with_key(&conversation.session_key)
}

fn id_header(conversation: &Conversation) -> Header {
    [("x-session-id", conversation.session_id.to_string())]
}

fn body_of(conversation: &Conversation) -> Json<Value> {
    Json(json!({ "sessionId": conversation.session_id, "sessionKey": conversation.session_key }))
}
