//! [`ActiveSessions`]: note, end, forget, compact, guard.

use std::{
    fmt,
    sync::{
        Arc, Once,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    dispatch::{Limits, Pool, Recorder},
    hook::HookSet,
    session::{EndReason, Phase, Session},
    stop::ShutdownState,
    tracker::{Activity, EndedBy, Generation, NoteSource, Noted},
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

pub(crate) struct Inner {
    pub(crate) pool: Arc<Pool>,
    pub(crate) config: Config,
    pub(crate) closing: CancellationToken,
    /// Set when the drain is over: streams that belong to no session end.
    pub(crate) drained: CancellationToken,
    /// Set in `Closed`: what waits for a response gives up.
    pub(crate) cut: CancellationToken,
    pub(crate) stop: ShutdownState,
    /// Requests without an answer, and bodies without an end.
    pub(crate) open_responses: AtomicUsize,
    /// Somebody polls a driver.
    pub(crate) driven: AtomicBool,
    /// When idle expiry is due for some shards, if nobody drives.
    pub(crate) expiry_due: AtomicU64,
    ignored: AtomicU64,
    pub(crate) warned: WarnOnce,
}

/// What is said once in the life of a handle.
pub(crate) struct WarnOnce {
    ignored_id: Once,
    pub(crate) undriven: Once,
    pub(crate) over_the_cap: Once,
}

/// Says which sessions a drain leaves to live on.
pub(crate) type KeepIf = Box<dyn Fn(&Session, EndReason) -> bool + Send + Sync>;

/// Times, limits and switches.
pub(crate) struct Config {
    pub(crate) lame_duck: Duration,
    pub(crate) settle_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) connection_drain_timeout: Duration,
    pub(crate) hook_timeout: Duration,
    pub(crate) max_concurrent_hooks: Option<usize>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) max_sessions: usize,
    pub(crate) end_streams: bool,
    pub(crate) refuse_new_sessions: bool,
    pub(crate) keep_if: Option<KeepIf>,
    pub(crate) recovery_timeout: Duration,
}

impl ActiveSessions {
    pub(crate) fn new(hooks: HookSet, config: Config, recorder: Option<Recorder>) -> Self {
        let Config { drain_timeout, hook_timeout, max_concurrent_hooks, .. } = config;
        let ends_late_starts = config.keep_if.is_none();
        let inner = Inner {
            pool: Pool::new(
                hooks,
                Limits { max_concurrent_hooks, hook_timeout, drain_timeout, ends_late_starts },
                recorder,
            ),
            config,
            closing: CancellationToken::new(),
            drained: CancellationToken::new(),
            cut: CancellationToken::new(),
            stop: ShutdownState::default(),
            open_responses: AtomicUsize::new(0),
            driven: AtomicBool::new(false),
            expiry_due: AtomicU64::new(0),
            ignored: AtomicU64::new(0),
            warned: WarnOnce { ignored_id: Once::new(), undriven: Once::new(), over_the_cap: Once::new() },
        };
        Self { inner: Arc::new(inner) }
    }

    /// Remembers that a session is active, and fires `session_start` if it was not.
    ///
    /// Noting an active id again replaces its details and fires nothing. An id that is not valid is ignored, with one
    /// warning; see [`ignored_ids`](Self::ignored_ids). While the handle is closing, the session ends at once, with
    /// the reason of the stop; once it is closed, nothing is noted.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, Session};
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert!(sessions.note("a").is_new());
    /// assert!(!sessions.note(Session::from("a").with_key("second")).is_new());
    /// assert_eq!(sessions.snapshot()[0].key.as_deref(), Some("second"));
    /// ```
    pub fn note(&self, session: impl Into<Session>) -> NoteOutcome {
        let note = self.note_session(session.into(), NoteSource::Handle, None);
        let is_new = matches!(note, Some(Noted::Started(_)));
        let recorded = match note {
            Some(Noted::Started(generation) | Noted::AlreadyActive(generation))
                if self.inner.pool.recorder.is_some() =>
            {
                Some((generation, self.clone()))
            }
            Some(_) | None => None,
        };
        NoteOutcome { is_new, recorded }
    }

    pub(crate) fn note_session(
        &self,
        session: Session,
        source: NoteSource,
        activity: Option<Activity>,
    ) -> Option<Noted> {
        if !session.id.is_valid() {
            self.ignore_id();
            return None;
        }
        let note = self.inner.pool.tracker.note(session, source, activity);
        if let Noted::Started(generation) = &note {
            self.on_started(generation);
            self.enforce_max_sessions(generation);
        }
        self.inner.pool.wake();
        Some(note)
    }

    /// Counts an id that is no id, and says so once.
    pub(crate) fn ignore_id(&self) {
        self.inner.ignored.fetch_add(1, Ordering::Relaxed);
        self.inner.pool.tracker.meters.ignored_id();
        self.inner.warned.ignored_id.call_once(|| {
            tracing::warn!(
                name: "session-id-ignored",
                "ignored a session id that is empty, too long, ambiguous, or not visible ASCII; \
                 this is said once, and later ones are only counted",
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
        let ended = self.inner.pool.tracker.end(id.as_ref().as_bytes(), reason);
        self.inner.pool.wake();
        ended
    }

    /// Ends this very generation, and no later one.
    pub(crate) fn end_generation(&self, generation: &Arc<Generation>, reason: EndReason, by: EndedBy) -> bool {
        let ended = self.inner.pool.tracker.claim(generation, reason, by);
        if ended {
            self.inner.pool.wake();
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
        let forgotten = self.inner.pool.tracker.forget(id.as_ref().as_bytes());
        self.inner.pool.wake();
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
        let forgotten = self.inner.pool.tracker.forget_all();
        self.inner.pool.wake();
        forgotten
    }

    /// Ends `old` with reason `compaction` and notes `session` as its successor, in one step: nobody sees neither or
    /// both. The hooks run in order: the end of `old` (with `next`), then the start of the successor (with
    /// `resumed_from`). Says whether `old` was active.
    ///
    /// A successor that comes with nothing but its id takes over the details of `old`, but for the
    /// [`session_file`](Session::session_file). If `old` is unknown, the successor is noted like any new session. If it is active already, its details are
    /// replaced. Compacting a session into itself does nothing.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("old");
    /// assert!(sessions.compact("old", "new"));
    /// assert!(!sessions.contains("old") && sessions.contains("new"));
    /// ```
    pub fn compact(&self, old: impl AsRef<str>, session: impl Into<Session>) -> bool {
        self.compact_generation(old.as_ref(), None, session.into(), NoteSource::Handle, None).0
    }

    /// As [`compact`](Self::compact); with `generation`, only that generation of `old` counts.
    pub(crate) fn compact_generation(
        &self,
        old: &str,
        only: Option<&Arc<Generation>>,
        session: Session,
        source: NoteSource,
        activity: Option<Activity>,
    ) -> (bool, Option<Noted>) {
        if !session.id.is_valid() {
            self.ignore_id();
            return (false, None);
        }
        let (was_active, note) = self.inner.pool.tracker.compact(old.as_bytes(), only, session, source, activity);
        if let Noted::Started(generation) = &note {
            self.on_started(generation);
            // Else it is exempt from the cap: one has gone for it.
            if !was_active {
                self.enforce_max_sessions(generation);
            }
        }
        self.inner.pool.wake();
        (was_active, Some(note))
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
        self.inner.pool.tracker.find(id.as_ref().as_bytes()).is_some()
    }

    /// A copy of the session, if it is active.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, Session};
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note(Session::from("a").with_key("chat"));
    /// assert_eq!(sessions.get("a").unwrap().key.as_deref(), Some("chat"));
    /// assert!(sessions.get("b").is_none());
    /// ```
    #[must_use]
    pub fn get(&self, id: impl AsRef<str>) -> Option<Session> {
        self.inner.pool.tracker.find(id.as_ref().as_bytes()).map(|generation| generation.session())
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
        self.inner.pool.tracker.snapshot()
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
        self.inner.pool.tracker.len()
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
        self.inner.pool.tracker.phase()
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
        self.inner.ignored.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for ActiveSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner: _ } = self;
        f.debug_struct("ActiveSessions").field("phase", &self.phase()).field("len", &self.len()).finish_non_exhaustive()
    }
}

/// What came of [`ActiveSessions::note`]. Dropping it is fine.
#[derive(Clone, Debug)]
pub struct NoteOutcome {
    is_new: bool,
    /// The generation, if it is active and there is a registry.
    recorded: Option<(Arc<Generation>, ActiveSessions)>,
}

impl NoteOutcome {
    /// Whether the note began a new generation. False if the session was active already, the id is not valid, or the
    /// handle is closed.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.is_new
    }

    /// Waits for the [`Registry`](crate::registry::Registry): true once the session is recorded, so that it gets its
    /// `session_end` even if this process dies; false if there is no registry, or it does not answer.
    ///
    /// The layer waits by itself; this is for sessions that are noted elsewhere.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert!(!sessions.note("a").recorded().await); // there is no registry
    /// # }
    /// ```
    pub async fn durable(self) -> bool {
        let Some((generation, sessions)) = self.recorded else { return false };
        tokio::select! {
            biased;
            is_recorded = generation.until_recorded() => is_recorded,
            // What has not been written by now never is.
            () = sessions.inner.cut.cancelled() => false,
        }
    }
}
