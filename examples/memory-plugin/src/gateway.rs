//! The gateway: an agent that echoes messages. Its sessions can be resumed after their end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{delete, get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_session_end::{
    ActiveSessions, BoxError, EndReason, Phase, Session, SessionId, SessionUpdate, ShutdownReport, signal::Terminate,
};

use crate::plugin::{MemoryPlugin, PROJECT, PROMPT};

/// Serves until the signal, and then ends every session.
///
/// # Errors
///
/// The error of the server, or of an invalid `drain_timeout`.
pub async fn serve(
    listener: TcpListener,
    plugin: MemoryPlugin,
    drain_timeout: Duration,
    signal: Terminate,
) -> Result<ShutdownReport, BoxError> {
    let sessions = ActiveSessions::builder()
        .drain_timeout(drain_timeout)
        .connection_drain_timeout(Duration::from_secs(5))
        // A call may wait for the limit of the plugin for this long.
        .hook_timeout(Duration::from_secs(300))
        // A session that started in the drain would cost two calls, which the others need.
        .refuse_new_sessions(true)
        .hook(plugin)
        .build()?;
    let app = router(&sessions);
    let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signal));
    Ok(sessions.finish(server).await.into_result()?)
}

/// The routes, with the layer around them.
pub fn router(sessions: &ActiveSessions) -> Router {
    Router::new()
        .route("/chat", post(chat))
        .route("/compact", post(compact))
        .route("/session", delete(close))
        .route("/readyz", get(ready))
        .layer(sessions.layer())
        .with_state(Agent::default())
}

/// The state of a session, also after its end. A production gateway would use a database.
#[derive(Clone, Debug)]
struct Conversation {
    project: String,
    prompt: String,
    messages: u64,
}

impl Conversation {
    /// The session that the hooks receive.
    fn session(&self, id: &SessionId) -> Session {
        Session::new(id.clone()).with_attribute(PROJECT, &self.project).with_attribute(PROMPT, &self.prompt)
    }
}

/// All clones share one state.
#[derive(Clone, Debug, Default)]
struct Agent(Arc<Mutex<HashMap<SessionId, Conversation>>>);

impl Agent {
    fn conversations(&self) -> MutexGuard<'_, HashMap<SessionId, Conversation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const NO_SUCH_SESSION: (StatusCode, &str) = (StatusCode::NOT_FOUND, "no such session\n");
const SHUTTING_DOWN: (StatusCode, &str) = (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n");

type Header = [(&'static str, String); 1];
type Rejection = (StatusCode, &'static str);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chat {
    message: String,
    #[serde(default = "default_project")]
    project: String,
}

fn default_project() -> String {
    "default".to_owned()
}

/// Without an id it starts a session, and the message is its prompt. With the id of an ended session it resumes that
/// one.
async fn chat(
    State(agent): State<Agent>,
    sessions: ActiveSessions,
    id: Option<SessionId>,
    Json(Chat { message, project }): Json<Chat>,
) -> Result<(SessionUpdate, Header, Json<Value>), Rejection> {
    let is_active = id.as_ref().is_some_and(|id| sessions.contains(id));
    // The layer refuses what comes in a shutdown. A request that came before must not start a session either, nor the
    // one again that the shutdown has just ended.
    if !is_active && sessions.phase() >= Phase::Closing {
        return Err(SHUTTING_DOWN);
    }
    let mut conversations = agent.conversations();
    let id = match id {
        Some(id) => id,
        None => {
            let id = new_id();
            conversations.insert(id.clone(), Conversation { project, prompt: message.clone(), messages: 0 });
            id
        }
    };
    let conversation = conversations.get_mut(&id).ok_or(NO_SUCH_SESSION)?;
    conversation.messages += 1;
    let update = if is_active { SessionUpdate::empty() } else { SessionUpdate::started(conversation.session(&id)) };
    let reply = json!({ "reply": format!("you said: {message}"), "messages": conversation.messages });
    Ok((update, [("x-session-id", id.to_string())], Json(reply)))
}

/// Continues under a new id.
async fn compact(State(agent): State<Agent>, old: SessionId) -> Result<(SessionUpdate, Header), Rejection> {
    let new = new_id();
    let mut conversations = agent.conversations();
    let conversation = conversations.remove(&old).ok_or(NO_SUCH_SESSION)?;
    let update = SessionUpdate::compacted(old, conversation.session(&new));
    let header = [("x-session-id", new.to_string())];
    conversations.insert(new, conversation);
    Ok((update, header))
}

async fn close(State(agent): State<Agent>, id: SessionId) -> Result<(StatusCode, Header), Rejection> {
    if !agent.conversations().contains_key(&id) {
        return Err(NO_SUCH_SESSION);
    }
    Ok((StatusCode::NO_CONTENT, [("x-session-end", EndReason::Deleted.to_string())]))
}

async fn ready(sessions: ActiveSessions) -> (StatusCode, &'static str) {
    if sessions.is_ready() { (StatusCode::OK, "ready\n") } else { SHUTTING_DOWN }
}

fn new_id() -> SessionId {
    let id = uuid::Uuid::new_v4().to_string();
    SessionId::new(id).expect("a UUID is 36 bytes of visible ASCII")
}
