//! [`ActiveSessions`], the handle: its parts, and the methods by which sessions start and end. The other methods are in
//! `observe` and `shutdown`, and those that make a layer in `http`.

mod builder;
mod guard;
mod misuse;
mod note_outcome;
mod observe;
mod recovery;
mod shutdown;

use std::{
    fmt,
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
    note_outcome::NoteOutcome,
    recovery::RecoveryReport,
};
use crate::{
    hooks::{HookSet, Persistence, Pool, PoolConfig},
    housekeeper::{Housekeeper, HousekeeperConfig},
    persist::{PersistConfig, Persister},
    session::{EndReason, InvalidSessionId, Session},
    shutdown::{Shutdown, ShutdownConfig},
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
    /// Noting an active id again replaces its details and fires nothing. In [`Phase::Closing`](crate::Phase::Closing) the
    /// session ends at once, with the reason of the shutdown; in [`Phase::Closed`](crate::Phase::Closed) it is not noted.
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

    /// Notes the session and ties it to the guard: when the guard is dropped, the session ends.
    ///
    /// For WebSockets and jobs, which no response ends. If the session is active already, the guard ties that
    /// generation; of two guards on one generation, the first that is dropped ends it. A session with a guard is not
    /// idle: it neither expires nor is evicted. In [`Phase::Closing`](crate::Phase::Closing) the session ends at once, and in
    /// [`Phase::Closed`](crate::Phase::Closed) it is not noted.
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
