//! [`ActiveSessions`], the handle. All of its public methods are here, except those that make a layer.

mod builder;
mod guard;
mod misuse;
mod recovery;

use std::{
    convert::Infallible,
    fmt,
    future::{Future, IntoFuture},
    sync::{
        Arc, Once,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use self::builder::Settings;
pub(crate) use self::misuse::IsHandle;
pub use self::{
    builder::{ActiveSessionsBuilder, BuildError},
    guard::{ClosingFuture, SessionGuard, WorkGuard},
    recovery::RecoveryReport,
};
use crate::{
    hooks::{HookSet, Persistence, Pool, PoolConfig},
    housekeeper::{Housekeeper, HousekeeperConfig},
    persist::{PersistConfig, Persister},
    session::{EndReason, InvalidSessionId, Phase, Session},
    shutdown::{
        AcceptUntilSignal, FinishOutput, Shutdown, ShutdownConfig, ShutdownFuture, progress::DrainWatch,
        report::DrainReport, signal::ShutdownRequest,
    },
    tasks::Tasks,
    tracker::{Activity, Compacted, ExpiryLimits, Generation, NoteSource, Noted, Origin, Outbox, Scope, Tracker},
};

/// The handle: it tracks the active sessions, runs the hooks, and drains.
///
/// A session is *active* from a note ([`note`](Self::note), [`guard`](Self::guard), [`compact`](Self::compact), or a
/// response that the layer reads) until it ends or is forgotten. Each time a session starts it is a new *generation*,
/// with a [`GenerationId`](crate::GenerationId) of its own. A generation ends once: by [`end`](Self::end),
/// [`compact`](Self::compact), the drop of a [`SessionGuard`], a response, idle expiry, eviction or a drain. Only the
/// first of them finds it, and fires its one `session_end`; for all others it is no longer active.
///
/// A clone is cheap, and is the same handle. Except for the futures, all methods return at once: none waits for a hook
/// or for the registry. They may be called from any thread, also outside of a tokio runtime. Hooks run on the runtime
/// in which the handle was built, or in which [`recover`](Self::recover), [`shutdown_on`](Self::shutdown_on) or
/// [`drain`](Self::drain) was last called. Without a runtime they wait for one of these calls. A runtime without a timer
/// counts as none, and is logged once.
///
/// # Examples
///
/// ```
/// use tower_session_end::{ActiveSessions, EndReason, SessionEnd};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_session_end::BuildError> {
/// let sessions = ActiveSessions::builder()
///     .on_session_end(async |end: SessionEnd| println!("{} ended: {}", end.session.id, end.reason))
///     .build()?;
///
/// sessions.note("a");
/// sessions.note("b");
/// assert!(sessions.end("a", EndReason::Reset));
/// assert!(!sessions.end("a", EndReason::Reset)); // `a` is no longer active
///
/// let report = sessions.drain(EndReason::Shutdown).await; // ends `b`, and waits for both hooks
/// assert_eq!((report.active, report.already_ending), (1, 1));
/// assert_eq!(report.ended, 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ActiveSessions {
    pub(crate) inner: Arc<Inner>,
}

/// The parts of a handle. Each uses only those before it.
pub(crate) struct Inner {
    pub(crate) tracker: Arc<Tracker>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) persister: Option<Arc<Persister>>,
    pool: Arc<Pool>,
    pub(crate) housekeeper: Arc<Housekeeper>,
    pub(crate) shutdown: Arc<Shutdown>,
    pub(crate) end_streams: bool,
    pub(crate) listening_media_types: Box<[String]>,
    pub(crate) close_connections: bool,
    pub(crate) refuse_new_sessions: bool,
    recovery_timeout: Duration,
    ignored_ids: AtomicU64,
    ignored_id: Once,
    /// Two layers of this handle saw one request.
    pub(crate) nested_layers: Once,
}

impl ActiveSessions {
    fn new(hooks: HookSet, settings: Settings, registry: Option<PersistConfig>, tasks: Tasks) -> Self {
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
            listening_media_types,
            close_connections,
            refuse_new_sessions,
            keep_if,
            recovery_timeout,
            doubt_timeout,
            max_lifetime,
            streams_are_activity,
        } = settings;
        let has_transaction_hook = registry.as_ref().is_some_and(PersistConfig::has_transaction_hook);
        let outbox = registry.is_some().then(|| Arc::new(Outbox::new(has_transaction_hook)));
        let ends_late_starts = keep_if.is_none();
        let has_end = hooks.has_end() || has_transaction_hook;
        let tracker = Tracker::new(!hooks.start.is_empty(), has_end, ends_late_starts, outbox.clone());
        let (tracker, tasks) = (Arc::new(tracker), Arc::new(tasks));
        let persister = registry
            .zip(outbox)
            .map(|(config, outbox)| Persister::new(config, Arc::clone(&tracker), outbox, Arc::clone(&tasks)));
        let pool = Pool::new(
            Arc::clone(&tracker),
            Arc::clone(&tasks),
            hooks,
            PoolConfig { max_concurrent_hooks, hook_timeout, drain_timeout },
            persister.clone().map(|persister| persister as Arc<dyn Persistence>),
        );
        let housekeeper = Housekeeper::new(
            Arc::clone(&tracker),
            Arc::clone(&pool),
            HousekeeperConfig {
                expiry: ExpiryLimits { idle_timeout, max_lifetime, streams_are_activity },
                doubt_timeout,
                max_sessions,
                keep_if,
            },
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
            listening_media_types: listening_media_types.into(),
            close_connections,
            refuse_new_sessions,
            recovery_timeout,
            ignored_ids: AtomicU64::new(0),
            ignored_id: Once::new(),
            nested_layers: Once::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Returns a builder with the default settings.
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
    /// Takes a [`Session`], a [`SessionId`](crate::SessionId), or text that converts. An invalid id is ignored: the
    /// outcome has the error, the id is counted in [`ignored_ids`](Self::ignored_ids), and the first one is logged.
    /// Noting an active id again replaces its details and fires nothing. In [`Phase::Closing`] the session ends at
    /// once, with the reason of the shutdown; in [`Phase::Closed`] it is not noted.
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
                "ignored a session id that is empty, too long, ambiguous, or not visible ASCII; further occurrences are \
                 counted in `ignored_ids`, not logged",
            );
        });
    }

    /// Ends the session with `reason`, if it is active: `session_end` fires. Returns true if this call ended it, and
    /// false if it was not active.
    ///
    /// The hook runs in the background, also after the caller's future is dropped. With a registry, the end counts for
    /// all replicas.
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

    /// Ends this generation, and no other of its id.
    pub(crate) fn end_generation(&self, generation: &Arc<Generation>, reason: EndReason, scope: Scope) -> bool {
        let ended = self.inner.tracker.claim(generation, reason, scope);
        if ended {
            self.wake();
        }
        ended
    }

    /// Stops remembering the session, and fires nothing: the host has finalised it itself. Returns true if it was
    /// active.
    ///
    /// Its `session_start` may still run. Other sessions are unchanged.
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

    /// Forgets every active session, and fires nothing. Returns how many there were.
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

    /// Ends `old` with reason `compaction` and notes `session` as its successor, in one step: no observer sees neither
    /// or both. The hooks run in order: the end of `old` (with `next`), then the start of the successor (with
    /// `resumed_from`).
    ///
    /// A successor with its id alone inherits the details of `old`, except for the
    /// [`session_file`](Session::session_file). If `old` is not active, the successor is noted like any session. If the
    /// successor is active already, its details are replaced. Compacting a session into itself does nothing. With an
    /// invalid id, `old` goes on.
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
        let Compacted { ended_old, noted, worked } =
            self.inner.tracker.compact(old.as_bytes(), only, session, source, activity);
        if let Noted::Started(generation) = &noted {
            self.inner.housekeeper.on_started(generation);
            // The successor of an active session is exempt: their number is unchanged.
            if !ended_old {
                self.inner.housekeeper.enforce_max_sessions(generation);
            }
        }
        if let Some(old) = worked {
            self.inner.housekeeper.end_activity(&old, Activity::Work);
        }
        self.wake();
        (ended_old, noted)
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

    /// Delivers the pending `session_end`s of processes that exited without delivering them, from the
    /// [registry](crate::ActiveSessionsBuilder::registry). A session that such a process held ends with the reason
    /// [`Lost`](crate::EndReason::Lost); an end that it left unfinished keeps its reason. Both have the
    /// [`generation`](crate::SessionEnd::generation) of their start.
    ///
    /// Call it before serving, so that the end of a lost session comes before its next start. Without this call,
    /// [`shutdown_on`](Self::shutdown_on) and [`finish`](Self::finish) do the same at their first poll. While they are
    /// polled, they also recover the sessions of processes that die later.
    ///
    /// Returns when all of these ends are delivered, or after
    /// [`recovery_timeout`](crate::ActiveSessionsBuilder::recovery_timeout) (10 s by default). The rest is delivered in
    /// the background. If the registry cannot be reached, the report has an error, and the handle continues in memory.
    /// Without a registry the report is empty.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the ends that it has claimed are delivered in the background, and the next
    /// call, or the next `shutdown_on`, claims the rest.
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

    /// Notes the session and ties it to the guard: when the guard is dropped, the session ends.
    ///
    /// For WebSockets and jobs, which no response ends. If the session is active already, the guard ties that
    /// generation; of two guards on one generation, the first that is dropped ends it. A session with a guard is not
    /// idle: it neither expires nor is evicted. In [`Phase::Closing`] the session ends at once, and in
    /// [`Phase::Closed`] it is not noted.
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
        let generation = match self.note_session(session, NoteSource::Update(Origin::Noted), Some(Activity::Guard)) {
            Noted::Started(generation) | Noted::AlreadyActive(generation) => Some(generation),
            Noted::Closed | Noted::Tombstoned => None,
        };
        Ok(SessionGuard::new(self.clone(), id, generation))
    }

    /// Marks the session as at work until the [`WorkGuard`] is dropped: for a run that goes on after its response, as
    /// after a 202. Returns `None` if the session is not active.
    ///
    /// In a shutdown the session ends when its work is over, or when
    /// [`settle_timeout`](crate::ActiveSessionsBuilder::settle_timeout) is. A request in flight is work too, so the
    /// handler takes the guard before it responds, and moves it into the run. Work does not end the session when it is
    /// over, and does not keep it from an end: only a drain, [`idle_timeout`](crate::ActiveSessionsBuilder::idle_timeout),
    /// [`max_lifetime`](crate::ActiveSessionsBuilder::max_lifetime) and `max_sessions` wait for it. If the session is
    /// compacted, the work is that of its successor.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let sessions = ActiveSessions::builder().settle_timeout(Duration::from_secs(1)).build().unwrap();
    /// sessions.note("a");
    /// let work = sessions.work("a");
    /// let run = tokio::spawn(async move {
    ///     tokio::time::sleep(Duration::from_millis(20)).await;
    ///     drop(work);
    /// });
    /// let report = sessions.drain(EndReason::Shutdown).await; // waits for the run
    /// assert!(run.is_finished() && report.at_work == 0);
    /// assert!(sessions.work("unknown").is_none());
    /// # }
    /// ```
    #[must_use = "the work is over when the guard is dropped"]
    pub fn work(&self, id: impl AsRef<str>) -> Option<WorkGuard> {
        let generation = self.inner.tracker.begin_work(id.as_ref().as_bytes())?;
        Some(WorkGuard::new(self.clone(), generation))
    }

    /// From now on a drain does not wait for the work of this session: for a handler that asks for the shutdown itself,
    /// and waits for it. Returns false if the session is not active.
    ///
    /// Without it the drain waits for the request, which waits for the drain, until
    /// [`settle_timeout`](crate::ActiveSessionsBuilder::settle_timeout) is over. The session ends in the drain at once;
    /// the request goes on. This holds for all work of the session, and of the session that it is compacted into, until
    /// it ends. A run under a [`WorkGuard`] can exempt itself alone: [`WorkGuard::exempt`].
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// # sessions.note("a");
    /// // In the handler of `POST /restart`, which carries the id of its session:
    /// sessions.exempt_work("a");
    /// // ... ask for the shutdown, and go on.
    /// ```
    #[allow(clippy::must_use_candidate, reason = "the answer is a courtesy")]
    pub fn exempt_work(&self, id: impl AsRef<str>) -> bool {
        let generation = self.inner.tracker.find(id.as_ref().as_bytes());
        generation.inspect(|generation| self.inner.housekeeper.exempt_work(generation)).is_some()
    }

    /// Resolves when the phase becomes [`Phase::Closing`](crate::Phase::Closing); at once if it is already. For
    /// streams, sockets and jobs that send a last message in a shutdown.
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped and made again at any time: it misses nothing.
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

    /// Wraps a listener that is shared with another process, so that this one stops accepting at the signal.
    ///
    /// A server accepts until the drain is over: a client that comes while the hooks run is served rather than refused.
    /// If a successor listens on the same address, that is wrong: it is there to serve them. With the wrapped listener
    /// no connection that comes after the signal is accepted, during the lame duck neither. What is accepted already goes
    /// on as usual, and so does the shutdown.
    ///
    /// The signal is the first one of any [`shutdown_on`](Self::shutdown_on) of this handle, or the beginning of a drain.
    /// Then the connections that are ready in the backlog are accepted, at most 1,024; the listener is closed; and its
    /// `accept` does not resolve again.
    ///
    /// * **An inherited socket** (socket activation, or a socket that the parent hands to its child as standard input)
    ///   has one backlog for all processes. Nothing is lost: the successor accepts what this process does not.
    /// * **`SO_REUSEPORT`** gives each process a backlog of its own. What is complete in it is accepted. Linux resets
    ///   connections that are still in the handshake when their listener is closed, unless
    ///   `net.ipv4.tcp_migrate_req` is set.
    ///
    /// With the feature `axum`, the wrapper of any `axum::serve::Listener` is one too. The example `handover` hands a
    /// listener to the next version under load.
    ///
    /// ```no_run
    /// # use tower_session_end::{ActiveSessions, signal};
    /// # async fn run(app: axum::Router, inherited: std::net::TcpListener) -> Result<(), Box<dyn std::error::Error>> {
    /// # let sessions = ActiveSessions::builder().build()?;
    /// inherited.set_nonblocking(true)?;
    /// let listener = sessions.accept_until_signal(tokio::net::TcpListener::from_std(inherited)?);
    /// let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signal::terminate()));
    /// let report = sessions.finish(server).await.into_result()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn accept_until_signal<L>(&self, listener: L) -> AcceptUntilSignal<L> {
        AcceptUntilSignal::new(listener, self.inner.shutdown.signalled.clone())
    }

    /// The future for axum's `with_graceful_shutdown`: it waits for `signal`, runs the session drain, and resolves when
    /// the drain is over. So the connections drain after the sessions.
    ///
    /// At the signal the phase becomes [`Phase::LameDuck`], for
    /// [`lame_duck_timeout`](crate::ActiveSessionsBuilder::lame_duck_timeout) (0 by default: the phase is skipped).
    /// Then it becomes [`Phase::Closing`], and the [drain](Self::drain) takes at most
    /// [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout) (2 s by default). A session that starts in
    /// `Closing` ends at once. If the [`ShutdownRequest`] has a second signal, that resolves this future at once.
    ///
    /// Until the signal, the future also drives idle expiry, and the lease and the recovery of a registry: it has to be
    /// polled. Without a server, spawn `sessions.shutdown_on(std::future::pending::<()>())` for that.
    ///
    /// `signal` is any future whose output converts into a [`ShutdownRequest`]. A signal that panics, or fails, is
    /// logged and shuts down.
    ///
    /// For several servers on one handle, give each its own future. The first signal drains for all, and the connection
    /// drain counts from the last signal. A server that has got no signal by its deadline is dropped by
    /// [`finish`](Self::finish) with the others.
    ///
    /// # Panics
    ///
    /// When polled outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    ///
    /// See [`ShutdownFuture`]: dropping it loses no session.
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

    /// Ends every active session with `reason`, and waits for all `session_end` hooks, those of earlier ends included.
    /// Takes at most [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout) (2 s by default).
    ///
    /// It is the drain of [`shutdown_on`](Self::shutdown_on), for a gateway without a server. The handle stays in
    /// [`Phase::Closing`]: a session that is noted later ends at once. The report lists the hooks that are unfinished;
    /// they go on in the background.
    ///
    /// Overlapping drains share one outcome, with the reason of the first. A later drain fires nothing twice, and waits
    /// again for unfinished hooks.
    ///
    /// A hook that waits for a drain waits for itself, until the deadline. Spawn the drain instead.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the hooks go on, and the next drain ends the remaining sessions.
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

    /// Waits until no hook runs or is queued, for tests: it ends no session, and what is active stays active. A hook that waits
    /// for an earlier hook, or for the record of its session, is queued.
    ///
    /// It looks at every session, at most once a millisecond, so it is not for production. It has no deadline: with a hook that
    /// hangs it never resolves, and neither does it after a shutdown that has left hooks uncalled. It does not wait for an end whose
    /// hooks have failed and that is to be delivered again, for sessions that start meanwhile, or for changes that a registry has not
    /// written yet.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer, if there is something to wait for.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason, SessionEnd};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tower_session_end::BuildError> {
    /// let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    /// let sessions = ActiveSessions::builder()
    ///     .on_session_end(move |end: SessionEnd| std::future::ready(ended.send(end)))
    ///     .build()?;
    /// sessions.note("a");
    /// sessions.note("b");
    /// sessions.end("a", EndReason::Deleted);
    ///
    /// sessions.hooks_idle().await;
    /// assert_eq!(ends.try_recv().unwrap().session.id, "a");
    /// assert!(ends.try_recv().is_err() && sessions.contains("b"));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn hooks_idle(&self) {
        while !self.inner.tracker.are_hooks_idle() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Watches the drain, for a progress bar or a log: how many sessions have ended, of how many, and until when.
    ///
    /// It may be called at any time. A watch costs nothing until a drain begins, and does not keep the handle alive. It
    /// ends with the shutdown: see [`DrainWatch::changed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// let mut watch = sessions.drain_progress();
    /// let shown = tokio::spawn(async move {
    ///     let mut last = None;
    ///     while let Some(progress) = watch.changed().await {
    ///         println!("{progress}");
    ///         last = Some(progress);
    ///     }
    ///     last
    /// });
    /// let _ = sessions.drain(EndReason::Shutdown).await;
    /// let last = shown.await.unwrap().unwrap();
    /// assert_eq!((last.ended, last.of), (1, 1));
    /// assert!(last.deadline.is_some());
    /// # }
    /// ```
    pub fn drain_progress(&self) -> DrainWatch {
        self.inner.shutdown.watch()
    }

    /// Runs the server to its end, bounds its connection drain, and returns the report of the shutdown.
    ///
    /// From the signal on it takes at most [`lame_duck_timeout`](crate::ActiveSessionsBuilder::lame_duck_timeout) +
    /// [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout) +
    /// [`connection_drain_timeout`](crate::ActiveSessionsBuilder::connection_drain_timeout) (12 s by default), whatever
    /// the connections do. At the deadline, a request without a response head gets 503 and `connection: close`, an
    /// unfinished body ends with an error, and the server is dropped. Sessions that start in the connection drain get
    /// their `session_end` too. Hooks that the drain left unfinished go on in the connection drain; those that still
    /// run when this future is over are dropped.
    ///
    /// If the server ends without a signal, `finish` drains the sessions with [`EndReason::Shutdown`]. Any `IntoFuture`
    /// is a server. For several servers on one handle, call `finish` for each and poll them together: the handle closes
    /// with the last of them.
    ///
    /// With [`keep_if`](crate::ActiveSessionsBuilder::keep_if), `finish` asks about the sessions that the drain had no
    /// time for, until the deadline of the connection drain.
    ///
    /// Code inside `spawn_blocking` cannot be stopped, and dropping a runtime waits for it. If your hooks use it, end
    /// `main` with [`Runtime::shutdown_background`](tokio::runtime::Runtime::shutdown_background) or
    /// `std::process::exit`.
    ///
    /// **After `finish`, exit at once.** If the signals are those of [`signal::terminate`](crate::signal::terminate),
    /// tokio still handles them, so SIGINT and SIGTERM no longer end the process. Before work that takes longer, let a
    /// task [wait for the next one](crate::signal::terminate#after-the-shutdown).
    ///
    /// **The server must not block.** While one poll of it blocks, no deadline is seen; a poll of 1 s is logged. The
    /// usual cause is a listener in blocking mode: call `set_nonblocking(true)` on a `std::net::TcpListener` before
    /// `tokio::net::TcpListener::from_std`.
    ///
    /// # Panics
    ///
    /// When polled outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the server. The sessions stay active, or their drain stays unfinished:
    /// [`drain`](Self::drain) ends the rest.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// let server = async { std::io::Result::Ok(()) }; // ends at once, without a signal
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

/// The outcome of [`ActiveSessions::note`] and [`ActiveSessions::compact`]. It may be dropped.
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

    /// Whether a new generation started. False if the session was active already, its id is not valid, or the phase is
    /// [`Phase::Closed`].
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
