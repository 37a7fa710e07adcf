//! The drain: ending every active session within one budget.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use crate::{
    lifecycle::ActiveSessions,
    observability::log_outcome,
    report::{DrainReport, UnfinishedEnd},
    session::{EndReason, Phase},
    stop::{Drain, DrainWaiter},
    tracker::{
        Generation, Stage, Tracker,
        clock::{Clock, NEVER},
    },
};

/// After so many claims the sweep lets others have its thread.
const CLAIMS_PER_YIELD: usize = 16_384;

impl ActiveSessions {
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
        self.with_lease(self.drain_once(reason)).await
    }

    async fn drain_once(&self, reason: EndReason) -> DrainReport {
        let joined = self.join_drain(reason);
        let span = tracing::info_span!("session-drain", reason = %joined.0.reason);
        self.run_drain(&joined.0).instrument(span).await
    }

    async fn run_drain(&self, run: &Drain) -> DrainReport {
        let settle = self.inner.config.settle_timeout;
        if !settle.is_zero() {
            self.sweep(true).await;
            let settled = run.begun.checked_add(settle).into_iter().chain(run.deadline).min();
            self.wait_until(settled, || self.is_empty()).await;
        }
        self.sweep(false).await;
        self.quiet(run.deadline).await;
        self.until_written(run.deadline).await;
        run.report.get_or_init(|| self.complete(run)).clone()
    }

    /// A drain that nobody waits for.
    pub(super) fn begin_drain(&self) -> Arc<Drain> {
        let joined = self.join_drain(self.inner.pool.tracker.stop_reason());
        Arc::clone(&joined.0)
    }

    fn join_drain(&self, reason: EndReason) -> DrainWaiter {
        let inner = &self.inner;
        inner.stop.join(|servers| {
            let tracker = &inner.pool.tracker;
            // First the phase, then the sweep: a note that no sweep has seen sees the phase.
            tracker.advance(Phase::Closing, reason);
            inner.closing.cancel();
            if servers > 0 {
                tracker.begin_late();
            }
            let (begun, now) = (Instant::now(), tracker.clock.now());
            let deadline = Clock::add(now, inner.config.drain_timeout);
            let before = tracker.baseline_counts();
            inner.pool.begin_drain(now, deadline);
            Drain::new(tracker.stop_reason(), begun, tracker.clock.instant(deadline), before)
        })
    }

    /// Ends every session; with `spare_work`, but those with a request that is not over, which end with it.
    async fn sweep(&self, spare_work: bool) {
        let mut claims = 0;
        for shard in 0..Tracker::shards() {
            claims += self.drain_shard(shard, spare_work);
            if claims >= CLAIMS_PER_YIELD {
                claims = 0;
                self.inner.pool.wake();
                tokio::task::yield_now().await;
            }
        }
        self.inner.pool.wake();
    }

    /// Waits for every `session_end` that is owed and not given up.
    pub(super) async fn quiet(&self, deadline: Option<Instant>) {
        let tracker = &self.inner.pool.tracker;
        // Once the pool is closed, what is left never runs.
        self.wait_until(deadline, || tracker.awaited() == 0 || tracker.queue.state().limits.closed).await;
    }

    async fn wait_until(&self, deadline: Option<Instant>, condition: impl Fn() -> bool) {
        let tracker = &self.inner.pool.tracker;
        let quiet = async {
            loop {
                let told = tracker.drained_notify.notified();
                tokio::pin!(told);
                // First register, then look: nobody is told in between.
                told.as_mut().enable();
                if condition() {
                    break;
                }
                told.await;
            }
        };
        match deadline {
            Some(deadline) => drop(timeout_at(deadline, quiet).await),
            None => quiet.await,
        }
    }

    fn complete(&self, run: &Drain) -> DrainReport {
        let report = self.account(run, true);
        self.begin_connection_drain();
        self.inner.pool.tracker.meters.drained(report.elapsed, report.unfinished.len());
        log_drain(&report);
        report
    }

    /// The time of the connections begins, anew if another server had its signal before.
    pub(super) fn begin_connection_drain(&self) {
        let now = Instant::now();
        let mut servers = 0;
        self.inner.stop.update(|progress| {
            progress.drained_at = Some(now);
            servers = progress.servers;
        });
        let next = match servers {
            0 => NEVER,
            _ => Clock::add(self.inner.pool.tracker.clock.now(), self.inner.config.connection_drain_timeout),
        };
        self.inner.pool.after_drain(next);
        self.inner.drained.cancel();
    }

    /// What has become of all sessions since the drain began. With `give_up`, nobody waits any more for the unfinished.
    pub(super) fn account(&self, run: &Drain, give_up: bool) -> DrainReport {
        let tracker = &self.inner.pool.tracker;
        let (mut after, mut unfinished) = tracker.collect_unfinished(give_up);
        if give_up {
            // Born late and not over: in the report of `finish`, which waits for them.
            let all = unfinished.len();
            unfinished.retain(|(generation, _)| !tracker.is_late(generation));
            after.starts -= (all - unfinished.len()) as u64;
        }
        let unfinished: Vec<_> =
            unfinished.iter().map(|(generation, stage)| self.unfinished(generation, *stage)).collect();
        let mut report = DrainReport::empty(run.reason, self.inner.config.drain_timeout);
        let time_is_over = run.deadline.is_some_and(|deadline| deadline <= Instant::now());
        report.timed_out = time_is_over && !unfinished.is_empty();
        report.count(&run.before, &after, unfinished);
        report.failures = self.inner.pool.failures();
        report.elapsed = run.begun.elapsed();
        report
    }

    fn unfinished(&self, generation: &Arc<Generation>, stage: Stage) -> UnfinishedEnd {
        UnfinishedEnd {
            session_id: generation.id.clone(),
            generation: self.inner.pool.tracker.generation_id(generation),
            stage: stage.into(),
        }
    }
}

/// Says what a drain came to; one that did not go well is a warning, and the stop goes on.
pub(super) fn log_drain(report: &DrainReport) {
    log_outcome!(
        report.is_clean(),
        name: "session-end-drain",
        reason = %report.reason,
        active = report.active,
        already_ending = report.already_ending,
        late_starts = report.late_starts,
        ended = report.ended,
        failed = report.failed,
        kept = report.kept,
        forgotten = report.forgotten,
        held_elsewhere = report.held_elsewhere,
        ended_elsewhere = report.ended_elsewhere,
        handed_over = report.handed_over,
        unfinished = report.unfinished.len(),
        timed_out = report.timed_out,
        elapsed_ms = report.elapsed.as_millis() as u64,
        "session-end-drain: {report}",
    );
}

/// The last part of the connection drain's time, in which what was cut can say so to its client.
pub(super) fn grace(connection_drain_timeout: Duration) -> Duration {
    (connection_drain_timeout / 20).min(Duration::from_millis(50))
}
