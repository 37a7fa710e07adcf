//! Shutdown reports: counts of deliveries, never of attempts, and the sum holds.

use std::{fmt, time::Duration};

use serde::{Serialize, Serializer};

use crate::{
    hooks::HookFailure,
    session::{EndReason, GenerationId, SessionId},
    tracker::{Counts, Stage},
};

/// The most unfinished ends that a report lists.
pub(crate) const MAX_LISTED: usize = 10_000;

/// The report of a drain.
///
/// It counts deliveries, never attempts, and the sum holds:
///
/// [`active`](Self::active) + [`already_ending`](Self::already_ending) + [`late_starts`](Self::late_starts) =
/// [`ended`](Self::ended) + [`failed`](Self::failed) + [`kept`](Self::kept) + [`forgotten`](Self::forgotten) +
/// [`held_elsewhere`](Self::held_elsewhere) + [`ended_elsewhere`](Self::ended_elsewhere) +
/// [`handed_over`](Self::handed_over) + [`unfinished_count`](Self::unfinished_count).
///
/// `Display` shows the counts and the first 8 unfinished sessions in one line, with [redacted](SessionId::redacted)
/// ids. The JSON form has `camelCase` names, times in milliseconds (`elapsedMs`, `budgetMs`), and whole ids in
/// `unfinished` alone.
///
/// # Examples
///
/// ```
/// use tower_session_end::{ActiveSessions, EndReason, SessionEnd};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), tower_session_end::BuildError> {
/// let sessions = ActiveSessions::builder()
///     .on_session_end(async |end: SessionEnd| {
///         if end.session.id == "hangs" {
///             std::future::pending::<()>().await;
///         }
///     })
///     .build()?;
/// sessions.note("hangs");
/// sessions.note("fine");
///
/// let report = sessions.drain(EndReason::Shutdown).await;
/// assert!(report.timed_out && !report.is_clean());
/// assert_eq!(report.ended, 1);
/// assert_eq!(report.unfinished[0].session_id, "hangs");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[must_use]
#[non_exhaustive]
pub struct DrainReport {
    /// The reason with which the drain ended the sessions.
    pub reason: EndReason,
    /// Sessions that were active when the drain began.
    pub active: u64,
    /// Sessions that had ended before, and whose hooks were unfinished when the drain began.
    pub already_ending: u64,
    /// Sessions that started after the drain began. Each ends at once.
    pub late_starts: u64,
    /// Sessions whose hooks have all succeeded.
    pub ended: u64,
    /// Sessions whose hooks are all over, and at least one returned an error, panicked, or took longer than
    /// [`hook_timeout`](crate::ActiveSessionsBuilder::hook_timeout).
    pub failed: u64,
    /// Sessions that were forgotten while the drain ran: they have no `session_end`.
    pub forgotten: u64,
    /// Sessions that [`keep_if`](crate::ActiveSessionsBuilder::keep_if) kept: they outlive the process and have no
    /// `session_end` here.
    pub kept: u64,
    /// Sessions that this process released and other replicas still hold. 0 without a
    /// [`Registry`](crate::registry::Registry), as are the next two counts.
    pub held_elsewhere: u64,
    /// Sessions that another process had ended, or had recovered.
    pub ended_elsewhere: u64,
    /// Sessions that had work when the drain ended them, because
    /// [`settle_timeout`](crate::ActiveSessionsBuilder::settle_timeout) was over. They are counted in the others too.
    pub at_work: u64,
    /// Sessions whose record could not be reached, or whose lease had expired. The next process that starts, or another
    /// replica, delivers their `session_end`.
    pub handed_over: u64,
    /// Sessions whose `session_end` was not over when the report was made.
    pub unfinished_count: u64,
    /// These sessions, 10,000 at most: to list a million would take a tenth of the default budget.
    pub unfinished: Vec<UnfinishedEnd>,
    /// The first 256 failures of hooks since the drain began, of `session_start` and `session_end`.
    pub failures: Vec<HookFailure>,
    /// The duration of the drain.
    #[serde(rename = "elapsedMs", serialize_with = "millis")]
    pub elapsed: Duration,
    /// The [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout).
    #[serde(rename = "budgetMs", serialize_with = "millis")]
    pub budget: Duration,
    /// Whether the deadline came before all hooks were over.
    pub timed_out: bool,
}

pub(crate) fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

impl DrainReport {
    /// Whether nothing is [`unfinished`](Self::unfinished_count), [`failed`](Self::failed) or
    /// [`handed_over`](Self::handed_over).
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// if !sessions.drain(EndReason::Shutdown).await.is_clean() {
    ///     eprintln!("some sessions have no delivered end");
    /// }
    /// # }
    /// ```
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.unfinished_count == 0 && self.failed == 0 && self.handed_over == 0
    }

    /// All sessions of the drain: [`active`](Self::active) + [`already_ending`](Self::already_ending) +
    /// [`late_starts`](Self::late_starts).
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// assert_eq!(sessions.drain(EndReason::Shutdown).await.total(), 1);
    /// # }
    /// ```
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.active + self.already_ending + self.late_starts
    }

    /// Sets the counts to the difference between `before` and `after`.
    pub(crate) fn count(&mut self, before: &Counts, after: &Counts) {
        self.active = before.active;
        self.already_ending = before.pending_ends + before.aborted;
        self.late_starts = after.starts - before.starts;
        self.ended = after.ended - before.ended;
        self.failed = after.failed - before.failed;
        self.forgotten = after.forgotten - before.forgotten;
        self.kept = after.kept - before.kept;
        self.held_elsewhere = after.held_elsewhere - before.held_elsewhere;
        self.ended_elsewhere = after.ended_elsewhere - before.ended_elsewhere;
        self.handed_over = after.handed_over - before.handed_over;
        self.at_work = after.at_work - before.at_work;
    }

    pub(crate) const fn empty(reason: EndReason, budget: Duration) -> Self {
        Self {
            reason,
            active: 0,
            already_ending: 0,
            late_starts: 0,
            ended: 0,
            failed: 0,
            forgotten: 0,
            kept: 0,
            held_elsewhere: 0,
            ended_elsewhere: 0,
            at_work: 0,
            handed_over: 0,
            unfinished_count: 0,
            unfinished: Vec::new(),
            failures: Vec::new(),
            elapsed: Duration::ZERO,
            budget,
            timed_out: false,
        }
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_counts(f)?;
        write!(f, ", in {:.1?}", self.elapsed)?;
        self.fmt_unfinished(f)
    }
}

impl DrainReport {
    fn fmt_counts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            reason, active, already_ending, late_starts, ended, failed, forgotten, kept, unfinished_count, ..
        } = self;
        write!(
            f,
            "{reason}: of {active} active, {already_ending} ending and {late_starts} late sessions, {ended} ended"
        )?;
        let extra = [
            (*failed, "failed"),
            (*kept, "kept"),
            (*forgotten, "forgotten"),
            (self.held_elsewhere, "held elsewhere"),
            (self.ended_elsewhere, "ended elsewhere"),
            (self.handed_over, "handed over"),
        ];
        for (count, what) in extra {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        write!(f, ", {unfinished_count} unfinished")?;
        if self.at_work > 0 {
            write!(f, ", {} ended at work", self.at_work)?;
        }
        Ok(())
    }

    fn fmt_unfinished(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.timed_out {
            write!(f, " (timed out after {:.1?})", self.budget)?;
        }
        for unfinished in self.unfinished.iter().take(8) {
            write!(f, "; {unfinished}")?;
        }
        if self.unfinished_count > 8 {
            write!(f, "; and {} more", self.unfinished_count - 8)?;
        }
        Ok(())
    }
}

/// A session whose `session_end` was not over when the report was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct UnfinishedEnd {
    /// The id of the session.
    pub session_id: SessionId,
    /// The generation that ended.
    pub generation: GenerationId,
    /// The stage of its `session_end`.
    pub stage: EndStage,
}

impl fmt::Display for UnfinishedEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.session_id.redacted(), self.stage)
    }
}

/// The stage of an unfinished `session_end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum EndStage {
    /// No hook was called before the deadline. Or [`keep_if`](crate::ActiveSessionsBuilder::keep_if) was not asked
    /// before it: then the session is still active.
    NeverStarted,
    /// No hook was called: an earlier hook of the same id was not over.
    Waiting,
    /// At least one hook was called and was not over.
    Running,
}

impl fmt::Display for EndStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NeverStarted => "never started",
            Self::Waiting => "waiting for an earlier hook",
            Self::Running => "running",
        })
    }
}

impl From<Stage> for EndStage {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Waiting | Stage::Starting => Self::Waiting,
            Stage::Started | Stage::EndQueued => Self::NeverStarted,
            Stage::EndRunning | Stage::Done => Self::Running,
        }
    }
}

/// The report of a whole shutdown, from the signal to the end of [`finish`](crate::ActiveSessions::finish).
///
/// `Display` shows it in one line, with [redacted](SessionId::redacted) ids; the JSON form is as of [`DrainReport`].
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[must_use]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Whether a signal came. False if the server ended without one.
    pub signalled: bool,
    /// Whether a second signal came. The shutdown no longer waited then.
    pub forced: bool,
    /// The session drain, at its end.
    pub drain: DrainReport,
    /// All sessions since the drain began, at the end of `finish`: with the hooks that completed after the drain, and
    /// with the sessions that started in the connection drain.
    pub sessions: DrainReport,
    /// The connection drain.
    pub connections: ConnectionReport,
}

impl ShutdownReport {
    /// Whether [`sessions`](Self::sessions) is [clean](DrainReport::is_clean) and the connection drain did not time
    /// out.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let report = sessions.finish(async {}).await.report;
    /// assert!(report.is_clean() && !report.signalled);
    /// # }
    /// ```
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.sessions.is_clean() && !self.connections.timed_out
    }
}

impl fmt::Display for ShutdownReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { signalled, forced, drain, sessions, connections } = self;
        sessions.fmt_counts(f)?;
        sessions.fmt_unfinished(f)?;
        write!(f, "; sessions drained in {:.1?}; {connections}", drain.elapsed)?;
        if !signalled {
            f.write_str("; the server ended without a signal")?;
        }
        if *forced {
            f.write_str("; forced by a second signal")?;
        }
        Ok(())
    }
}

/// The report of the connection drain.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ConnectionReport {
    /// The time from the end of the session drain to the end of the server.
    #[serde(rename = "elapsedMs", serialize_with = "millis")]
    pub elapsed: Duration,
    /// The [`connection_drain_timeout`](crate::ActiveSessionsBuilder::connection_drain_timeout).
    #[serde(rename = "budgetMs", serialize_with = "millis")]
    pub budget: Duration,
    /// Whether the server was dropped before it ended by itself: at the deadline, or at a second signal.
    pub timed_out: bool,
    /// Open responses at the end of the connection drain: requests without a response head, and bodies without an end.
    /// A layer sees no sockets, so an idle connection, or one with half a request, is not counted.
    pub open_responses: usize,
}

impl fmt::Display for ConnectionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.timed_out {
            write!(f, "connections dropped after {:.1?} with {} open responses", self.elapsed, self.open_responses)
        } else {
            write!(f, "connections drained in {:.1?}", self.elapsed)
        }
    }
}
