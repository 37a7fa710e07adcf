//! The agent: it echoes messages, and counts them per session.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, async_trait,
    metadata::{Ascii, MetadataValue},
};
use tower_session_end::{ActiveSessions, EndReason, Session, SessionId, SessionUpdate};

use crate::{Agent, ChatReply, ChatRequest, Empty, OpenRequest, Tick};

/// The metadata key of the session's id, in calls and in responses.
pub const SESSION_ID: &str = "x-session-id";
/// The metadata key with which a response ends the session of its call.
pub const SESSION_END: &str = "x-session-end";
/// The metadata key with which a response names the predecessor of its session.
pub const SESSION_COMPACTED_FROM: &str = "x-session-compacted-from";

/// The host of this example. All clones share one state.
#[derive(Clone, Debug)]
pub struct SmallAgent {
    /// The number of messages per session.
    conversations: Arc<Mutex<HashMap<SessionId, u64>>>,
    next: Arc<AtomicU64>,
    /// The streams await `closing` on it.
    sessions: ActiveSessions,
}

impl SmallAgent {
    /// A host without sessions.
    #[must_use]
    pub fn new(sessions: &ActiveSessions) -> Self {
        Self { conversations: Arc::default(), next: Arc::default(), sessions: sessions.clone() }
    }

    fn conversations(&self) -> MutexGuard<'_, HashMap<SessionId, u64>> {
        self.conversations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable ids for this example. In production, use ids that a client cannot guess.
    fn new_id(&self, key: &str) -> Result<SessionId, Status> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        SessionId::new(format!("{key}-{number}")).map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

#[async_trait]
impl Agent for SmallAgent {
    /// A [`SessionUpdate`] in the extensions of a response can carry more than metadata, and is never sent.
    async fn open(&self, request: Request<OpenRequest>) -> Result<Response<Empty>, Status> {
        let key = request.into_inner().key;
        let id = self.new_id(&key)?;
        self.conversations().insert(id.clone(), 0);
        let mut response = Response::new(Empty {});
        response.metadata_mut().insert(SESSION_ID, metadata(&id)?);
        response.extensions_mut().insert(SessionUpdate::started(Session::new(id).with_key(key)));
        Ok(response)
    }

    async fn chat(&self, request: Request<ChatRequest>) -> Result<Response<ChatReply>, Status> {
        let id = session_of(&request)?;
        let mut conversations = self.conversations();
        let count = conversations.get_mut(&id).ok_or_else(no_such_session)?;
        *count += 1;
        let reply = format!("you said: {}", request.get_ref().message);
        Ok(Response::new(ChatReply { reply, message_count: *count }))
    }

    /// Metadata are enough for the layer.
    async fn compact(&self, request: Request<Empty>) -> Result<Response<Empty>, Status> {
        let old = session_of(&request)?;
        let new = self.new_id("compacted")?;
        {
            let mut conversations = self.conversations();
            let count = conversations.remove(&old).ok_or_else(no_such_session)?;
            conversations.insert(new.clone(), count);
        }
        let mut response = Response::new(Empty {});
        response.metadata_mut().insert(SESSION_ID, metadata(&new)?);
        response.metadata_mut().insert(SESSION_COMPACTED_FROM, metadata(&old)?);
        Ok(response)
    }

    async fn close(&self, request: Request<Empty>) -> Result<Response<Empty>, Status> {
        self.conversations().remove(&session_of(&request)?).ok_or_else(no_such_session)?;
        let mut response = Response::new(Empty {});
        response.metadata_mut().insert(SESSION_END, MetadataValue::from_static(EndReason::Deleted.as_str()));
        Ok(response)
    }

    type WatchStream = ReceiverStream<Result<Tick, Status>>;

    /// An endless stream. It ends itself when the shutdown begins, because a status tells the client more than a closed
    /// connection.
    async fn watch(&self, request: Request<Empty>) -> Result<Response<Self::WatchStream>, Status> {
        let id = session_of(&request)?;
        if !self.conversations().contains_key(&id) {
            return Err(no_such_session());
        }
        let (ticks, stream) = mpsc::channel(1);
        let closing = self.sessions.closing();
        tokio::spawn(async move {
            let alive = async {
                for number in 1.. {
                    if ticks.send(Ok(Tick { number })).await.is_err() {
                        return; // the client has disconnected
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::select! {
                () = alive => {}
                () = closing => {
                    let _ = ticks.send(Err(Status::unavailable("the agent is shutting down"))).await;
                }
            }
        });
        let mut response = Response::new(ReceiverStream::new(stream));
        response.metadata_mut().insert(SESSION_ID, metadata(&id)?);
        Ok(response)
    }
}

/// The session of a call.
fn session_of<T>(request: &Request<T>) -> Result<SessionId, Status> {
    let id = request.metadata().get(SESSION_ID).ok_or_else(|| Status::invalid_argument("no x-session-id"))?;
    let id = id.to_str().map_err(|error| Status::invalid_argument(error.to_string()))?;
    SessionId::new(id).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn metadata(id: &SessionId) -> Result<MetadataValue<Ascii>, Status> {
    id.as_str().parse().map_err(|_| Status::internal("the id is not valid in metadata"))
}

fn no_such_session() -> Status {
    Status::not_found("no such session")
}
