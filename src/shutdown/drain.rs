//! The drain: every active session ends within one budget.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tracing::Instrument;

use super::{
    Shutdown,
    report::{DrainReport, MAX_LISTED, UnfinishedEnd},
    state::{Drain, DrainWaiter},
};
use crate::{
    observability::log_outcome,
    session::{EndReason, Phase},
    sync::wait_for,
    tracker::{
        Generation, Stage, Tracker,
        clock::{Clock, NEVER, Nanos},
    },
};

/// After this many claims the sweep yields.
const CLAIMS_PER_YIELD: usize = 16_384;

/// With `keep_if`, the sweep yields after this time, or this many calls.
const ASKING_PER_YIELD: Nanos = 1_000_000;
const ASKED_PER_YIELD: usize = 1024;

impl Shutdown {
    /// Ends every active session and waits for the hooks, within the drain's budget. Renews the lease meanwhile.
    pub(crate) async fn drain(&self, reason: EndReason) -> DrainReport {
        self.with_heartbeat(self.drain_once(reason)).await
    }

    async fn drain_once(&self, reason: EndReason) -> DrainReport {
        let joined = self.join_drain(reason);
        let span = tracing::info_span!("session-drain", reason = %joined.0.reason);
        self.run_drain(&joined.0).instrument(span).await
    }

    async fn run_drain(&self, drain: &Drain) -> DrainReport {
        let settle = self.config.settle_timeout;
        if !settle.is_zero() {
            let settled = drain.started_at.checked_add(settle).into_iter().chain(drain.deadline).min();
            self.sweep(true, settled).await;
            wait_for(&self.tracker.drained, settled, || self.tracker.len() == 0).await;
        }
        self.sweep(false, drain.deadline).await;
        self.wait_for_hooks(drain.deadline).await;
        self.until_written(drain.deadline).await;
        let report = drain.report.get_or_init(|| self.complete(drain)).clone();
        // Tells those who watch that there is a report.
        self.state.update(|_| {});
        report
    }

    /// Begins a drain without waiting for it.
    pub(super) fn begin_drain(&self) -> Arc<Drain> {
        let joined = self.join_drain(self.tracker.shutdown_reason());
        Arc::clone(&joined.0)
    }

    fn join_drain(&self, reason: EndReason) -> DrainWaiter {
        self.state.join_drain(|servers| {
            let tracker = &self.tracker;
            // The phase changes before the sweep, so a note that the sweep misses sees the phase.
            tracker.advance(Phase::Closing, reason);
            if servers > 0 {
                tracker.mark_late_starts();
            }
            let (started_at, now) = (Instant::now(), tracker.clock.now());
            let deadline = Clock::add(now, self.config.drain_timeout);
            let baseline = tracker.baseline_counts();
            self.tasks.remember_runtime();
            self.pool.begin_drain(now, deadline);
            if let Some(persister) = &self.persister {
                persister.begin_drain();
            }
            self.pool.wake();
            self.pool.wake_batches();
            // After the baseline: a task that reacts at once ends a session that the report counts.
            self.signalled.cancel();
            self.closing.cancel();
            Drain::new(tracker.shutdown_reason(), started_at, tracker.clock.instant(deadline), baseline)
        })
    }

    /// Ends every session. With `spare_work`, a session with work is left: it ends with the work. The
    /// deadline bounds the calls of `keep_if`.
    async fn sweep(&self, spare_work: bool, deadline: Option<Instant>) {
        if self.housekeeper.asks_keep_if() {
            return self.ask_keep_if(spare_work, || deadline.is_some_and(|end| end <= Instant::now())).await;
        }
        let mut claims = 0;
        for shard in 0..Tracker::shard_count() {
            claims += self.housekeeper.drain_shard(shard, spare_work);
            if claims >= CLAIMS_PER_YIELD {
                claims = 0;
                self.pool.wake();
                tokio::task::yield_now().await;
            }
        }
        self.pool.wake();
    }

    /// Asks `keep_if` about each session, and ends or keeps it. What is not asked before `is_over` stays active.
    pub(super) async fn ask_keep_if(&self, spare_work: bool, is_over: impl Fn() -> bool) {
        let clock = &self.tracker.clock;
        let (mut since, mut asked) = (clock.now(), 0);
        for shard in 0..Tracker::shard_count() {
            for generation in self.tracker.active_in(shard) {
                if asked >= ASKED_PER_YIELD || clock.now().saturating_sub(since) >= ASKING_PER_YIELD {
                    tokio::task::yield_now().await;
                    (since, asked) = (clock.now(), 0);
                }
                if is_over() {
                    return;
                }
                self.housekeeper.drain_one(&generation, spare_work);
                asked += 1;
            }
        }
    }

    /// Waits for every `session_end` that was claimed and not given up.
    pub(super) async fn wait_for_hooks(&self, deadline: Option<Instant>) {
        let tracker = &self.tracker;
        // A closed pool starts no hook any more.
        let is_done = || tracker.awaited() == 0 || tracker.queue.state().limits.closed;
        wait_for(&tracker.drained, deadline, is_done).await;
    }

    fn complete(&self, drain: &Drain) -> DrainReport {
        let report = self.account(drain, true);
        self.begin_connection_drain();
        self.tracker.meters.on_drain_done(report.elapsed, report.unfinished_count);
        log_drain(&report);
        report
    }

    /// Starts the time of the connections. With several servers, it starts again at each signal.
    pub(super) fn begin_connection_drain(&self) {
        let now = Instant::now();
        let mut servers = 0;
        self.state.update(|progress| {
            progress.connections_since = Some(now);
            servers = progress.servers;
        });
        let next = match servers {
            0 => NEVER,
            _ => Clock::add(self.tracker.clock.now(), self.config.connection_drain_timeout),
        };
        self.pool.end_drain(next);
        self.pool.wake();
        self.pool.wake_batches();
        self.drained.cancel();
    }

    /// The counts since `drain` began. With `give_up`, later calls of [`wait_for_hooks`](Self::wait_for_hooks) do not
    /// wait for what is unfinished now.
    pub(super) fn account(&self, drain: &Drain, give_up: bool) -> DrainReport {
        let tracker = &self.tracker;
        // `finish` waits for unfinished late starts, and reports them.
        let (after, unfinished) = tracker.collect_unfinished(give_up, MAX_LISTED);
        let listed = unfinished.first.iter().map(|(generation, stage)| self.unfinished(generation, *stage)).collect();
        let mut report = DrainReport::empty(drain.reason, self.config.drain_timeout);
        let is_past_deadline = drain.deadline.is_some_and(|deadline| deadline <= Instant::now());
        report.timed_out = is_past_deadline && unfinished.count > 0;
        report.count(&drain.baseline, &after);
        report.unfinished_count = unfinished.count;
        report.unfinished = listed;
        report.failures = self.pool.failures();
        report.elapsed = drain.started_at.elapsed();
        report
    }

    fn unfinished(&self, generation: &Arc<Generation>, stage: Stage) -> UnfinishedEnd {
        UnfinishedEnd {
            session_id: generation.id.clone(),
            generation: self.tracker.generation_id(generation),
            stage: stage.into(),
        }
    }
}

/// Logs a drain: at `WARN` unless it is clean.
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
        at_work = report.at_work,
        unfinished = report.unfinished_count,
        timed_out = report.timed_out,
        elapsed_ms = report.elapsed.as_millis() as u64,
        "session-end-drain: {report}",
    );
}

/// The last part of the connection drain's time: 5 %, at most 50 ms. In it, responses that timed out tell their
/// clients.
pub(super) fn cut_grace(connection_drain_timeout: Duration) -> Duration {
    (connection_drain_timeout / 20).min(Duration::from_millis(50))
}
