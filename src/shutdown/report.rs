//! What a stop came to: counts of deliveries, never of attempts, and the sum holds.

use std::{fmt, time::Duration};

use serde::{Serialize, Serializer};

use crate::{
    hooks::HookFailure,
    session::{EndReason, GenerationId, SessionId},
    tracker::{Counts, Stage},
};

/// What a drain did.
///
/// Deliveries are counted, never attempts, and the sum holds: what was [`active`](Self::active),
/// [`already_ending`](Self::already_ending) or [born late](Self::late_starts) is now [`ended`](Self::ended),
/// [`failed`](Self::failed), [`kept`](Self::kept), [`forgotten`](Self::forgotten) or
/// [`unfinished`](Self::unfinished); with a registry also [`held_elsewhere`](Self::held_elsewhere),
/// [`ended_elsewhere`](Self::ended_elsewhere) or [`handed_over`](Self::handed_over).
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
    /// The reason that the drained sessions ended with.
    pub reason: EndReason,
    /// Sessions that were active when the drain began.
    pub active: u64,
    /// Sessions that had ended before, with hooks that were not over yet.
    pub already_ending: u64,
    /// Sessions that were born since the drain began; they end at once.
    pub late_starts: u64,
    /// Sessions of which every hook is over and none erred.
    pub ended: u64,
    /// Sessions of which every hook is over and at least one erred, panicked, or took longer than the hook timeout.
    pub failed: u64,
    /// Sessions that were forgotten in the meantime: nothing was owed.
    pub forgotten: u64,
    /// Sessions that [`keep_if`](crate::ActiveSessionsBuilder::keep_if) let live on: nothing was owed.
    pub kept: u64,
    /// Sessions that this process let go of while other replicas still hold them. Only with a
    /// [`Registry`](crate::registry::Registry), like the next two.
    pub held_elsewhere: u64,
    /// Sessions that others had ended, or taken over, before.
    pub ended_elsewhere: u64,
    /// Sessions whose record could not be reached, or was no longer ours: the next start, or a survivor, ends them.
    pub handed_over: u64,
    /// Sessions with a hook that is not over, one by one.
    pub unfinished: Vec<UnfinishedEnd>,
    /// What went wrong in the hooks since the stop began; the first 256, of ends and of starts.
    pub failures: Vec<HookFailure>,
    /// How long it took.
    #[serde(rename = "elapsedMs", serialize_with = "millis")]
    pub elapsed: Duration,
    /// How long it was allowed to take.
    #[serde(rename = "budgetMs", serialize_with = "millis")]
    pub budget: Duration,
    /// Whether it had to stop waiting, because the time was over.
    pub timed_out: bool,
}

pub(crate) fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

impl DrainReport {
    /// Whether every session had its end, or was not this process' to end, and no hook erred.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// if !sessions.drain(EndReason::Shutdown).await.is_clean() {
    ///     eprintln!("some sessions had no end");
    /// }
    /// # }
    /// ```
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.unfinished.is_empty() && self.failed == 0 && self.handed_over == 0
    }

    /// How many sessions there were to see to: active, running and late ones.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.active + self.already_ending + self.late_starts
    }

    /// The counts, as what has changed from `before` to `after`.
    pub(crate) fn count(&mut self, before: &Counts, after: &Counts, unfinished: Vec<UnfinishedEnd>) {
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
        self.unfinished = unfinished;
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
            handed_over: 0,
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
        let Self { reason, active, already_ending, late_starts, ended, failed, forgotten, kept, unfinished, .. } = self;
        write!(
            f,
            "{reason}: of {active} active, {already_ending} ending and {late_starts} late sessions, {ended} ended"
        )?;
        let extra = [
            (*failed, "failed"),
            (*kept, "kept"),
            (*forgotten, "forgotten"),
            (self.held_elsewhere, "held by others"),
            (self.ended_elsewhere, "ended by others"),
            (self.handed_over, "handed over"),
        ];
        for (count, what) in extra {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        write!(f, ", {} unfinished", unfinished.len())
    }

    fn fmt_unfinished(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.timed_out {
            write!(f, " (the budget of {:.1?} was over)", self.budget)?;
        }
        for unfinished in self.unfinished.iter().take(8) {
            write!(f, "; {unfinished}")?;
        }
        if self.unfinished.len() > 8 {
            write!(f, "; and {} more", self.unfinished.len() - 8)?;
        }
        Ok(())
    }
}

/// A session whose `session_end` was not over when the report was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct UnfinishedEnd {
    /// The session.
    pub session_id: SessionId,
    /// Which generation of it.
    pub generation: GenerationId,
    /// How far its end had come.
    pub stage: EndStage,
}

impl fmt::Display for UnfinishedEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.session_id.redacted(), self.stage)
    }
}

/// How far an unfinished `session_end` had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum EndStage {
    /// No hook was called: the time was over first.
    NeverStarted,
    /// No hook was called: an earlier hook of the same session was not over.
    Waiting,
    /// At least one hook was called and is not over.
    Running,
}

impl fmt::Display for EndStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NeverStarted => "never started",
            Self::Waiting => "waiting for its predecessor",
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

/// What a whole stop came to, from the signal to the end of [`finish`](crate::ActiveSessions::finish).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[must_use]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Whether a signal came. False if the server ended by itself.
    pub signalled: bool,
    /// Whether a second signal cut the waiting short.
    pub forced: bool,
    /// The session drain, as it stood when it was over.
    pub drain: DrainReport,
    /// All sessions, as they stood at the very end: what the drain left unfinished may have made it since, and sessions
    /// that were born while the connections drained are in it.
    pub sessions: DrainReport,
    /// The connection drain.
    pub connections: ConnectionReport,
}

impl ShutdownReport {
    /// Whether every session had its end, no hook erred, and no connection was cut.
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
            f.write_str("; a second signal cut it short")?;
        }
        Ok(())
    }
}

/// What the connection drain came to.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ConnectionReport {
    /// How long the server went on after the session drain.
    #[serde(rename = "elapsedMs", serialize_with = "millis")]
    pub elapsed: Duration,
    /// How long it was allowed to.
    #[serde(rename = "budgetMs", serialize_with = "millis")]
    pub budget: Duration,
    /// Whether it had to be cut off.
    pub timed_out: bool,
    /// Responses that were not over when it was: requests without an answer, and bodies without an end. A layer cannot
    /// count sockets: an idle connection, or one with half a request, is in no number.
    pub open_responses: usize,
}

impl fmt::Display for ConnectionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.timed_out {
            write!(f, "connections cut after {:.1?} with {} open responses", self.elapsed, self.open_responses)
        } else {
            write!(f, "connections drained in {:.1?}", self.elapsed)
        }
    }
}
