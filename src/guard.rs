//! [`SessionGuard`] and [`Closing`]: for WebSockets, streams and jobs.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::{
    lifecycle::ActiveSessions,
    session::{EndReason, Session, SessionId},
    tracker::{Activity, EndedBy, Generation, NoteSource, Noted},
};

impl ActiveSessions {
    /// Notes the session and ties it to the guard: when that is dropped, the session ends.
    ///
    /// For WebSockets and jobs, which no response ends. If the session is active already, the guard ties that
    /// generation; of two guards on one generation, the first that is dropped ends it.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let guard = sessions.guard("socket-1");
    /// assert!(sessions.contains("socket-1"));
    /// drop(guard); // ends it with `EndReason::Unknown`; `guard.end(..)` gives another reason
    /// assert!(!sessions.contains("socket-1"));
    /// ```
    #[must_use = "dropping the guard ends the session"]
    pub fn guard(&self, session: impl Into<Session>) -> SessionGuard {
        let session = session.into();
        let id = session.id.clone();
        let generation = match self.note_session(session, NoteSource::Update, Some(Activity::Stream)) {
            Some(Noted::Started(generation) | Noted::AlreadyActive(generation)) => Some(generation),
            Some(Noted::Closed | Noted::Tombstoned) | None => None,
        };
        SessionGuard { sessions: self.clone(), id, generation }
    }

    /// Resolves when the phase has come to [`Phase::Closing`](crate::Phase::Closing): for streams, sockets and jobs that want to say goodbye.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let sessions = ActiveSessions::builder().build().unwrap();
    /// let socket = tokio::spawn(sessions.closing());
    /// let _ = sessions.drain(EndReason::Shutdown).await;
    /// socket.await.unwrap();
    /// # }
    /// ```
    pub fn closing(&self) -> Closing {
        Closing { waiting: self.inner.closing.clone().cancelled_owned() }
    }
}

pin_project! {
    /// Resolves when the handle begins to close; made by [`ActiveSessions::closing`].
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct Closing {
        #[pin]
        waiting: WaitForCancellationFutureOwned,
    }
}

impl Future for Closing {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().waiting.poll(cx)
    }
}

/// Ties one generation of a session to a scope: on drop, that generation ends; made by [`ActiveSessions::guard`].
///
/// A generation that is over already is left alone, and so is a later one of the same id. Dropping it never panics,
/// not even where there is no runtime: the hook then waits for the drain.
#[derive(Debug)]
#[must_use = "dropping the guard ends the session"]
pub struct SessionGuard {
    sessions: ActiveSessions,
    id: SessionId,
    generation: Option<Arc<Generation>>,
}

impl SessionGuard {
    /// The session's id.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert_eq!(sessions.guard("socket-1").id().as_str(), "socket-1");
    /// ```
    #[must_use]
    pub const fn id(&self) -> &SessionId {
        &self.id
    }

    /// Ends the guarded generation with `reason`; false if it is over already.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let guard = sessions.guard("job-1");
    /// assert!(guard.end(EndReason::Deleted));
    /// ```
    #[allow(clippy::must_use_candidate, reason = "the answer is a courtesy")]
    pub fn end(self, reason: EndReason) -> bool {
        self.generation
            .as_ref()
            .is_some_and(|generation| self.sessions.end_generation(generation, reason, EndedBy::Host))
    }

    /// As [`ActiveSessions::closing`].
    pub fn closing(&self) -> Closing {
        self.sessions.closing()
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        if let Some(generation) = &self.generation {
            // Of a session that no request has carried yet the head may be still to come: it revives nothing.
            let by = if generation.requests() == 0 { EndedBy::Host } else { EndedBy::Policy };
            self.sessions.end_generation(generation, EndReason::Unknown, by);
            generation.end_activity(Activity::Stream);
        }
    }
}
