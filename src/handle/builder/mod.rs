//! The builder: hooks, settings, and their validation.

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
    tasks::{NoTimer, Tasks},
};

/// Activity is remembered in ticks of 10 ms that wrap around after 497 days; half of that can be told from the future.
const MAX_IDLE_TIMEOUT: Duration = Duration::from_secs(240 * 86_400);

/// Builds an [`ActiveSessions`]. Made by [`ActiveSessions::builder`].
///
/// A shutdown takes at most [`lame_duck_timeout`](Self::lame_duck_timeout) + [`drain_timeout`](Self::drain_timeout) +
/// [`connection_drain_timeout`](Self::connection_drain_timeout): 0 s + 2 s + 10 s = 12 s by default. The supervisor of
/// the process has to allow more: Kubernetes' `terminationGracePeriodSeconds` is 30 s by default, and includes the
/// `preStop` hook. For each of the times, `Duration::MAX` means no limit.
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
    redeliver_failed: bool,
    settings: Settings,
}

impl ActiveSessionsBuilder {
    pub(super) fn new() -> Self {
        Self {
            hooks: HookSet::default(),
            registry: None,
            durability: Durability::default(),
            hand_over_on_outage: true,
            redeliver_failed: true,
            settings: Settings {
                lame_duck_timeout: Duration::ZERO,
                drain_timeout: Duration::from_secs(2),
                connection_drain_timeout: Duration::from_secs(10),
                hook_timeout: Duration::from_secs(30),
                max_concurrent_hooks: None,
                settle_timeout: Duration::ZERO,
                idle_timeout: None,
                max_lifetime: None,
                doubt_timeout: Some(Duration::from_secs(60)),
                streams_are_activity: true,
                max_sessions: 1_000_000,
                end_streams: true,
                listening_media_types: vec!["text/event-stream".to_owned()],
                close_connections: true,
                refuse_new_sessions: false,
                keep_if: None,
                recovery_timeout: Duration::from_secs(10),
            },
        }
    }

    /// The duration of [`Phase::LameDuck`](crate::Phase::LameDuck): the time from the signal to the drain. 0 by
    /// default: the phase is skipped.
    ///
    /// In it [`is_ready`](ActiveSessions::is_ready) is false, so a load balancer can stop sending new requests before the
    /// listener closes. HTTP/1 responses carry `connection: close`, so clients that keep connections alive go elsewhere
    /// in this time too; see [`close_connections`](Self::close_connections). Everything else goes on.
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

    /// The longest time that the session drain takes: one deadline for settling, all hooks and the registry. 2 s by
    /// default.
    ///
    /// With 0, the drain ends every session and starts no hook: its report lists all of them as unfinished. The hooks
    /// start when the drain is over, in the background. With [`finish`](ActiveSessions::finish) that is the connection
    /// drain, and its report counts those that are over by its end.
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

    /// The longest time that the drain waits for work before it ends the sessions that have it. 0 by default. It is a
    /// part of [`drain_timeout`](Self::drain_timeout), and cannot be longer; `Duration::MAX` means up to the drain's
    /// deadline.
    ///
    /// Work is a request in flight, including its response body, or a [`WorkGuard`](crate::WorkGuard). A stream to which a
    /// client [listens](crate::StreamKind::Listening), such as an open `GET` of a `text/event-stream`, is none; one that
    /// is an [answer](crate::StreamKind::Answer) is. Sessions without work end at once. A session with work ends when
    /// that is over, or when this time is; [`at_work`](crate::DrainReport::at_work) counts the latter.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::{ActiveSessions, BuildError};
    /// let builder = ActiveSessions::builder()
    ///     .drain_timeout(Duration::from_secs(10))
    ///     .settle_timeout(Duration::from_secs(8)); // leaves 2 s for the hooks
    /// # builder.build()?;
    /// # Ok::<(), BuildError>(())
    /// ```
    pub fn settle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.settle_timeout = timeout;
        self
    }

    /// Ends sessions that were idle for this time, with [`EndReason::Idle`](crate::EndReason::Idle). Off by default,
    /// and with `Duration::MAX`; [`build`](Self::build) returns an error for 0, and for more than 240 days.
    ///
    /// A session is not idle while it has a request in flight, an open response body, a
    /// [`SessionGuard`](crate::SessionGuard) or a [`WorkGuard`](crate::WorkGuard). A listening stream counts too, unless
    /// [`streams_are_activity`](Self::streams_are_activity) is off. A session ends up to a sixteenth of the time late. Expiry runs in
    /// [`shutdown_on`](ActiveSessions::shutdown_on) while that is polled; otherwise it runs only when sessions start.
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

    /// Ends sessions that are older than this, with [`EndReason::Expired`](crate::EndReason::Expired), however busy they
    /// are. Off by default, and with `Duration::MAX`; [`build`](Self::build) returns an error for 0.
    ///
    /// A session with work ends at the first moment at which it has none: when its last request in flight and its last
    /// [`WorkGuard`](crate::WorkGuard) are over. A listening stream ends with it, and a
    /// [`SessionGuard`](crate::SessionGuard) does not keep it. The successor of a compaction is a new session with a
    /// lifetime of its own. A session ends up to a sixteenth of the time late; the expiry runs where that of
    /// [`idle_timeout`](Self::idle_timeout) does.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::*;
    /// let builder = ActiveSessions::builder().max_lifetime(Duration::from_secs(24 * 60 * 60));
    /// # let _ = builder;
    /// ```
    pub fn max_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.max_lifetime = limit(lifetime);
        self
    }

    /// How long a doubted session goes on without a sign of life. 60 s by default; with `Duration::MAX` doubt ends none.
    /// [`build`](Self::build) returns an error for 0.
    ///
    /// A host may answer an unknown id, and a request that its sender may not make, with the same 404. So the answers that
    /// [`McpProtocol`](crate::McpProtocol) lists, and [`SessionUpdate::doubted`](crate::SessionUpdate::doubted), end
    /// nothing at once: the session is *doubted*. A response with status 101 or 2xx to a request with its id, or a note,
    /// takes the doubt back. If none comes within this time, the session ends with [`EndReason::Unknown`](crate::EndReason::Unknown), unless it has a request in
    /// flight, an open response or a guard then, which take the doubt back too. So does an open listening stream, unless
    /// [`streams_are_activity`](Self::streams_are_activity) is off.
    ///
    /// So another user's refused request ends a session whose owner is silent for this time. The owner's next successful
    /// request starts it again, as a new generation. To prevent the early end, set the time as long as
    /// [`idle_timeout`](Self::idle_timeout).
    ///
    /// The ends run in [`shutdown_on`](ActiveSessions::shutdown_on) while that is polled; otherwise only when sessions
    /// start.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::*;
    /// let builder = ActiveSessions::builder().doubt_timeout(Duration::from_secs(10));
    /// # let _ = builder;
    /// ```
    pub fn doubt_timeout(mut self, timeout: Duration) -> Self {
        self.settings.doubt_timeout = limit(timeout);
        self
    }

    /// Whether an open listening stream is a sign of life. `true` by default.
    ///
    /// With `false`, a session whose only activity is an open `GET` of a `text/event-stream` is idle:
    /// [`idle_timeout`](Self::idle_timeout), [`max_sessions`](Self::max_sessions) and
    /// [`doubt_timeout`](Self::doubt_timeout) can end it, which ends the stream. Clients that only listen need
    /// requests from time to time then.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::*;
    /// let builder =
    ///     ActiveSessions::builder().idle_timeout(Duration::from_secs(30 * 60)).streams_are_activity(false);
    /// # let _ = builder;
    /// ```
    pub fn streams_are_activity(mut self, are_activity: bool) -> Self {
        self.settings.streams_are_activity = are_activity;
        self
    }

    /// The largest number of active sessions. 1,000,000 by default; [`build`](Self::build) returns an error for 0.
    ///
    /// Beyond it, each start evicts one session, about the one that is idle for the longest time, with
    /// [`EndReason::Evicted`](crate::EndReason::Evicted). A session with a request in flight, an open response body or
    /// a guard is never evicted: if all are busy, the number grows beyond `max`, which is logged once. A client that
    /// starts many sessions can evict the idle sessions of others, so set it well above the expected number. The
    /// successor of a compaction evicts nothing.
    ///
    /// Sessions that have ended and wait for their hooks are not counted. Their number is bounded by the speed of the
    /// hooks, and by [`hook_timeout`](Self::hook_timeout).
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

    /// Whether a stream to which a client listens ends with its session. `true` by default.
    ///
    /// These are the bodies of `GET` responses with one of the
    /// [`listening_media_types`](Self::listening_media_types), and all that a handler marks as
    /// [`StreamKind::Listening`](crate::StreamKind::Listening). Such a body ends cleanly, as if the host had ended it,
    /// once its session has ended. A stream without a session ends once the drain is over. With `false`, one client
    /// that listens delays the connection drain until its deadline.
    ///
    /// **An answer that looks like such a stream has to say that it is one.** A `text/event-stream` on a `GET` that
    /// carries the tokens of a model is ended in the middle by a shutdown, and the client takes it for whole, unless
    /// its handler marks it as [`StreamKind::Answer`](crate::StreamKind::Answer).
    ///
    /// A stream that this layer ends is torn by any layer inside of it that encodes the whole body. Put a layer that
    /// compresses outside of this one (with axum: add it after this one): then it sees the end, and completes its
    /// format.
    ///
    /// A compaction does not end the stream. In a shutdown, streams go on for 20 ms after the drain (at most a quarter
    /// of [`connection_drain_timeout`](Self::connection_drain_timeout)): to send a last event, wait for
    /// [`closing`](ActiveSessions::closing).
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

    /// The media types to which clients listen: the body of a `GET` response with one of them ends with its session; see
    /// [`end_streams`](Self::end_streams). `text/event-stream` by default, which this call replaces.
    ///
    /// Letters of both cases are equal, and the parameters of a response's `content-type` do not matter. With no media
    /// type, only the streams that their handlers mark as [`StreamKind::Listening`](crate::StreamKind::Listening) end.
    /// Other endless bodies, for example of `application/x-ndjson`, can be added; without that, they last until the end
    /// of [`connection_drain_timeout`](Self::connection_drain_timeout), and end with an error.
    /// [`build`](Self::build) returns an error for a text that is not `type/subtype`.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let sessions = ActiveSessions::builder()
    ///     .listening_media_types(["text/event-stream", "application/x-ndjson"])
    ///     .build()?;
    /// # assert!(ActiveSessions::builder().listening_media_types(["ndjson"]).build().is_err());
    /// # Ok::<(), BuildError>(())
    /// ```
    pub fn listening_media_types(mut self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.settings.listening_media_types = types.into_iter().map(Into::into).collect();
        self
    }

    /// Whether HTTP/1 responses carry `connection: close` from [`Phase::LameDuck`](crate::Phase::LameDuck) on. `true` by
    /// default.
    ///
    /// A client that keeps its connection alive is told to use another one, and so finds another process before this
    /// one closes the connection under a request. It replaces a `connection: keep-alive` of the host. A 101 and
    /// responses over HTTP/2 do not carry it. The layer's own 503 always does.
    ///
    /// It needs a [`lame_duck_timeout`](Self::lame_duck_timeout) that is longer than the pauses between the requests of
    /// a connection.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let builder = ActiveSessions::builder().close_connections(false);
    /// # let _ = builder;
    /// ```
    pub fn close_connections(mut self, close: bool) -> Self {
        self.settings.close_connections = close;
        self
    }

    /// Whether requests that may start a session get 503 and `retry-after` from
    /// [`Phase::Closing`](crate::Phase::Closing) on. `false` by default: their sessions start, and end at once.
    ///
    /// [`SessionProtocol::may_start`](crate::SessionProtocol::may_start) decides which requests these are.
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

    /// Keeps the sessions for which `f` returns true: they outlive the process, because they are persisted and can be
    /// resumed elsewhere. A drain forgets them without a `session_end`, and counts them as
    /// [kept](crate::DrainReport::kept). By default no session is kept.
    ///
    /// A drain calls `f` for each active session, with the drain's reason, one call after the other. The drop of a guard,
    /// the end of work and a start in the drain call it too, in their own threads, so calls may run at the same time. For
    /// a session that starts in the drain, or with overlapping drains, it may be called twice. If `f` panics, the session
    /// ends.
    ///
    /// `f` is called on a thread of the runtime, so it has to answer at once: look up in memory, not in a database. The
    /// [`drain_timeout`](Self::drain_timeout) holds for it too. After its deadline the drain begins no further call. A
    /// session that `f` was not asked about stays active, and the drain reports it as
    /// [never started](crate::EndStage::NeverStarted). [`finish`](ActiveSessions::finish) goes on asking until the
    /// deadline of the connection drain, also after the connections have ended. What is not asked by then has no
    /// `session_end` in this process. In a settling, the sessions without work are asked first, until the
    /// [`settle_timeout`](Self::settle_timeout) is over.
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

    /// The longest time that the connection drain takes, after the session drain. 10 s by default.
    ///
    /// At its end [`finish`](ActiveSessions::finish) ends the open responses and drops the server. Without `finish`,
    /// nothing enforces it.
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

    /// The longest time that one call of a hook takes outside of a drain. 30 s by default. A call that takes longer is
    /// dropped, and counts as failed. In a drain no call is dropped: at the drain's deadline it is reported as
    /// unfinished.
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

    /// Sets a hard limit on the number of sessions whose hooks run at the same time. No hard limit by default;
    /// [`build`](Self::build) returns an error for 0.
    ///
    /// Without a hard limit, the hooks of 256 sessions run at the same time, and of more sessions if hooks are slow or
    /// hang, so that these do not delay others. With a hard limit of `n`, `n` hung hooks block all others: set it only
    /// if the consumer cannot take more, and give its calls a timeout. A batch hook always has one call at a time.
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

    /// Validates the settings and builds the handle. Hooks run on the current tokio runtime, if there is one.
    ///
    /// # Errors
    ///
    /// * [`BuildError::ZeroValue`] if `max_concurrent_hooks`, `max_sessions`, `idle_timeout`, `max_lifetime`,
    ///   `doubt_timeout`, or the `max` of a batch hook is 0.
    /// * [`BuildError::TooLong`] if `idle_timeout` is longer than 240 days.
    /// * [`BuildError::NoTimer`] within a tokio runtime without a timer. tokio reports that by a panic, which is caught
    ///   and which the process's panic hook prints.
    /// * [`BuildError::InvalidMediaType`] if one of the `listening_media_types` is not `type/subtype`.
    /// * [`BuildError::SettleOverDrain`] if `settle_timeout` is finite and longer than `drain_timeout`.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// assert!(ActiveSessions::builder().build().is_ok());
    /// assert!(ActiveSessions::builder().max_sessions(0).build().is_err());
    /// ```
    pub fn build(self) -> Result<ActiveSessions, BuildError> {
        let Self { hooks, settings, registry, durability, hand_over_on_outage, redeliver_failed } = self;
        if settings.max_concurrent_hooks == Some(0) {
            return Err(BuildError::ZeroValue { setting: "max_concurrent_hooks" });
        }
        if settings.max_sessions == 0 {
            return Err(BuildError::ZeroValue { setting: "max_sessions" });
        }
        let timeouts = [
            ("idle_timeout", settings.idle_timeout),
            ("max_lifetime", settings.max_lifetime),
            ("doubt_timeout", settings.doubt_timeout),
        ];
        if let Some((setting, _)) = timeouts.into_iter().find(|(_, timeout)| *timeout == Some(Duration::ZERO)) {
            return Err(BuildError::ZeroValue { setting });
        }
        if settings.idle_timeout.is_some_and(|timeout| timeout > MAX_IDLE_TIMEOUT) {
            return Err(BuildError::TooLong { setting: "idle_timeout", limit: MAX_IDLE_TIMEOUT });
        }
        if let Some(media_type) = settings.listening_media_types.iter().find(|text| !is_media_type(text)) {
            let (setting, media_type) = ("listening_media_types", media_type.clone());
            return Err(BuildError::InvalidMediaType { setting, media_type });
        }
        let (settle_timeout, drain_timeout) = (settings.settle_timeout, settings.drain_timeout);
        if settle_timeout > drain_timeout && settle_timeout != Duration::MAX {
            return Err(BuildError::SettleOverDrain { settle_timeout, drain_timeout });
        }
        if hooks.batch.iter().any(|batch| batch.max == 0) {
            return Err(BuildError::ZeroValue { setting: "on_session_end_batch" });
        }
        let tasks = Tasks::new().map_err(|NoTimer| BuildError::NoTimer)?;
        let registry = registry.map(|registry| PersistConfig {
            registry,
            durability,
            hand_over_on_outage,
            redeliver: redeliver_failed,
        });
        if hooks.is_empty() && !registry.as_ref().is_some_and(PersistConfig::has_transaction_hook) {
            tracing::warn!(
                name: "session-no-hook",
                "no hook is registered, so no session_end is delivered: register one, for example with \
                 `on_session_end`",
            );
        }
        Ok(ActiveSessions::new(hooks, settings, registry, tasks))
    }
}

/// Whether a text is `type/subtype`: names as RFC 6838 restricts them, so no parameters and no wildcards.
fn is_media_type(text: &str) -> bool {
    let is_name = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_alphanumeric())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    text.split_once('/').is_some_and(|(kind, subtype)| is_name(kind) && is_name(subtype))
}

/// `None` for what the handle's clock cannot reach: 584 years.
fn limit(timeout: Duration) -> Option<Duration> {
    (timeout.as_nanos() < u128::from(u64::MAX)).then_some(timeout)
}

/// The settings of a handle, without its hooks and its registry.
pub(super) struct Settings {
    pub(super) lame_duck_timeout: Duration,
    pub(super) settle_timeout: Duration,
    pub(super) drain_timeout: Duration,
    pub(super) connection_drain_timeout: Duration,
    pub(super) hook_timeout: Duration,
    pub(super) max_concurrent_hooks: Option<usize>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) max_lifetime: Option<Duration>,
    pub(super) doubt_timeout: Option<Duration>,
    pub(super) streams_are_activity: bool,
    pub(super) max_sessions: usize,
    pub(super) end_streams: bool,
    pub(super) listening_media_types: Vec<String>,
    pub(super) close_connections: bool,
    pub(super) refuse_new_sessions: bool,
    pub(super) keep_if: Option<KeepIf>,
    pub(super) recovery_timeout: Duration,
}

impl fmt::Debug for ActiveSessionsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hooks, registry, durability: _, hand_over_on_outage: _, redeliver_failed: _, settings: _ } = self;
        f.debug_struct("ActiveSessionsBuilder")
            .field("hooks", hooks)
            .field("registry", &registry.is_some())
            .finish_non_exhaustive()
    }
}
