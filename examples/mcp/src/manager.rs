//! [`NotifyingManager`]: a session manager that reports the end of each session.

use futures_util::Stream;
use rmcp::{
    model::{ClientJsonRpcMessage, JsonRpcMessage, ServerJsonRpcMessage},
    transport::streamable_http_server::session::{
        RestoreOutcome, ServerSseMessage, SessionId, SessionManager, local::LocalSessionManager,
    },
};
use tower_session_end::{ActiveSessions, EndReason};

/// rmcp's [`LocalSessionManager`], which also reports to [`ActiveSessions`] the ends that no response shows.
///
/// rmcp ends a session without a message for `keep_alive`, and when its handler returns. No response shows that. But
/// rmcp calls [`close_session`](SessionManager::close_session) for every session that ends, so this manager reports
/// the end there. A DELETE also calls it, before its response passes the layer: the first of the two ends the session,
/// and the second finds nothing.
#[derive(Debug)]
pub struct NotifyingManager {
    /// The wrapped manager.
    pub local: LocalSessionManager,
    sessions: ActiveSessions,
}

impl NotifyingManager {
    /// Wraps `local`.
    #[must_use]
    pub fn new(local: LocalSessionManager, sessions: &ActiveSessions) -> Self {
        Self { local, sessions: sessions.clone() }
    }
}

type Error = <LocalSessionManager as SessionManager>::Error;
type Transport = <LocalSessionManager as SessionManager>::Transport;

impl SessionManager for NotifyingManager {
    type Error = Error;
    type Transport = Transport;

    async fn close_session(&self, id: &SessionId) -> Result<(), Error> {
        let handle = self.local.sessions.read().await.get(id).cloned();
        let Some(handle) = handle else {
            return Ok(()); // closed before, or unknown: any client can DELETE any id
        };
        // On a DELETE the worker still runs. If it has exited, the session was idle for too long.
        let reason = if handle.close().await.is_ok() { EndReason::Deleted } else { EndReason::Idle };
        // Before rmcp answers 404 for this id, which would only cast doubt on the session.
        self.sessions.end(&**id, reason);
        self.local.close_session(id).await
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, Error> {
        let answer = self.local.initialize_session(id, message).await?;
        if !matches!(answer, JsonRpcMessage::Response(_)) {
            // The handler refused in the body of a 200, but rmcp still sends an id. The session ends before its
            // response head is sent, and the head does not revive it.
            self.sessions.note(&**id);
            self.sessions.end(&**id, EndReason::Unknown);
        }
        Ok(answer)
    }

    async fn restore_session(&self, id: SessionId) -> Result<RestoreOutcome<Transport>, Error> {
        let outcome = self.local.restore_session(id.clone()).await?;
        if matches!(outcome, RestoreOutcome::Restored(_)) {
            // Restored from a store, perhaps just after its end. A note by the host starts it again even then.
            self.sessions.note(&*id);
        }
        Ok(outcome)
    }

    // The remaining methods only forward.

    async fn create_session(&self) -> Result<(SessionId, Transport), Error> {
        self.local.create_session().await
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, Error> {
        self.local.has_session(id).await
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Error> {
        self.local.create_stream(id, message).await
    }

    async fn accept_message(&self, id: &SessionId, message: ClientJsonRpcMessage) -> Result<(), Error> {
        self.local.accept_message(id, message).await
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Error> {
        self.local.create_standalone_stream(id).await
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Error> {
        self.local.resume(id, last_event_id).await
    }
}
