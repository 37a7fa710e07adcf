//! [`Telling`]: a session manager that tells when a session is over.

use futures_util::Stream;
use rmcp::{
    model::{ClientJsonRpcMessage, JsonRpcMessage, ServerJsonRpcMessage},
    transport::streamable_http_server::session::{
        RestoreOutcome, ServerSseMessage, SessionId, SessionManager, local::LocalSessionManager,
    },
};
use tower_session_end::{ActiveSessions, EndReason};

/// rmcp's [`LocalSessionManager`], which tells [`ActiveSessions`] what no response does.
///
/// rmcp lets a session go when nothing has come for `keep_alive`, and when its handler is over. No client hears of it,
/// and no response does. But whatever ends a session, rmcp calls [`close_session`](SessionManager::close_session) for it,
/// and that is the place to tell. A DELETE comes through here too, before its response passes the layer: who comes first
/// ends the session, and the other finds nothing.
#[derive(Debug)]
pub struct Telling {
    /// The manager that does the work.
    pub local: LocalSessionManager,
    sessions: ActiveSessions,
}

impl Telling {
    /// Wraps `local`.
    #[must_use]
    pub fn new(local: LocalSessionManager, sessions: &ActiveSessions) -> Self {
        Self { local, sessions: sessions.clone() }
    }
}

type Error = <LocalSessionManager as SessionManager>::Error;
type Transport = <LocalSessionManager as SessionManager>::Transport;

impl SessionManager for Telling {
    type Error = Error;
    type Transport = Transport;

    async fn close_session(&self, id: &SessionId) -> Result<(), Error> {
        let handle = self.local.sessions.read().await.get(id).cloned();
        let Some(handle) = handle else {
            return Ok(()); // closed before, or never there: any client can DELETE any id
        };
        // A DELETE finds its worker at work. One that has gone has gone by itself: nothing came for too long.
        let reason = if handle.close().await.is_ok() { EndReason::Deleted } else { EndReason::Idle };
        // Before rmcp answers 404 to this id, which would be an end for a reason unknown.
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
            // The handler has refused, in the body of a 200, and rmcp gives out an id all the same. It is over before its
            // head has left, and that will not revive it.
            self.sessions.note(&**id);
            self.sessions.end(&**id, EndReason::Unknown);
        }
        Ok(answer)
    }

    async fn restore_session(&self, id: SessionId) -> Result<RestoreOutcome<Transport>, Error> {
        let outcome = self.local.restore_session(id.clone()).await?;
        if matches!(outcome, RestoreOutcome::Restored(_)) {
            // Back from a store, perhaps a moment after its end: the host's own word counts more than that.
            self.sessions.note(&*id);
        }
        Ok(outcome)
    }

    // Nothing to tell from here on.

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
