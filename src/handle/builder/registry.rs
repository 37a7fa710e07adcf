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
    /// reason. After a crash, delivery is at-least-once, always with the same
    /// [`generation`](crate::SessionEnd::generation). An end whose hooks fail is delivered again; see
    /// [`redeliver_failed`](Self::redeliver_failed).
    ///
    /// Several processes on one registry are replicas. If several of them serve a session, a shutdown, an expiry, an
    /// eviction or the drop of a guard ends it on the last of them only. An explicit
    /// [`end`](crate::ActiveSessions::end) on one replica ends it for all.
    ///
    /// Call [`recover`](crate::ActiveSessions::recover) before serving.
    /// [`shutdown_on`](crate::ActiveSessions::shutdown_on) and [`finish`](crate::ActiveSessions::finish) renew the
    /// lease: one of them has to be polled for as long as sessions are active.
    ///
    /// While the registry does not answer, requests succeed all the same, and sessions are kept in memory. A session whose id
    /// is in the response and not in the request starts. Every other session may be another replica's: no hook is called for
    /// it until the registry answers. The ends of recorded sessions wait too. A drain without the registry hands them over to
    /// other processes; see [`hand_over_on_outage`](Self::hand_over_on_outage).
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

    /// Whether recorded sessions are left to other processes while the registry does not answer. `true` by default.
    ///
    /// With `true`, other replicas may still serve these sessions. Their ends wait for the registry, and a drain ends none of
    /// them. The next process that starts, or another replica, delivers their ends. The report counts them as
    /// [handed over](crate::DrainReport::handed_over). A session that was noted in the outage ends in the drain. One whose id
    /// came with a request is handed over, and no hook is called for it.
    ///
    /// For 5 s after an outage, and in the first 2 s of a process, an id that comes with a request and that has no record may be
    /// one that another replica has made and not recorded yet. Its start hooks are called 1.75 s later if there is still none. No
    /// response waits for it.
    ///
    /// With `false` all of them start and end here at once. They may end once more after a restart, with the same
    /// [`generation`](crate::SessionEnd::generation). It fits a process without replicas.
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

    /// Whether an end whose hooks fail is delivered again, if there is a [`registry`](Self::registry). `true` by default.
    ///
    /// The hooks that failed are called again after 1 s. The pause doubles up to 1 min. After five calls the end is a **dead
    /// letter**: the registry keeps it for an operator, and no process delivers it. `SqliteRegistry` and `RedisRegistry` have
    /// the methods `dead_letters` and `redeliver`. A drain waits for no redelivery: the next process goes on with it. A report
    /// counts the end once, as failed.
    ///
    /// With `false` a failed end counts as delivered.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// let builder = ActiveSessions::builder().redeliver_failed(false);
    /// # let _ = builder;
    /// ```
    pub fn redeliver_failed(mut self, redeliver: bool) -> Self {
        self.redeliver_failed = redeliver;
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
