//! [`SessionGuard`] and [`ClosingFuture`]: for WebSockets, streams and jobs.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::ActiveSessions;
use crate::{
    session::{EndReason, SessionId},
    tracker::{Activity, EndedBy, Generation},
};

pin_project! {
    /// Resolves when the handle begins to close; made by [`ActiveSessions::closing`].
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct ClosingFuture {
        #[pin]
        waiting: WaitForCancellationFutureOwned,
    }
}

impl ClosingFuture {
    pub(super) fn new(closing: CancellationToken) -> Self {
        Self { waiting: closing.cancelled_owned() }
    }
}

impl Future for ClosingFuture {
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
    pub(super) const fn new(sessions: ActiveSessions, id: SessionId, generation: Option<Arc<Generation>>) -> Self {
        Self { sessions, id, generation }
    }

    /// The session's id.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert_eq!(sessions.guard("socket-1").unwrap().id().as_str(), "socket-1");
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
    /// let guard = sessions.guard("job-1").unwrap();
    /// assert!(guard.end(EndReason::Deleted));
    /// ```
    #[allow(clippy::must_use_candidate, reason = "the answer is a courtesy")]
    pub fn end(self, reason: EndReason) -> bool {
        self.generation
            .as_ref()
            .is_some_and(|generation| self.sessions.end_generation(generation, reason, EndedBy::Host))
    }

    /// As [`ActiveSessions::shutdown_reason`].
    #[must_use]
    pub fn shutdown_reason(&self) -> Option<EndReason> {
        self.sessions.shutdown_reason()
    }

    /// As [`ActiveSessions::closing`].
    pub fn closing(&self) -> ClosingFuture {
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
