//! The agent: it repeats what it hears, and knows how often it was spoken to.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tower_session_end::SessionId;

/// What is kept for a session while it is active.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Conversation {
    pub(crate) session_id: SessionId,
    pub(crate) session_key: String,
    pub(crate) message_count: u64,
}

/// Every conversation that goes on. All methods but the thinking are one step: of two requests that end the same
/// session, one finds it.
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

    /// Begins a conversation with no messages, under an id that nobody can guess: who knows it may chat in it.
    pub(crate) fn open(&self, key: String) -> Conversation {
        self.adopt(Conversation { session_id: new_id(), session_key: key, message_count: 0 })
    }

    /// Goes on with a conversation under a new id; the messages stay. `None` if there is no such session.
    pub(crate) fn compact(&self, old: &SessionId) -> Option<Conversation> {
        let before = self.close(old)?;
        Some(self.adopt(Conversation { session_id: new_id(), ..before }))
    }

    /// Ends a conversation and begins the next one of the same key. `None` if there is no such session.
    pub(crate) fn reset(&self, old: &SessionId) -> Option<Conversation> {
        let before = self.close(old)?;
        Some(self.open(before.session_key))
    }

    /// Ends a conversation, if it goes on.
    pub(crate) fn close(&self, id: &SessionId) -> Option<Conversation> {
        self.conversations().remove(id)
    }

    /// As [`close`](Self::close), for those who do not mind that it is gone.
    pub(crate) fn forget(&self, id: &SessionId) {
        self.conversations().remove(id);
    }

    /// Thinks about a message and answers. `None` if there is no such session.
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
