//! The builder's settings of the registry.

use std::time::Duration;

use super::ActiveSessionsBuilder;
use crate::registry::{Durability, Registry};

impl ActiveSessionsBuilder {
    /// Records the active sessions in a [`Registry`], so that a crash loses no `session_end`. No registry by default.
    ///
    /// A start is written before its `session_start` runs, and an end before its `session_end` runs. After a crash, the
    /// next process that starts, or another process on the same registry, delivers the pending ends: for a session that
    /// was active, with the reason [`Lost`](crate::EndReason::Lost); for an end that was unfinished, with its own
    /// reason. After a crash, delivery is at-least-once (at most five attempts), always with the same
    /// [`generation`](crate::SessionEnd::generation).
    ///
    /// Several processes on one registry are replicas. If several of them serve a session, a shutdown, an expiry, an
    /// eviction or the drop of a guard ends it on the last of them only. An explicit
    /// [`end`](crate::ActiveSessions::end) on one replica ends it for all.
    ///
    /// Call [`recover`](crate::ActiveSessions::recover) before serving.
    /// [`shutdown_on`](crate::ActiveSessions::shutdown_on) and [`finish`](crate::ActiveSessions::finish) renew the
    /// lease: one of them has to be polled for as long as sessions are active. While the registry does not answer,
    /// requests succeed all the same, and sessions are kept in memory.
    ///
    /// ```no_run
    /// # #[cfg(feature = "sqlite")]
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_session_end::{ActiveSessions, registry::SqliteRegistry};
    ///
    /// let sessions = ActiveSessions::builder().registry(SqliteRegistry::open("sessions.db")?).build()?;
    /// println!("{}", sessions.recover().await);
    /// # Ok(())
    /// # }
    /// ```
    pub fn registry(mut self, registry: impl Registry) -> Self {
        self.registry = Some(Box::new(registry));
        self
    }

    /// Whether the response that starts a session waits for its record, up to 250 ms. [`Durability::Strict`] by
    /// default: it does. Without a [`registry`](Self::registry) it has no effect.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, registry::Durability};
    /// let builder = ActiveSessions::builder().durability(Durability::Relaxed);
    /// # let _ = builder;
    /// ```
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Whether a drain leaves the recorded sessions to other processes while the registry does not answer. `true` by
    /// default.
    ///
    /// With `true`, other replicas may still serve these sessions, so the drain ends none of them. The next process
    /// that starts, or another replica, delivers their ends. The report counts them as
    /// [handed over](crate::DrainReport::handed_over).
    ///
    /// With `false` they end here. They may end once more elsewhere, with the same
    /// [`generation`](crate::SessionEnd::generation). It fits a process without replicas. Sessions that were never
    /// recorded end here in both cases.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// let builder = ActiveSessions::builder().hand_over_on_outage(false); // there are no replicas
    /// # let _ = builder;
    /// ```
    pub fn hand_over_on_outage(mut self, hand_over: bool) -> Self {
        self.hand_over_on_outage = hand_over;
        self
    }

    /// The longest time that [`recover`](crate::ActiveSessions::recover) takes. 10 s by default; `Duration::MAX` means
    /// no limit.
    ///
    /// The ends that it has claimed and not delivered by then are delivered in the background.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::ActiveSessions;
    /// let builder = ActiveSessions::builder().recovery_timeout(Duration::from_secs(3));
    /// # let _ = builder;
    /// ```
    pub fn recovery_timeout(mut self, timeout: Duration) -> Self {
        self.settings.recovery_timeout = timeout;
        self
    }
}
