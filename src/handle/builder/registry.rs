//! The settings of the registry.

use std::time::Duration;

use super::ActiveSessionsBuilder;
use crate::registry::{Durability, Registry};

impl ActiveSessionsBuilder {
    /// Records active sessions in a [`Registry`], so that none is lost with the process. None by default.
    ///
    /// A birth is written before its `session_start` runs, and an end before its `session_end` does. After a crash the
    /// next start, or another process on the same registry, delivers what is owed: sessions with the reason
    /// [`Lost`](crate::EndReason::Lost), ends that a drain could not finish with their own. Across a crash that is at least once,
    /// with the same [`generation`](crate::SessionEnd::generation), and at most five times.
    ///
    /// Several processes on one registry are replicas: a session that some of them serve ends, on shutdown, with the last
    /// one that lets go, and an explicit end on one is an end for all.
    ///
    /// Call [`recover`](crate::ActiveSessions::recover) before serving; without it, the first polls of `shutdown_on` or
    /// `finish` do the same. They also keep the lease, so one of the two has to be polled for as long as sessions are
    /// active.
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

    /// What a birth waits for. [`Durability::Strict`] by default.
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

    /// What becomes of recorded sessions in a drain while the registry is out of reach. By default, and with `true`, they
    /// are left to the next start or to a survivor, and reported as [handed over](crate::DrainReport::handed_over): others
    /// may still hold them. With `false` they end here, and perhaps once more elsewhere, with the same
    /// [`generation`](crate::SessionEnd::generation).
    ///
    /// Sessions that are not on record end here in any case.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// let builder = ActiveSessions::builder().hand_over_on_outage(false); // one process alone
    /// # let _ = builder;
    /// ```
    pub fn hand_over_on_outage(mut self, hand_over: bool) -> Self {
        self.hand_over_on_outage = hand_over;
        self
    }

    /// How long [`recover`](crate::ActiveSessions::recover) may take. 10 s by default.
    ///
    /// What it has found by then is delivered in the background.
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
