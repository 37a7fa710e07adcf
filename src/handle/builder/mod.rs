//! The builder: hooks, times, and the checks of both.

mod error;
mod hooks;
mod registry;

use std::{fmt, time::Duration};

pub use self::error::BuildError;
use super::ActiveSessions;
use crate::{
    hooks::HookSet,
    housekeeper::KeepIf,
    persist::PersistConfig,
    registry::{Durability, DynRegistry},
    session::{EndReason, Session},
};

/// Makes an [`ActiveSessions`]; from [`ActiveSessions::builder`].
///
/// A stop takes at most [`lame_duck_timeout`](Self::lame_duck_timeout) + [`drain_timeout`](Self::drain_timeout) +
/// [`connection_drain_timeout`](Self::connection_drain_timeout): 12 s by default. Whatever starts your process has to
/// allow more than that: Kubernetes' `terminationGracePeriodSeconds` is 30 s by default, and a `preStop` hook counts in
/// it. `Duration::MAX` means no limit of its own, for each of the times.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_session_end::{ActiveSessions, SessionEnd, SessionStart};
///
/// let sessions = ActiveSessions::builder()
///     .drain_timeout(Duration::from_secs(5))
///     .connection_drain_timeout(Duration::from_secs(15))
///     .on_session_start(async |start: SessionStart| println!("+ {}", start.session.id))
///     .on_session_end(async |end: SessionEnd| println!("- {}", end.session.id))
///     .build()?;
/// # Ok::<(), tower_session_end::BuildError>(())
/// ```
#[must_use = "call `.build()`"]
pub struct ActiveSessionsBuilder {
    hooks: HookSet,
    registry: Option<Box<dyn DynRegistry>>,
    durability: Durability,
    hand_over_on_outage: bool,
    settings: Settings,
}

impl ActiveSessionsBuilder {
    pub(super) fn new() -> Self {
        Self {
            hooks: HookSet::default(),
            registry: None,
            durability: Durability::default(),
            hand_over_on_outage: true,
            settings: Settings {
                lame_duck_timeout: Duration::ZERO,
                drain_timeout: Duration::from_secs(2),
                connection_drain_timeout: Duration::from_secs(10),
                hook_timeout: Duration::from_secs(30),
                max_concurrent_hooks: None,
                settle_timeout: Duration::ZERO,
                idle_timeout: None,
                max_sessions: 1_000_000,
                end_streams: true,
                refuse_new_sessions: false,
                keep_if: None,
                recovery_timeout: Duration::from_secs(10),
            },
        }
    }

    /// How long readiness probes may say no before the drain begins, while everything else goes on: time for a load
    /// balancer to look elsewhere. Zero by default.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::ActiveSessions;
    /// let builder = ActiveSessions::builder().lame_duck_timeout(Duration::from_secs(5));
    /// # let _ = builder;
    /// ```
    pub fn lame_duck_timeout(mut self, time: Duration) -> Self {
        self.settings.lame_duck_timeout = time;
        self
    }

    /// How long the drain may take: the one deadline for every hook in it. 2 s by default.
    ///
    /// Zero is legal: every session is claimed, no hook is started, and the report lists them all.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::*;
    /// let builder = ActiveSessions::builder().drain_timeout(Duration::from_secs(5));
    /// # let _ = builder;
    /// ```
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.settings.drain_timeout = timeout;
        self
    }

    /// How long the drain waits for requests that are not over, before it ends their sessions. Zero by default; a finite
    /// time is part of [`drain_timeout`](Self::drain_timeout) and cannot be longer.
    ///
    /// Sessions without a request end at once. One with a request ends when that is over, its response body included,
    /// or when this time is. A `GET` of a `text/event-stream` is not a request in this sense.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::{ActiveSessions, BuildError};
    /// let builder = ActiveSessions::builder()
    ///     .drain_timeout(Duration::from_secs(10))
    ///     .settle_timeout(Duration::from_secs(8)); // which leaves 2 s for the hooks
    /// # builder.build()?;
    /// # Ok::<(), BuildError>(())
    /// ```
    pub fn settle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.settle_timeout = timeout;
        self
    }

    /// Ends sessions that have been silent for so long, with [`EndReason::Idle`](crate::EndReason::Idle). Off by
    /// default.
    ///
    /// A request, an open response body and a [`SessionGuard`](crate::SessionGuard) are activity. The work is done
    /// within [`shutdown_on`](ActiveSessions::shutdown_on), as long as that is polled; a session ends at most a
    /// sixteenth of the time late.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::*;
    /// let builder = ActiveSessions::builder().idle_timeout(Duration::from_secs(30 * 60));
    /// # let _ = builder;
    /// ```
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = (timeout != Duration::MAX).then_some(timeout);
        self
    }

    /// The most sessions that are active at the same time; 1,000,000 by default.
    ///
    /// Beyond it each birth ends about the longest idle session, with [`EndReason::Evicted`](crate::EndReason::Evicted),
    /// but never one with a request, an open response body or a guard. A flood of births therefore pushes out idle
    /// sessions of others; set it well above what you expect. The successor of a compaction is exempt. Sessions that
    /// have ended and wait for their hooks do not count: what bounds those is how fast the hooks are, and
    /// [`hook_timeout`](Self::hook_timeout).
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let builder = ActiveSessions::builder().max_sessions(100_000);
    /// # let _ = builder;
    /// ```
    pub fn max_sessions(mut self, max: usize) -> Self {
        self.settings.max_sessions = max;
        self
    }

    /// Whether an open event stream ends with its session. On by default.
    ///
    /// The body of a `GET` that is a `text/event-stream` is finished cleanly, as if the host had ended it, once its
    /// session has ended; one that belongs to no session, once the drain is over. Without that, one client that
    /// listens holds the connection drain until it is cut. A stream goes on over a compaction. To send a last event
    /// first, listen to [`closing`](ActiveSessions::closing): in a stop, streams go on until the drain is over, and 20 ms
    /// longer (at most a quarter of the connections' time).
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let builder = ActiveSessions::builder().end_streams(false);
    /// # let _ = builder;
    /// ```
    pub fn end_streams(mut self, end: bool) -> Self {
        self.settings.end_streams = end;
        self
    }

    /// Whether requests that may open a session get 503 and `retry-after` once the phase is
    /// [`Phase::Closing`](crate::Phase::Closing), instead of a session that ends at once. Off by default.
    ///
    /// Which those are, [`SessionProtocol::may_start`](crate::SessionProtocol::may_start) says.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let builder = ActiveSessions::builder().refuse_new_sessions(true);
    /// # let _ = builder;
    /// ```
    pub fn refuse_new_sessions(mut self, refuse: bool) -> Self {
        self.settings.refuse_new_sessions = refuse;
        self
    }

    /// Says which sessions outlive the process, because they are persisted and can be resumed elsewhere: a drain
    /// forgets those without a `session_end`, and reports them as [kept](crate::DrainReport::kept).
    ///
    /// Called for each session that a drain comes upon, with the drain's reason; for one that is born late it may be
    /// called twice. Should it panic, the session is ended.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// let builder = ActiveSessions::builder()
    ///     .keep_if(|session, reason| reason.may_resume() && session.session_file.is_some());
    /// # let _ = builder;
    /// ```
    pub fn keep_if<F>(mut self, f: F) -> Self
    where
        F: Fn(&Session, EndReason) -> bool + Send + Sync + 'static,
    {
        self.settings.keep_if = Some(Box::new(f));
        self
    }

    /// How long the connections may take after the drain, before [`finish`](ActiveSessions::finish) cuts them. 10 s by
    /// default.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::*;
    /// let builder = ActiveSessions::builder().connection_drain_timeout(Duration::from_secs(20));
    /// # let _ = builder;
    /// ```
    pub fn connection_drain_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connection_drain_timeout = timeout;
        self
    }

    /// How long one call of a hook may take outside of a drain. 30 s by default. A call that takes longer is dropped,
    /// and counts as failed.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::*;
    /// let builder = ActiveSessions::builder().hook_timeout(Duration::from_secs(5));
    /// # let _ = builder;
    /// ```
    pub fn hook_timeout(mut self, timeout: Duration) -> Self {
        self.settings.hook_timeout = timeout;
        self
    }

    /// Sets a hard limit on the sessions whose hooks run at the same time.
    ///
    /// Unset, the pool adapts: 256 at first, more where hooks are slow or hang, so that those delay nobody else. With a
    /// hard limit of `n`, `n` hung hooks do starve all others: set it only where the consumer cannot take more, and
    /// then give its calls a timeout. A batch hook has one call at a time in any case.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let builder = ActiveSessions::builder().max_concurrent_hooks(8); // a database with eight connections
    /// # let _ = builder;
    /// ```
    pub fn max_concurrent_hooks(mut self, n: usize) -> Self {
        self.settings.max_concurrent_hooks = Some(n);
        self
    }

    /// Checks it all and makes the handle. Within a tokio runtime, its hooks run on that one.
    ///
    /// # Errors
    ///
    /// [`BuildError`] if a capacity is zero, or a finite settle time longer than the drain's.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// assert!(ActiveSessions::builder().build().is_ok());
    /// assert!(ActiveSessions::builder().max_sessions(0).build().is_err());
    /// ```
    pub fn build(self) -> Result<ActiveSessions, BuildError> {
        let Self { hooks, settings, registry, durability, hand_over_on_outage } = self;
        if settings.max_concurrent_hooks == Some(0) {
            return Err(BuildError::ZeroValue { setting: "max_concurrent_hooks" });
        }
        if settings.max_sessions == 0 {
            return Err(BuildError::ZeroValue { setting: "max_sessions" });
        }
        if settings.idle_timeout == Some(Duration::ZERO) {
            return Err(BuildError::ZeroValue { setting: "idle_timeout" });
        }
        let (settle_timeout, drain_timeout) = (settings.settle_timeout, settings.drain_timeout);
        if settle_timeout > drain_timeout && settle_timeout != Duration::MAX {
            return Err(BuildError::SettleOverDrain { settle_timeout, drain_timeout });
        }
        if hooks.batch.iter().any(|batch| batch.max == 0) {
            return Err(BuildError::ZeroValue { setting: "on_session_end_batch" });
        }
        let registry = registry.map(|registry| PersistConfig { registry, durability, hand_over_on_outage });
        Ok(ActiveSessions::new(hooks, settings, registry))
    }
}

/// What the builder has been told.
pub(super) struct Settings {
    pub(super) lame_duck_timeout: Duration,
    pub(super) settle_timeout: Duration,
    pub(super) drain_timeout: Duration,
    pub(super) connection_drain_timeout: Duration,
    pub(super) hook_timeout: Duration,
    pub(super) max_concurrent_hooks: Option<usize>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) max_sessions: usize,
    pub(super) end_streams: bool,
    pub(super) refuse_new_sessions: bool,
    pub(super) keep_if: Option<KeepIf>,
    pub(super) recovery_timeout: Duration,
}

impl fmt::Debug for ActiveSessionsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hooks, registry, durability: _, hand_over_on_outage: _, settings: _ } = self;
        f.debug_struct("ActiveSessionsBuilder")
            .field("hooks", hooks)
            .field("registry", &registry.is_some())
            .finish_non_exhaustive()
    }
}
