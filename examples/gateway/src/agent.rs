//! The agent: it echoes messages, and counts them per conversation.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tower_session_end::SessionId;

/// The state of an active session.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Conversation {
    pub(crate) session_id: SessionId,
    pub(crate) session_key: String,
    pub(crate) message_count: u64,
}

/// The active conversations. A conversation is removed under the lock, so of two requests that end the same session,
/// one finds it.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    conversations: Arc<Mutex<HashMap<SessionId, Conversation>>>,
    think: Duration,
}

impl Agent {
    pub(crate) fn new(think: Duration) -> Self {
        Self { conversations: Arc::default(), think }
    }

    fn conversations(&self) -> MutexGuard<'_, HashMap<SessionId, Conversation>> {
        self.conversations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an empty conversation under a random id. The id is a credential: a client that has it can chat in it.
    pub(crate) fn open(&self, key: String) -> Conversation {
        self.adopt(Conversation { session_id: new_id(), session_key: key, message_count: 0 })
    }

    /// Continues a conversation under a new id and keeps its messages. `None` if there is no such session.
    pub(crate) fn compact(&self, old: &SessionId) -> Option<Conversation> {
        let before = self.close(old)?;
        Some(self.adopt(Conversation { session_id: new_id(), ..before }))
    }

    /// Ends a conversation and begins the next one of the same key. `None` if there is no such session.
    pub(crate) fn reset(&self, old: &SessionId) -> Option<Conversation> {
        let before = self.close(old)?;
        Some(self.open(before.session_key))
    }

    /// Ends a conversation, if it is active.
    pub(crate) fn close(&self, id: &SessionId) -> Option<Conversation> {
        self.conversations().remove(id)
    }

    /// As [`close`](Self::close), for a conversation that may have ended already.
    pub(crate) fn forget(&self, id: &SessionId) {
        self.conversations().remove(id);
    }

    /// Waits for the thinking time, and answers a message. `None` if there is no such session.
    pub(crate) async fn chat(&self, id: &SessionId, message: &str) -> Option<(String, u64)> {
        let count = {
            let mut conversations = self.conversations();
            let conversation = conversations.get_mut(id)?;
            conversation.message_count += 1;
            conversation.message_count
        };
        tokio::time::sleep(self.think).await;
        Some((format!("you said: {message}"), count))
    }

    pub(crate) fn list(&self) -> Vec<Conversation> {
        self.conversations().values().cloned().collect()
    }

    fn adopt(&self, conversation: Conversation) -> Conversation {
        self.conversations().insert(conversation.session_id.clone(), conversation.clone());
        conversation
    }
}

fn new_id() -> SessionId {
    let id = uuid::Uuid::new_v4().to_string();
    SessionId::new(id).expect("a UUID is 36 bytes of visible ASCII")
}
