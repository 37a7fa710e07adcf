//! [`NoteOutcome`], what a note or a compaction returns.

use std::{convert::Infallible, sync::Arc};

use super::ActiveSessions;
use crate::{session::InvalidSessionId, tracker::Generation};

/// The outcome of [`ActiveSessions::note`] and [`ActiveSessions::compact`]. It may be dropped.
#[derive(Clone, Debug)]
pub struct NoteOutcome {
    pub(super) is_new: bool,
    pub(super) ended_old: bool,
    pub(super) invalid_id: Option<InvalidSessionId>,
    /// The generation, if it is active and there is a registry.
    pub(super) recorded: Option<(Arc<Generation>, ActiveSessions)>,
}

impl NoteOutcome {
    pub(super) const fn invalid(error: InvalidSessionId) -> Self {
        Self { is_new: false, ended_old: false, invalid_id: Some(error), recorded: None }
    }

    /// Whether a new generation started. False if the session was active already, its id is not valid, or the phase is
    /// [`Phase::Closed`](crate::Phase::Closed).
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert!(sessions.note("a").is_new());
    /// assert!(!sessions.note("a").is_new());
    /// ```
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.is_new
    }

    /// The error of an invalid id, which was ignored; `None` if the id is valid.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert!(sessions.note("").invalid_id().is_some());
    /// ```
    #[must_use]
    pub const fn invalid_id(&self) -> Option<InvalidSessionId> {
        self.invalid_id
    }

    /// For a compaction: whether it ended the old session, which was active then. False for a note.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert!(!sessions.compact("unknown", "a").ended_old());
    /// assert!(sessions.compact("a", "b").ended_old());
    /// ```
    #[must_use]
    pub const fn ended_old(&self) -> bool {
        self.ended_old
    }

    /// Waits until the session is recorded in the [`Registry`](crate::registry::Registry). Returns true if it is: it
    /// gets its `session_end` even if this process dies. Returns false if there is no registry, or the registry does
    /// not answer.
    ///
    /// The layer waits by itself; this is for sessions that a handler or a job notes.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing: the session is recorded all the same.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert!(!sessions.note("a").recorded().await); // there is no registry
    /// # }
    /// ```
    pub async fn recorded(self) -> bool {
        let Some((generation, sessions)) = self.recorded else { return false };
        let inner = &sessions.inner;
        // Polled after the wait has begun, so the wait sees its outcome.
        let retry = async {
            inner.persister.iter().for_each(|persister| persister.retry_record(&inner.pool, &generation));
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            is_recorded = generation.until_recorded() => is_recorded,
            never = retry => match never {},
            // The writer has ended: a session that is not recorded by now never is.
            () = sessions.inner.shutdown.closed.cancelled() => false,
        }
    }
}
