//! [`ActiveSessions`]: the handle. Every public method of it stands here, but for those that make a layer.

mod builder;
mod guard;
mod recovery;

use std::{
    fmt,
    future::{Future, IntoFuture},
    sync::{
        Arc, Once,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use self::builder::Settings;
pub use self::{
    builder::{ActiveSessionsBuilder, BuildError},
    guard::{ClosingFuture, SessionGuard},
    recovery::RecoveryReport,
};
use crate::{
    hooks::{EndRecorder, HookSet, Pool, PoolConfig},
    housekeeper::{Housekeeper, HousekeeperConfig},
    persist::{PersistConfig, Persister},
    session::{EndReason, InvalidSessionId, Phase, Session},
    shutdown::{FinishOutput, Shutdown, ShutdownConfig, ShutdownFuture, report::DrainReport, signal::ShutdownRequest},
    tasks::Tasks,
    tracker::{Activity, EndedBy, Generation, NoteSource, Noted, Outbox, Tracker},
};

/// The handle: who is active, and everything that can be done about it.
///
/// A generation of a session leaves the handle once, by one of [`end`](Self::end), [`forget`](Self::forget),
/// [`compact`](Self::compact), the drop of a [`SessionGuard`](crate::SessionGuard), a response that says so, or the drain. Whoever takes it
/// out owes its one `session_end`; every other attempt finds nothing and does nothing.
///
/// Cloning is cheap, and all clones are the same handle. Calls are synchronous, never block on a hook, and may come
/// from any thread: the hooks run on the tokio runtime in which the handle was built, or drained last.
///
/// # Examples
///
/// ```
/// use tower_session_end::{ActiveSessions, EndReason, SessionEnd};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_session_end::BuildError> {
/// let sessions = ActiveSessions::builder()
///     .on_session_end(async |end: SessionEnd| println!("{} is over: {}", end.session.id, end.reason))
///     .build()?;
///
/// sessions.note("a");
/// sessions.note("b");
/// assert!(sessions.end("a", EndReason::Reset));
/// assert!(!sessions.end("a", EndReason::Reset)); // once is enough
///
/// let report = sessions.drain(EndReason::Shutdown).await; // the end of `a` may still run: it is awaited
/// assert_eq!((report.active, report.already_ending), (1, 1));
/// assert_eq!(report.ended, 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ActiveSessions {
    pub(crate) inner: Arc<Inner>,
}

/// The parts of a handle. Each knows those that stand before it.
pub(crate) struct Inner {
    pub(crate) tracker: Arc<Tracker>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) persister: Option<Arc<Persister>>,
    pool: Arc<Pool>,
    pub(crate) housekeeper: Arc<Housekeeper>,
    pub(crate) shutdown: Arc<Shutdown>,
    pub(crate) end_streams: bool,
    pub(crate) refuse_new_sessions: bool,
    recovery_timeout: Duration,
    ignored_ids: AtomicU64,
    ignored_id: Once,
}

impl ActiveSessions {
    fn new(hooks: HookSet, settings: Settings, registry: Option<PersistConfig>) -> Self {
        let Settings {
            lame_duck_timeout,
            settle_timeout,
            drain_timeout,
            connection_drain_timeout,
            hook_timeout,
            max_concurrent_hooks,
            idle_timeout,
            max_sessions,
            end_streams,
            refuse_new_sessions,
            keep_if,
            recovery_timeout,
        } = settings;
        let outbox = registry.is_some().then(Arc::<Outbox>::default);
        let ends_late_starts = keep_if.is_none();
        let tracker = Tracker::new(!hooks.start.is_empty(), hooks.has_end(), ends_late_starts, outbox.clone());
        let (tracker, tasks) = (Arc::new(tracker), Arc::new(Tasks::new()));
        let persister = registry
            .zip(outbox)
            .map(|(config, outbox)| Persister::new(config, Arc::clone(&tracker), outbox, Arc::clone(&tasks)));
        let pool = Pool::new(
            Arc::clone(&tracker),
            Arc::clone(&tasks),
            hooks,
            PoolConfig { max_concurrent_hooks, hook_timeout, drain_timeout },
            persister.clone().map(|persister| persister as Arc<dyn EndRecorder>),
        );
        let housekeeper = Housekeeper::new(
            Arc::clone(&tracker),
            Arc::clone(&pool),
            HousekeeperConfig { idle_timeout, max_sessions, keep_if },
        );
        let shutdown = Shutdown::new(
            Arc::clone(&tracker),
            Arc::clone(&tasks),
            Arc::clone(&pool),
            Arc::clone(&housekeeper),
            persister.clone(),
            ShutdownConfig { lame_duck_timeout, settle_timeout, drain_timeout, connection_drain_timeout, hook_timeout },
        );
        let inner = Inner {
            tracker,
            tasks,
            persister,
            pool,
            housekeeper,
            shutdown,
            end_streams,
            refuse_new_sessions,
            recovery_timeout,
            ignored_ids: AtomicU64::new(0),
            ignored_id: Once::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A builder with the defaults.
    ///
    /// ```
    /// use tower_session_end::ActiveSessions;
    ///
    /// let sessions = ActiveSessions::builder().build()?;
    /// assert!(sessions.is_empty());
    /// # Ok::<(), tower_session_end::BuildError>(())
    /// ```
    pub fn builder() -> ActiveSessionsBuilder {
        ActiveSessionsBuilder::new()
    }

    /// Remembers that a session is active. If it was not, it starts: `session_start` fires.
    ///
    /// Takes a [`Session`], a [`SessionId`], or text that converts. An invalid id is ignored: the outcome says so, it is counted in
    /// [`ignored_ids`](Self::ignored_ids), and the first one is logged. Noting an active id again replaces its details and fires
    /// nothing. In [`Phase::Closing`] the session ends at once, with the reason of the shutdown; in [`Phase::Closed`] it is not noted.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, Session, SessionId};
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert!(sessions.note("a").is_new());
    /// assert!(!sessions.note(Session::try_from("a").unwrap().with_key("second")).is_new());
    /// assert_eq!(sessions.get("a").unwrap().key.as_deref(), Some("second"));
    ///
    /// // Everything that is an id, or converts into one, is passed the same way to all methods.
    /// let (text, id) = (String::from("b"), SessionId::new("c").unwrap());
    /// sessions.note(&text);
    /// sessions.note(&id);
    /// assert!(sessions.contains(&text) && sessions.contains(&id));
    ///
    /// assert!(sessions.note("two words").invalid_id().is_some());
    /// ```
    pub fn note(&self, session: impl TryInto<Session, Error: Into<InvalidSessionId>>) -> NoteOutcome {
        match self.checked(session) {
            Ok(session) => {
                let noted = self.note_session(session, NoteSource::Handle, None);
                self.outcome(noted, false)
            }
            Err(error) => NoteOutcome::invalid(error),
        }
    }

    /// An invalid id is counted and logged.
    fn checked(
        &self,
        session: impl TryInto<Session, Error: Into<InvalidSessionId>>,
    ) -> Result<Session, InvalidSessionId> {
        session.try_into().map_err(Into::into).inspect_err(|_| self.ignore_id())
    }

    fn outcome(&self, noted: Noted, ended_old: bool) -> NoteOutcome {
        let is_new = matches!(noted, Noted::Started(_));
        let recorded = match noted {
            Noted::Started(generation) | Noted::AlreadyActive(generation) if self.inner.persister.is_some() => {
                Some((generation, self.clone()))
            }
            Noted::Started(_) | Noted::AlreadyActive(_) | Noted::Tombstoned | Noted::Closed => None,
        };
        NoteOutcome { is_new, ended_old, invalid_id: None, recorded }
    }

    pub(crate) fn note_session(&self, session: Session, source: NoteSource, activity: Option<Activity>) -> Noted {
        let noted = self.inner.tracker.note(session, source, activity);
        if let Noted::Started(generation) = &noted {
            self.inner.housekeeper.on_started(generation);
            self.inner.housekeeper.enforce_max_sessions(generation);
        }
        self.wake();
        noted
    }

    /// Counts an invalid id, and logs the first one.
    pub(crate) fn ignore_id(&self) {
        self.inner.ignored_ids.fetch_add(1, Ordering::Relaxed);
        self.inner.tracker.meters.ignored_id();
        self.inner.ignored_id.call_once(|| {
            tracing::warn!(
                name: "session-id-ignored",
                "ignored a session id that is empty, too long, ambiguous, or not visible ASCII; further ones are counted in \
                 `ignored_ids`, not logged",
            );
        });
    }

    /// Ends the session, if it is active: `session_end` fires with `reason`. Says whether this call ended it.
    ///
    /// The hook runs in the background and outlives the request that asked for it.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// assert!(sessions.end("a", EndReason::Deleted));
    /// assert!(!sessions.end("a", EndReason::Deleted));
    /// ```
    pub fn end(&self, id: impl AsRef<str>, reason: EndReason) -> bool {
        let ended = self.inner.tracker.end(id.as_ref().as_bytes(), reason);
        self.wake();
        ended
    }

    /// Ends this very generation, and no later one.
    pub(crate) fn end_generation(&self, generation: &Arc<Generation>, reason: EndReason, by: EndedBy) -> bool {
        let ended = self.inner.tracker.claim(generation, reason, by);
        if ended {
            self.wake();
        }
        ended
    }

    /// Stops remembering the session, firing nothing: the host has finalised it itself. Says whether it was active.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// assert!(sessions.forget("a")); // no `session_end`
    /// assert!(!sessions.forget("a"));
    /// ```
    pub fn forget(&self, id: impl AsRef<str>) -> bool {
        let forgotten = self.inner.tracker.forget(id.as_ref().as_bytes());
        self.wake();
        forgotten
    }

    /// Forgets every session, firing nothing, and says how many there were.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// sessions.note("b");
    /// assert_eq!(sessions.forget_all(), 2);
    /// ```
    #[allow(clippy::must_use_candidate, reason = "the count is a courtesy")]
    pub fn forget_all(&self) -> usize {
        let forgotten = self.inner.tracker.forget_all();
        self.wake();
        forgotten
    }

    /// Ends `old` with reason `compaction` and notes `session` as its successor, in one step: no observer sees neither or both. The
    /// hooks run in order: the end of `old` (with `next`), then the start of the successor (with `resumed_from`).
    ///
    /// A successor with its id alone inherits the details of `old`, except for the [`session_file`](Session::session_file). If `old`
    /// is not active, the successor is noted like any session. If the successor is active already, its details are replaced.
    /// Compacting a session into itself does nothing. With an invalid id, `old` goes on.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("old");
    /// assert!(sessions.compact("old", "new").ended_old());
    /// assert!(!sessions.contains("old") && sessions.contains("new"));
    /// ```
    pub fn compact(
        &self,
        old: impl AsRef<str>,
        session: impl TryInto<Session, Error: Into<InvalidSessionId>>,
    ) -> NoteOutcome {
        match self.checked(session) {
            Ok(session) => {
                let (ended_old, noted) = self.compact_generation(old.as_ref(), None, session, NoteSource::Handle, None);
                self.outcome(noted, ended_old)
            }
            Err(error) => NoteOutcome::invalid(error),
        }
    }

    /// As [`compact`](Self::compact); with `only`, no other generation of `old` counts.
    pub(crate) fn compact_generation(
        &self,
        old: &str,
        only: Option<&Arc<Generation>>,
        session: Session,
        source: NoteSource,
        activity: Option<Activity>,
    ) -> (bool, Noted) {
        let (was_active, noted) = self.inner.tracker.compact(old.as_bytes(), only, session, source, activity);
        if let Noted::Started(generation) = &noted {
            self.inner.housekeeper.on_started(generation);
            // The successor of an active session is exempt: their number is unchanged.
            if !was_active {
                self.inner.housekeeper.enforce_max_sessions(generation);
            }
        }
        self.wake();
        (was_active, noted)
    }

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

    /// A copy of every active session, in no order; what you do to it changes nothing here.
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
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How far a shutdown has come.
    #[must_use]
    #[inline]
    pub fn phase(&self) -> Phase {
        self.inner.tracker.phase()
    }

    /// The reason of the shutdown under way; `None` until one is requested.
    ///
    /// It is set from the signal on, before [`closing`](Self::closing) resolves. A handler, a hook or the holder of a guard can tell
    /// a restart from a shutdown by it.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert_eq!(sessions.shutdown_reason(), None);
    /// let _ = sessions.drain(EndReason::Restart).await;
    /// assert_eq!(sessions.shutdown_reason(), Some(EndReason::Restart));
    /// # }
    /// ```
    #[must_use]
    pub fn shutdown_reason(&self) -> Option<EndReason> {
        self.inner.tracker.requested_shutdown()
    }

    /// Whether the phase is [`Phase::Open`]: what a readiness probe wants to know.
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

    /// How many ids were ignored because they were empty, too long, ambiguous, or not visible ASCII.
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

    /// Delivers what processes that are gone have left behind in the [registry](crate::ActiveSessionsBuilder::registry):
    /// sessions that they held, with the reason [`Lost`](crate::EndReason::Lost), and ends that they did not finish, with the reason that
    /// those had. Their `session_end` carries the first [`generation`](crate::SessionEnd::generation).
    ///
    /// Call it before serving: then the end of a lost session comes before its next start. Without it,
    /// [`shutdown_on`](Self::shutdown_on) and [`finish`](Self::finish) do the same at their first poll, and again and again while they are polled.
    ///
    /// Returns when all of it is delivered, or after
    /// [`recovery_timeout`](crate::ActiveSessionsBuilder::recovery_timeout): the rest is delivered in the background. A registry that
    /// cannot be reached is an error in the report, and no other: the handle goes on in memory.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let report = sessions.recover().await;
    /// if !report.is_clean() {
    ///     eprintln!("{report}");
    /// }
    /// # }
    /// ```
    pub async fn recover(&self) -> RecoveryReport {
        recovery::recover(&self.inner).await
    }

    /// Whether the [registry](crate::ActiveSessionsBuilder::registry) is out of reach, and sessions are kept in memory only
    /// until it is back. False where there is none.
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

    /// How often the [registry](crate::ActiveSessionsBuilder::registry) has been out of reach so far.
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

    /// Notes the session and ties it to the guard: when the guard is dropped, the session ends.
    ///
    /// For WebSockets and jobs, which no response ends. If the session is active already, the guard ties that generation; of two
    /// guards on one generation, the first that is dropped ends it.
    ///
    /// # Errors
    ///
    /// [`InvalidSessionId`] if the id is not valid; it is also counted in [`ignored_ids`](Self::ignored_ids).
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason, InvalidSessionId};
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let guard = sessions.guard("socket-1")?;
    /// assert!(sessions.contains("socket-1"));
    /// drop(guard); // ends it with `EndReason::Unknown`; `guard.end(..)` gives another reason
    /// assert!(!sessions.contains("socket-1"));
    /// # Ok::<(), InvalidSessionId>(())
    /// ```
    pub fn guard(
        &self,
        session: impl TryInto<Session, Error: Into<InvalidSessionId>>,
    ) -> Result<SessionGuard, InvalidSessionId> {
        let session = self.checked(session)?;
        let id = session.id.clone();
        let generation = match self.note_session(session, NoteSource::Update, Some(Activity::Stream)) {
            Noted::Started(generation) | Noted::AlreadyActive(generation) => Some(generation),
            Noted::Closed | Noted::Tombstoned => None,
        };
        Ok(SessionGuard::new(self.clone(), id, generation))
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
    pub fn closing(&self) -> ClosingFuture {
        ClosingFuture::new(self.inner.shutdown.closing.clone())
    }

    /// The future for axum's `with_graceful_shutdown`: waits for `signal`, then runs the session drain, and resolves
    /// when that is over, so that the connections drain after the sessions.
    ///
    /// The phases: at the signal [`Phase::LameDuck`], for as long as the
    /// [builder](crate::ActiveSessionsBuilder::lame_duck) says (not at all by default); then [`Phase::Closing`] and the
    /// [drain](Self::drain), which takes at most [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout). A
    /// session that is born meanwhile gets its end at once. A second signal, where the [`ShutdownRequest`] has one, ends the waiting.
    ///
    /// It is also the driver of idle expiry, for as long as it is polled. For that alone, without a server, spawn
    /// `sessions.shutdown_on(std::future::pending::<()>())`.
    ///
    /// ShardPair servers on one handle work: give each its own future. The first signal drains for all, and the time of the
    /// connections counts from the last signal: a server that has had none by then is stopped with the others.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use tower_session_end::{ActiveSessions, signal};
    ///
    /// # async fn run(app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
    /// let sessions = ActiveSessions::builder().build()?;
    /// let app = app.layer(sessions.layer());
    ///
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signal::terminate()));
    /// let report = sessions.finish(server).await.into_result()?;
    /// println!("{report}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown_on<F>(&self, signal: F) -> ShutdownFuture
    where
        F: Future<Output: Into<ShutdownRequest>> + Send + 'static,
    {
        Arc::clone(&self.inner.shutdown).shutdown_on(signal)
    }

    /// Ends every active session with `reason`, and waits for all `session_end` hooks, those of earlier ends included,
    /// but not longer than [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout).
    ///
    /// It is the drain of [`shutdown_on`](Self::shutdown_on), for a gateway with no server to drain after it. It is
    /// terminal: the handle is [`Phase::Closing`] from here on, and a session that is noted later ends at once.
    ///
    /// A drain that overlaps another shares its outcome, with the reason of the first; a later one fires nothing twice,
    /// and waits again for what is unfinished. Dropping the future half-way loses nothing: the hooks go on, and the next
    /// drain ends the rest.
    ///
    /// A hook that waits for a drain waits for itself, and so for the whole budget: spawn it instead.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// let report = sessions.drain(EndReason::Restart).await;
    /// assert_eq!(report.ended, 1);
    /// assert!(sessions.is_empty());
    /// # }
    /// ```
    pub async fn drain(&self, reason: EndReason) -> DrainReport {
        self.inner.shutdown.drain(reason).await
    }

    /// Runs the server to its end, bounds its connection drain, and returns the report of the stop.
    ///
    /// From the signal on it takes at most [`lame_duck`](crate::ActiveSessionsBuilder::lame_duck) +
    /// [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout) +
    /// [`connection_drain_timeout`](crate::ActiveSessionsBuilder::connection_drain_timeout), whatever the connections
    /// do. What is open then is cut: a request without an answer gets 503 and `connection: close`, an unfinished body
    /// ends with an error. Sessions that are born while the connections drain get their end too, and hooks that the
    /// drain left unfinished go on meanwhile; what still runs when this future is over is dropped.
    ///
    /// A server that ends without a signal is drained here. Any `IntoFuture` is a server; several on one handle work,
    /// each with its own `finish`, polled together: the handle closes with the last of them.
    ///
    /// Code inside `spawn_blocking` cannot be stopped, and a runtime that is dropped waits for it: end `main` with
    /// [`Runtime::shutdown_background`](tokio::runtime::Runtime::shutdown_background) or `std::process::exit` if your
    /// hooks use it.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// let server = async { std::io::Result::Ok(()) }; // ends at once, with no signal
    /// let report = sessions.finish(server).await.into_result()?;
    /// assert!(!report.signalled && report.is_clean());
    /// assert_eq!(report.sessions.ended, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn finish<S: IntoFuture>(&self, server: S) -> impl Future<Output = FinishOutput<S::Output>> + use<S> {
        self.inner.shutdown.finish(server)
    }

    /// Spawns workers for the queued hooks; see [`Pool::wake`].
    fn wake(&self) {
        self.inner.pool.wake();
    }
}

impl fmt::Debug for ActiveSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner: _ } = self;
        f.debug_struct("ActiveSessions").field("phase", &self.phase()).field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The outcome of [`ActiveSessions::note`] and [`ActiveSessions::compact`]. It may be ignored.
#[derive(Clone, Debug)]
pub struct NoteOutcome {
    is_new: bool,
    ended_old: bool,
    invalid_id: Option<InvalidSessionId>,
    /// The generation, if it is active and there is a registry.
    recorded: Option<(Arc<Generation>, ActiveSessions)>,
}

impl NoteOutcome {
    const fn invalid(error: InvalidSessionId) -> Self {
        Self { is_new: false, ended_old: false, invalid_id: Some(error), recorded: None }
    }

    /// Whether a new generation started. False if the session was active already, its id is not valid, or the handle is closed.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.is_new
    }

    /// Why the id was ignored, if it was.
    #[must_use]
    pub const fn invalid_id(&self) -> Option<InvalidSessionId> {
        self.invalid_id
    }

    /// Of a compaction: whether the old session was active, and so was ended by it. False for a note.
    #[must_use]
    pub const fn ended_old(&self) -> bool {
        self.ended_old
    }

    /// Waits for the [`Registry`](crate::registry::Registry): true once the session is recorded, so that it gets its
    /// `session_end` even if this process dies; false if there is no registry, or it does not answer.
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
        tokio::select! {
            biased;
            is_recorded = generation.until_recorded() => is_recorded,
            // What has not been written by now never is.
            () = sessions.inner.shutdown.closed.cancelled() => false,
        }
    }
}
