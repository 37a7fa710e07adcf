//! What the handle owes its registry: the recovery, the lease, and births that wait for their record.

use std::{
    convert::Infallible,
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, timeout};

use crate::{
    dispatch::START_WAIT,
    lifecycle::ActiveSessions,
    observability::{escape_controls, log_outcome},
    registry::Durability,
    report::RecoveryReport,
    tracker::{Generation, RecordState},
};

impl ActiveSessions {
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
        let pool = &self.inner.pool;
        pool.remember_runtime();
        let begun = Instant::now();
        let recovered = pool.recover(begun.checked_add(self.inner.config.recovery_timeout)).await;
        let count = |n: &crate::sync::AtomicUsize| n.load(Ordering::SeqCst) as u64;
        let recovery = &recovered.recovery;
        let report = RecoveryReport {
            found: count(&recovery.found),
            ended: count(&recovery.ended),
            failed: count(&recovery.failed),
            unfinished: recovery.left() as u64,
            given_up: count(&recovery.given_up),
            error: recovered.error.map(|error| error.to_string()),
            elapsed: begun.elapsed(),
        };
        log_outcome!(
            report.is_clean(),
            name: "session-recovery",
            found = report.found,
            ended = report.ended,
            failed = report.failed,
            unfinished = report.unfinished,
            given_up = report.given_up,
            error = report.error.as_ref().map(|error| tracing::field::display(escape_controls(error))),
            "{}",
            escape_controls(&report),
        );
        report
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
        self.inner.pool.recorder.as_ref().is_some_and(|recorder| recorder.is_degraded())
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
        self.inner.pool.recorder.as_ref().map_or(0, |recorder| recorder.degradations.load(Ordering::Relaxed))
    }

    /// Keeps the lease for as long as it is polled, and takes over what others leave behind.
    pub(crate) async fn drive_registry(&self) -> Infallible {
        self.inner.pool.drive_registry().await
    }

    /// Runs `work`, and keeps the lease meanwhile.
    pub(crate) async fn with_lease<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = work => done,
            never = self.drive_registry() => match never {},
        }
    }

    /// Whether a response that opens this session is to wait.
    pub(crate) fn waits_for(&self, generation: &Generation) -> bool {
        let Some(recorder) = &self.inner.pool.recorder else { return false };
        recorder.durability == Durability::Strict
            && generation.recorded() == RecordState::Pending
            && !recorder.is_degraded()
    }

    /// Waits for the records of births; not for longer than the breaker allows.
    pub(crate) async fn until_recorded(self, births: Vec<Arc<Generation>>) {
        let recorded = async {
            for generation in &births {
                generation.until_recorded().await;
            }
        };
        if timeout(START_WAIT, recorded).await.is_err()
            && let Some(recorder) = &self.inner.pool.recorder
        {
            recorder.degrade(&"a birth was not recorded in time");
        }
    }

    /// Waits until everything is in the registry, until `deadline`.
    pub(crate) async fn until_written(&self, deadline: Option<Instant>) {
        let written = self.inner.pool.until_written();
        match deadline {
            Some(deadline) => drop(tokio::time::timeout_at(deadline, written).await),
            None => written.await,
        }
    }

    /// Gives the lease back, in about this time.
    pub(crate) async fn leave_registry(&self, limit: Duration) {
        self.inner.pool.leave_registry(limit).await;
    }
}
