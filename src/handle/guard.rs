//! [`SessionGuard`], [`WorkGuard`] and [`ClosingFuture`], for WebSockets, streams and jobs.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::ActiveSessions;
use crate::{
    session::{EndReason, Phase, SessionId},
    tracker::{Activity, Generation, Scope},
};

pin_project! {
    /// Resolves when the phase becomes [`Phase::Closing`](crate::Phase::Closing). Made by [`ActiveSessions::closing`]
    /// and [`SessionGuard::closing`].
    ///
    /// # Cancel safety
    ///
    /// It can be dropped and made again at any time: a new one resolves at once in `Closing`.
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct ClosingFuture {
        #[pin]
        cancelled: WaitForCancellationFutureOwned,
    }
}

impl ClosingFuture {
    pub(super) fn new(closing: CancellationToken) -> Self {
        Self { cancelled: closing.cancelled_owned() }
    }
}

impl Future for ClosingFuture {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().cancelled.poll(cx)
    }
}

/// Ties one generation of a session to a scope: when the guard is dropped, that generation ends. Made by
/// [`ActiveSessions::guard`].
///
/// The drop ends it with [`EndReason::Unknown`], and from [`Phase::Closing`] on as the drain would: with the reason of the
/// shutdown, once it has no work. [`end`](Self::end) gives another reason. A generation that has ended
/// already, and a later generation of the same id, are unchanged. The drop never panics, also outside of a tokio
/// runtime: the hook then waits for the drain.
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

    /// The id of the guarded session.
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

    /// Ends the guarded generation with `reason`. Returns false if it was not active any more.
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
            .is_some_and(|generation| self.sessions.end_generation(generation, reason, Scope::Everywhere))
    }

    /// The reason of the shutdown under way, as [`ActiveSessions::shutdown_reason`].
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let guard = sessions.guard("job-1").unwrap();
    /// assert_eq!(guard.shutdown_reason(), None);
    /// let _ = sessions.drain(EndReason::Restart).await;
    /// assert_eq!(guard.shutdown_reason(), Some(EndReason::Restart));
    /// # }
    /// ```
    #[must_use]
    pub fn shutdown_reason(&self) -> Option<EndReason> {
        self.sessions.shutdown_reason()
    }

    /// Marks the guarded session as at work; see [`ActiveSessions::work`]. The guard alone is no work: a drain does not
    /// wait for an open socket.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let guard = sessions.guard("job-1").unwrap();
    /// let work = guard.work(); // until the job has finished its step
    /// # drop(work);
    /// ```
    #[must_use = "the work is over when the guard is dropped"]
    pub fn work(&self) -> Option<WorkGuard> {
        let generation = self.sessions.inner.tracker.begin_work_of(self.generation.as_ref()?)?;
        Some(WorkGuard::new(self.sessions.clone(), generation))
    }

    /// Resolves when the phase becomes [`Phase::Closing`](crate::Phase::Closing), as [`ActiveSessions::closing`].
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let guard = sessions.guard("job-1").unwrap();
    /// let job = tokio::spawn(async move {
    ///     guard.closing().await;
    ///     guard.end(EndReason::Deleted); // false if the drain has ended it already
    /// });
    /// let _ = sessions.drain(EndReason::Shutdown).await;
    /// job.await.unwrap();
    /// # }
    /// ```
    pub fn closing(&self) -> ClosingFuture {
        self.sessions.closing()
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        if let Some(generation) = &self.generation {
            match self.sessions.phase() {
                Phase::Open | Phase::LameDuck => {
                    self.sessions.end_generation(generation, EndReason::Unknown, Scope::Here);
                }
                // A task that reacts to `closing()` may be faster than the sweep, and must not change what the sweep does:
                // that spares work, and ends the session later.
                Phase::Closing => self.sessions.inner.housekeeper.drain_one(generation, true),
                Phase::Closed => {}
            }
            self.sessions.inner.housekeeper.end_activity(generation, Activity::Guard);
        }
    }
}

/// Marks a session as at work until it is dropped: a drain waits for it, up to
/// [`settle_timeout`](crate::ActiveSessionsBuilder::settle_timeout). Made by [`ActiveSessions::work`] and
/// [`SessionGuard::work`].
///
/// It does not end the session. It can be dropped anywhere, also outside of a tokio runtime.
#[must_use = "the work is over when the guard is dropped"]
pub struct WorkGuard {
    sessions: ActiveSessions,
    generation: Arc<Generation>,
    activity: Activity,
}

impl WorkGuard {
    pub(super) const fn new(sessions: ActiveSessions, generation: Arc<Generation>) -> Self {
        Self { sessions, generation, activity: Activity::Work }
    }

    /// The id of the session with which the work began.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// assert_eq!(sessions.work("a").unwrap().id().as_str(), "a");
    /// ```
    #[must_use]
    pub fn id(&self) -> &SessionId {
        &self.generation.id
    }

    /// From now on a drain does not wait for this work: for a run that asks for the shutdown itself, and waits for it.
    /// Other work of the session is waited for. The session still counts as busy, so it is not idle, until the guard is
    /// dropped or the session is compacted.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let sessions = ActiveSessions::builder().settle_timeout(Duration::from_secs(1)).build().unwrap();
    /// sessions.note("a");
    /// let mut work = sessions.work("a").unwrap();
    /// work.exempt();
    /// let report = sessions.drain(EndReason::Restart).await; // does not wait for itself
    /// assert!(report.elapsed < Duration::from_secs(1));
    /// # }
    /// ```
    pub fn exempt(&mut self) {
        if self.activity == Activity::Work {
            self.generation.begin_activity(Activity::Guard);
            self.sessions.inner.housekeeper.end_activity(&self.generation, Activity::Work);
            self.activity = Activity::Guard;
        }
    }
}

impl fmt::Debug for WorkGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkGuard").field("id", self.id()).finish_non_exhaustive()
    }
}

impl Drop for WorkGuard {
    fn drop(&mut self) {
        self.sessions.inner.housekeeper.end_activity(&self.generation, self.activity);
    }
}
