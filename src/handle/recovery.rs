//! Recovery: the pending `session_end`s of processes that exited without delivering them.

use std::{fmt, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use super::Inner;
use crate::{
    observability::{error_chain, escape_controls, log_outcome},
    persist::Recovered,
    shutdown::report::millis,
    sync::{AtomicUsize, Ordering},
    tracker::Recovery,
};

pub(super) async fn recover(inner: &Inner) -> RecoveryReport {
    inner.tasks.remember_runtime();
    // Hooks that have waited for a runtime.
    inner.pool.wake();
    inner.pool.wake_batches();
    let began = Instant::now();
    let Recovered { recovery, error } = match &inner.persister {
        Some(persister) => persister.recover(&inner.pool, began.checked_add(inner.recovery_timeout)).await,
        None => Recovered { recovery: Arc::new(Recovery::default()), error: None },
    };
    let count = |n: &AtomicUsize| n.load(Ordering::SeqCst) as u64;
    let report = RecoveryReport {
        found: count(&recovery.found),
        ended: count(&recovery.ended),
        failed: count(&recovery.failed),
        unfinished: recovery.undelivered() as u64,
        dead_letters: inner.persister.as_ref().map_or(0, |persister| persister.dead_letters())
            + count(&recovery.dead_letters),
        error: error.map(|error| error_chain(&error).to_string()),
        elapsed: began.elapsed(),
    };
    log_outcome!(
        report.is_clean(),
        name: "session-recovery",
        found = report.found,
        ended = report.ended,
        failed = report.failed,
        unfinished = report.unfinished,
        dead_letters = report.dead_letters,
        error = report.error.as_ref().map(|error| tracing::field::display(escape_controls(error))),
        "{}",
        escape_controls(&report),
    );
    report
}

/// The report of [`ActiveSessions::recover`](crate::ActiveSessions::recover).
///
/// The sum holds: [`found`](Self::found) = [`ended`](Self::ended) + [`failed`](Self::failed) +
/// [`unfinished`](Self::unfinished). The JSON form has `camelCase` names, and `elapsedMs` in milliseconds.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[must_use]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Pending ends that were claimed from the registry, without those that have become dead letters.
    pub found: u64,
    /// Ends whose hooks have all succeeded.
    pub ended: u64,
    /// Ends whose hooks are all over, and at least one of them failed. They are delivered again.
    pub failed: u64,
    /// Ends whose hooks are not over: they go on in the background. If the lease expires meanwhile, another process
    /// delivers them.
    pub unfinished: u64,
    /// Ends in the registry whose hooks have failed too often, or have ended the process too often. They are not in the sum.
    /// They are kept until an operator asks to deliver them again.
    pub dead_letters: u64,
    /// The error of the registry, with its sources; `None` if all pending ends were claimed.
    pub error: Option<String>,
    /// The duration of the call.
    #[serde(rename = "elapsedMs", serialize_with = "millis")]
    pub elapsed: Duration,
}

impl RecoveryReport {
    /// Whether there was no error, and every end that was found is delivered.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// assert!(sessions.recover().await.is_clean());
    /// # }
    /// ```
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.error.is_none() && self.failed == 0 && self.unfinished == 0 && self.dead_letters == 0
    }
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, ended, failed, unfinished, dead_letters, error, elapsed } = self;
        write!(f, "recovery: {found} ends found, {ended} delivered")?;
        for (count, what) in [(*failed, "failed"), (*unfinished, "unfinished"), (*dead_letters, "dead letters")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        write!(f, ", in {elapsed:.1?}")?;
        error.iter().try_for_each(|error| write!(f, "; {error}"))
    }
}
