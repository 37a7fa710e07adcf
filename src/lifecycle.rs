//! [`ActiveSessions`]: note, end, forget, compact, guard.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Once,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    dispatch::{Limits, Pool},
    hook::HookSet,
    session::{EndReason, Phase, Session, SessionId},
    stop::Stopping,
    tracker::{Entry, Note},
};

/// The handle: who is active, and everything that can be done about it.
///
/// A generation of a session leaves the handle once, by one of [`end`](Self::end), [`forget`](Self::forget),
/// [`compact`](Self::compact), the drop of a [`SessionGuard`], a response that says so, or the drain. Whoever takes it
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
/// assert_eq!((report.active, report.running), (1, 1));
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
    /// Set in `Closed`: what waits for a response gives up.
    pub(crate) cut: CancellationToken,
    pub(crate) stop: Stopping,
    /// Requests without an answer, and bodies without an end.
    pub(crate) open_responses: AtomicUsize,
    ignored: AtomicU64,
    warned: Once,
}

/// The times of a stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) lame_duck: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) connection_drain_timeout: Duration,
    pub(crate) hook_timeout: Duration,
    pub(crate) max_concurrent_hooks: Option<usize>,
}

impl ActiveSessions {
    pub(crate) fn new(hooks: HookSet, config: Config) -> Self {
        let Config { drain_timeout, hook_timeout, max_concurrent_hooks, .. } = config;
        let inner = Inner {
            pool: Pool::new(hooks, Limits { max_concurrent_hooks, hook_timeout, drain_timeout }),
            config,
            closing: CancellationToken::new(),
            cut: CancellationToken::new(),
            stop: Stopping::default(),
            open_responses: AtomicUsize::new(0),
            ignored: AtomicU64::new(0),
            warned: Once::new(),
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
    pub fn note(&self, session: impl Into<Session>) -> Noted {
        let note = self.note_entry(session.into());
        Noted { is_new: matches!(note, Some(Note::Born(_))) }
    }

    pub(crate) fn note_entry(&self, session: Session) -> Option<Note> {
        self.note_or_see(session, true)
    }

    /// As a note, but the details of a session that is active already are left alone where this one has none.
    pub(crate) fn see_entry(&self, session: Session) -> Option<Note> {
        let replace = !session.is_bare();
        self.note_or_see(session, replace)
    }

    fn note_or_see(&self, session: Session, replace: bool) -> Option<Note> {
        if !session.id.is_valid() {
            self.ignore_id();
            return None;
        }
        let note = self.inner.pool.tracker.note(session, replace);
        self.inner.pool.kick();
        Some(note)
    }

    /// Counts an id that is no id, and says so once.
    pub(crate) fn ignore_id(&self) {
        self.inner.ignored.fetch_add(1, Ordering::Relaxed);
        self.inner.warned.call_once(|| {
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
    pub fn end(&self, id: impl AsRef<str>, reason: EndReason) -> bool {
        let ended = self.inner.pool.tracker.end(id.as_ref().as_bytes(), reason);
        self.inner.pool.kick();
        ended
    }

    /// Ends this very generation, and no later one.
    pub(crate) fn end_entry(&self, entry: &Arc<Entry>, reason: EndReason) -> bool {
        let ended = self.inner.pool.tracker.claim(entry, reason);
        if ended {
            self.inner.pool.kick();
        }
        ended
    }

    /// Stops remembering the session, firing nothing: the host has finalised it itself. Says whether it was active.
    pub fn forget(&self, id: impl AsRef<str>) -> bool {
        self.inner.pool.tracker.forget(id.as_ref().as_bytes())
    }

    /// Forgets every session, firing nothing, and says how many there were.
    #[allow(clippy::must_use_candidate, reason = "the count is a courtesy")]
    pub fn forget_all(&self) -> usize {
        self.inner.pool.tracker.forget_all()
    }

    /// Ends `old` with reason `compaction` and notes `session` as its successor, in one step: nobody sees neither or
    /// both. The hooks run in order: the end of `old` (with `next`), then the start of the successor (with
    /// `resumed_from`). Says whether `old` was active.
    ///
    /// If `old` is unknown, the successor is noted like any new session. If it is active already, its details are
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
        self.compact_entry(old.as_ref(), None, session.into()).0
    }

    /// As [`compact`](Self::compact); with `generation`, only that generation of `old` counts.
    pub(crate) fn compact_entry(
        &self,
        old: &str,
        generation: Option<&Arc<Entry>>,
        session: Session,
    ) -> (bool, Option<Note>) {
        if !session.id.is_valid() {
            self.ignore_id();
            return (false, None);
        }
        let (was_active, note) = self.inner.pool.tracker.compact(old.as_bytes(), generation, session);
        self.inner.pool.kick();
        (was_active, Some(note))
    }

    /// Notes the session and ties it to the guard: when that is dropped, the session ends.
    ///
    /// For WebSockets and jobs, which no response ends. If the session is active already, the guard ties that
    /// generation; of two guards on one generation, the first that is dropped ends it.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let guard = sessions.guard("socket-1");
    /// assert!(sessions.contains("socket-1"));
    /// drop(guard); // ends it with `EndReason::Unknown`; `guard.end(..)` gives another reason
    /// assert!(!sessions.contains("socket-1"));
    /// ```
    #[must_use = "dropping the guard ends the session"]
    pub fn guard(&self, session: impl Into<Session>) -> SessionGuard {
        let session = session.into();
        let id = session.id.clone();
        let entry = match self.note_entry(session) {
            Some(Note::Born(entry) | Note::Known(entry)) => Some(entry),
            Some(Note::Refused) | None => None,
        };
        SessionGuard { sessions: self.clone(), id, entry }
    }

    /// Whether the session is active.
    #[must_use]
    pub fn contains(&self, id: impl AsRef<str>) -> bool {
        self.inner.pool.tracker.find(id.as_ref().as_bytes()).is_some()
    }

    /// A copy of every active session, in no order; what you do to it changes nothing here.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Session> {
        self.inner.pool.tracker.snapshot()
    }

    /// The number of active sessions.
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
    pub fn phase(&self) -> Phase {
        self.inner.pool.tracker.phase()
    }

    /// Whether the phase is [`Phase::Open`]: what a readiness probe wants to know.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Open
    }

    /// How many ids were ignored because they were empty, too long, ambiguous, or not visible ASCII.
    #[must_use]
    pub fn ignored_ids(&self) -> u64 {
        self.inner.ignored.load(Ordering::Relaxed)
    }

    /// Resolves when the phase has come to [`Phase::Closing`]: for streams, sockets and jobs that want to say goodbye.
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
    pub fn closing(&self) -> Closing {
        Closing { waiting: self.inner.closing.clone().cancelled_owned() }
    }
}

impl fmt::Debug for ActiveSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner } = self;
        f.debug_struct("ActiveSessions")
            .field("phase", &self.phase())
            .field("len", &self.len())
            .field("config", &inner.config)
            .finish_non_exhaustive()
    }
}

/// What came of [`ActiveSessions::note`]. Dropping it is fine.
#[derive(Clone, Copy, Debug)]
pub struct Noted {
    is_new: bool,
}

impl Noted {
    /// Whether the note began a new generation. False if the session was active already, the id is not valid, or the
    /// handle is closed.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.is_new
    }
}

pin_project! {
    /// Resolves when the handle begins to close; made by [`ActiveSessions::closing`].
    #[must_use = "futures do nothing unless polled"]
    #[derive(Debug)]
    pub struct Closing {
        #[pin]
        waiting: WaitForCancellationFutureOwned,
    }
}

impl Future for Closing {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().waiting.poll(cx)
    }
}

/// Ties one generation of a session to a scope: on drop, that generation ends; made by [`ActiveSessions::guard`].
///
/// A generation that is over already is left alone, and so is a later one of the same id. Dropping it never panics,
/// not even where there is no runtime: the hook then waits for the drain.
#[derive(Debug)]
#[must_use = "dropping the guard ends the session"]
pub struct SessionGuard {
    sessions: ActiveSessions,
    id: SessionId,
    entry: Option<Arc<Entry>>,
}

impl SessionGuard {
    /// The session's id.
    #[must_use]
    pub const fn id(&self) -> &SessionId {
        &self.id
    }

    /// Ends the guarded generation with `reason`; false if it is over already.
    #[allow(clippy::must_use_candidate, reason = "the answer is a courtesy")]
    pub fn end(self, reason: EndReason) -> bool {
        self.entry.as_ref().is_some_and(|entry| self.sessions.end_entry(entry, reason))
    }

    /// As [`ActiveSessions::closing`].
    pub fn closing(&self) -> Closing {
        self.sessions.closing()
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            self.sessions.end_entry(entry, EndReason::Unknown);
        }
    }
}
