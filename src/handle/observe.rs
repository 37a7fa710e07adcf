//! What a handle tells: its sessions, its phase, and its registry.

use std::sync::atomic::Ordering;

use super::ActiveSessions;
use crate::session::{EndReason, Phase, Session};

impl ActiveSessions {
    /// Whether the session is active.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// assert!(sessions.contains("a") && !sessions.contains("b"));
    /// ```
    #[must_use]
    pub fn contains(&self, id: impl AsRef<str>) -> bool {
        self.inner.tracker.find(id.as_ref().as_bytes()).is_some()
    }

    /// A copy of the session, if it is active.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, Session};
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note(Session::try_from("a").unwrap().with_key("chat"));
    /// assert_eq!(sessions.get("a").unwrap().key.as_deref(), Some("chat"));
    /// assert!(sessions.get("b").is_none());
    /// ```
    #[must_use]
    pub fn get(&self, id: impl AsRef<str>) -> Option<Session> {
        self.inner.tracker.find(id.as_ref().as_bytes()).map(|generation| generation.session())
    }

    /// A copy of every active session, in no particular order.
    ///
    /// Of a compaction that runs at the same time, it has either the old session or the new one.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// let mut snapshot = sessions.snapshot();
    /// snapshot.clear();
    /// assert_eq!(sessions.len(), 1);
    /// ```
    #[must_use]
    pub fn snapshot(&self) -> Vec<Session> {
        self.inner.tracker.snapshot()
    }

    /// The number of active sessions.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// assert_eq!(sessions.len(), 1);
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.tracker.len()
    }

    /// Whether no session is active.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert!(sessions.is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The phase of the shutdown; [`Phase::Open`] while none runs. It only moves forward.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason, Phase};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert_eq!(sessions.phase(), Phase::Open);
    /// let _ = sessions.drain(EndReason::Shutdown).await;
    /// assert_eq!(sessions.phase(), Phase::Closing);
    /// # }
    /// ```
    #[must_use]
    #[inline]
    pub fn phase(&self) -> Phase {
        self.inner.tracker.phase()
    }

    /// The reason of the shutdown under way; `None` until one is requested.
    ///
    /// It is set from the signal on, in [`Phase::LameDuck`] too, and before [`closing`](Self::closing) resolves. A
    /// handler, a hook or the holder of a guard can tell a restart from a shutdown by it. Further signals can change it
    /// until the drain begins; from then on it is the reason with which the drain ends sessions. One atomic load.
    ///
    /// ```
    /// # use std::{future::ready, time::Duration};
    /// # use tower_session_end::{ActiveSessions, EndReason, Phase};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().lame_duck_timeout(Duration::from_secs(60)).build().unwrap();
    /// assert_eq!(sessions.shutdown_reason(), None);
    ///
    /// let shutdown = tokio::spawn(sessions.shutdown_on(ready(EndReason::Restart)));
    /// tokio::task::yield_now().await;
    /// assert_eq!(sessions.phase(), Phase::LameDuck);
    /// assert_eq!(sessions.shutdown_reason(), Some(EndReason::Restart));
    /// # shutdown.abort();
    /// # }
    /// ```
    #[must_use]
    pub fn shutdown_reason(&self) -> Option<EndReason> {
        self.inner.tracker.requested_shutdown()
    }

    /// Whether the phase is [`Phase::Open`]: the answer for a readiness probe.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// // A readiness probe: 503 from the signal on.
    /// let status = if sessions.is_ready() { 200 } else { 503 };
    /// assert_eq!(status, 200);
    /// ```
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Open
    }

    /// The number of ids that were ignored so far, because they were empty, too long, ambiguous, or not visible ASCII.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("not an id");
    /// assert_eq!(sessions.ignored_ids(), 1);
    /// ```
    #[must_use]
    pub fn ignored_ids(&self) -> u64 {
        self.inner.ignored_ids.load(Ordering::Relaxed)
    }

    /// Whether the [registry](crate::ActiveSessionsBuilder::registry) does not answer, so that sessions are kept in
    /// memory until it does. False without a registry.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert!(!sessions.is_degraded());
    /// ```
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.inner.persister.as_ref().is_some_and(|persister| persister.is_degraded())
    }

    /// How often [`is_degraded`](Self::is_degraded) became true so far.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert_eq!(sessions.degradations(), 0);
    /// ```
    #[must_use]
    pub fn degradations(&self) -> u64 {
        self.inner.persister.as_ref().map_or(0, |persister| persister.degradations())
    }
}
