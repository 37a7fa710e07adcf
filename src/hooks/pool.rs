//! The hook pool: workers take jobs from the tracker's queue and poll the hooks in place.
//!
//! * **Patience**: a worker whose hook is slow is detached. It stays with that hook, and a new worker takes its place,
//!   so a hook that hangs delays no other session. A hard limit on concurrent hooks switches this off.
//! * **Pacing**: during a drain, hooks are paced so that all have started by 60 % of the budget.
//! * **Deadline**: it is read before a hook's first poll, so hooks that block their thread overrun it by one hook at
//!   most.
//!
//! Workers exist only while there are jobs.
//!
//! Why not a semaphore and a task for each hook: that was written and measured. It is 117 lines shorter. A drain of
//! 200,000 no-op hooks takes 2.3 times as long, and a hook that hangs takes 2.4 kB instead of 1.4 kB.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use hashbrown::HashMap;
use tokio::{sync::oneshot, task::AbortHandle, time::Instant};

use super::{
    HookSet,
    batch::{BatchQueue, SharedEnd},
    call::{HookError, HookFailure},
    worker::{Worker, WorkerState},
};
use crate::{
    error::BoxError,
    observability::{error_chain, escape_controls},
    panic::catch,
    session::SessionEnd,
    sync::{Mutex, lock},
    tasks::Tasks,
    tracker::{
        CalledEnd, FailedDelivery, Generation, Outcome, PendingEnd, Tracker,
        clock::{Clock, NEVER, Nanos, nanos},
        queue::{Pace, RunLimits},
    },
};

/// The number of attached workers, unless `max_concurrent_hooks` is set.
const BASE_CONCURRENCY: usize = 256;

/// The number of failures that a handle keeps for the drain's report.
const MAX_KEPT_FAILURES: usize = 256;

#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolConfig {
    /// `None`: adaptive, [`BASE_CONCURRENCY`] and one more for each slow hook.
    pub(crate) max_concurrent_hooks: Option<usize>,
    pub(crate) hook_timeout: Duration,
    pub(crate) drain_timeout: Duration,
}

/// The pool's view of the registry, implemented by `Persister`.
pub(crate) trait Persistence: Send + Sync {
    /// Whether this end may be delivered now. If not, the implementation has deferred or released it.
    fn may_deliver(self: Arc<Self>, pool: &Arc<Pool>, generation: &Arc<Generation>, end: &PendingEnd) -> bool;

    /// As [`on_call`](Self::on_call). The caller waits, if there is something to wait for.
    fn count_call(&self, generation: &Arc<Generation>, end: &PendingEnd) -> Option<oneshot::Receiver<()>>;

    /// Must be called before a hook is called for this end.
    fn on_call(&self, generation: &Arc<Generation>, end: &PendingEnd);

    /// Must be called before an end whose hooks have failed leaves the tracker.
    fn on_failing(&self, generation: &Arc<Generation>);

    /// Whether a transaction hook is to be called for this end.
    fn commits(&self, generation: &Generation) -> bool;

    /// The name of the transaction hook.
    fn transaction_hook(&self) -> Option<&str>;

    /// Calls the transaction hook, and then [`Pool::on_committed`]. `has_awaited`: by [`count_call`](Self::count_call).
    fn commit(&self, called: CalledEnd, has_awaited: bool);

    /// The end is over, and hooks have failed.
    fn on_failure(
        self: Arc<Self>,
        pool: &Arc<Pool>,
        generation: &Arc<Generation>,
        end: &PendingEnd,
        failure: FailedDelivery,
    );

    /// Hooks that had failed before have succeeded.
    fn on_redelivered(&self, generation: &Arc<Generation>);

    /// Writes queued changes. Hooks that their answers queue run in `pool`.
    fn wake(self: Arc<Self>, pool: &Arc<Pool>);
}

/// The time limits of one call of a hook.
pub(super) struct CallLimits {
    /// The deadline in the hook's event.
    pub(super) deadline: Option<Instant>,
    /// When the call is dropped. `None` in a drain, where `finish` drops it.
    pub(super) expires: Option<Instant>,
}

pub(crate) struct Pool {
    pub(super) tracker: Arc<Tracker>,
    pub(super) tasks: Arc<Tasks>,
    pub(super) hooks: HookSet,
    pub(super) batches: Vec<BatchQueue>,
    pub(super) config: PoolConfig,
    pub(super) workers: Mutex<Workers>,
    pub(super) next_worker: AtomicU64,
    failures: Mutex<Vec<HookFailure>>,
    /// `Some` with a registry.
    persistence: Option<Arc<dyn Persistence>>,
}

/// The workers that exist, and the one task that watches them.
#[derive(Default)]
pub(super) struct Workers {
    pub(super) states: HashMap<u64, Arc<WorkerState>>,
    pub(super) has_watchdog: bool,
    pub(super) watchdog: Option<AbortHandle>,
}

impl Pool {
    pub(crate) fn new(
        tracker: Arc<Tracker>,
        tasks: Arc<Tasks>,
        hooks: HookSet,
        config: PoolConfig,
        persistence: Option<Arc<dyn Persistence>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            tracker,
            tasks,
            batches: hooks.batch.iter().map(|_| BatchQueue::default()).collect(),
            hooks: hooks.with_metrics(),
            config,
            workers: Mutex::default(),
            next_worker: AtomicU64::new(0),
            failures: Mutex::default(),
            persistence,
        })
    }

    pub(super) fn may_deliver(self: &Arc<Self>, generation: &Arc<Generation>, end: &PendingEnd) -> bool {
        let persistence = self.persistence.as_ref();
        persistence.is_none_or(|persistence| Arc::clone(persistence).may_deliver(self, generation, end))
    }

    /// Whether the calls for this end are counted. Those of most ends are not.
    pub(super) fn is_counted(&self, generation: &Generation, end: &PendingEnd) -> bool {
        self.persistence.is_some() && (end.redelivery.is_some() || generation.recovered_attempts().is_some())
    }

    /// As [`on_call`](Self::on_call), and waits until the call is counted, if it is. Returns whether the hook may be called: the
    /// lease may have been lost meanwhile.
    pub(super) async fn count_call(self: &Arc<Self>, generation: &Arc<Generation>, end: &PendingEnd) -> bool {
        let Some(persistence) = &self.persistence else { return true };
        let Some(counted) = persistence.count_call(generation, end) else { return true };
        Arc::clone(persistence).wake(self);
        // The sender may be dropped, with its writer.
        let _ = counted.await;
        self.may_deliver(generation, end)
    }

    /// Must be called before a hook is called for this end.
    pub(super) fn on_call(&self, generation: &Arc<Generation>, end: &PendingEnd) {
        if let Some(persistence) = &self.persistence {
            persistence.on_call(generation, end);
        }
    }

    /// Must be called once for every end whose hooks were called. The transaction hook comes last. Returns true if that may have
    /// queued a job, or a change for the registry.
    pub(super) fn on_end_done(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        end: &PendingEnd,
        outcome: Outcome,
        failure: Option<FailedDelivery>,
    ) -> bool {
        if let Some(persistence) = &self.persistence
            && outcome != Outcome::Aborted
            && persistence.commits(generation)
        {
            if self.has_called_none(end) {
                persistence.on_call(generation, end);
            }
            if end.redelivery.is_none() {
                generation.set_end_running();
            }
            let has_awaited =
                end.redelivery.is_none() && !self.hooks.end.is_empty() && self.is_counted(generation, end);
            let called = CalledEnd { generation: Arc::clone(generation), end: end.clone(), outcome, failure };
            persistence.commit(called, has_awaited);
            return true;
        }
        self.complete_end(generation, end, outcome, failure)
    }

    /// The transaction hook was called for this end, and has returned this error.
    pub(crate) fn on_committed(self: &Arc<Self>, called: CalledEnd, error: Option<String>) {
        let CalledEnd { generation, end, mut outcome, mut failure } = called;
        if let (Some(error), Some(persistence)) = (error, &self.persistence) {
            let name = persistence.transaction_hook().unwrap_or_default();
            let failed = HookError::Failed(BoxError::from(error.clone()).into());
            self.record_failure(self.failure(&generation, name, failed));
            outcome = Outcome::Failed;
            let hooks = failure.take().map(|failure| failure.hooks).unwrap_or_default();
            failure = Some(FailedDelivery { hooks, is_uncommitted: true, error });
        }
        self.complete_end(&generation, &end, outcome, failure);
    }

    /// Whether no other hook is called for this end.
    fn has_called_none(&self, end: &PendingEnd) -> bool {
        let has_others = !self.hooks.end.is_empty() || !self.batches.is_empty();
        !has_others || end.redelivery.as_ref().is_some_and(|redelivery| redelivery.hooks.is_empty())
    }

    fn complete_end(
        self: &Arc<Self>,
        generation: &Arc<Generation>,
        end: &PendingEnd,
        outcome: Outcome,
        failure: Option<FailedDelivery>,
    ) -> bool {
        let is_first = end.redelivery.is_none();
        if let (Outcome::Failed, Some(persistence)) = (outcome, &self.persistence) {
            persistence.on_failing(generation);
        }
        let may_have_queued = is_first && self.tracker.on_end_done(generation, outcome);
        let Some(persistence) = &self.persistence else { return may_have_queued };
        match (outcome, failure) {
            (Outcome::Failed, Some(failure)) => Arc::clone(persistence).on_failure(self, generation, end, failure),
            (Outcome::Ended, _) if !is_first => persistence.on_redelivered(generation),
            _ => {}
        }
        true
    }

    /// Spawns workers for queued jobs, and the writer for queued changes. Must be called after every step of the
    /// tracker that may have queued one, with no lock held.
    pub(crate) fn wake(self: &Arc<Self>) {
        if let Some(persistence) = &self.persistence {
            Arc::clone(persistence).wake(self);
        }
        self.wake_workers();
    }

    pub(crate) fn wake_workers(self: &Arc<Self>) {
        if !self.tracker.queue.is_empty() {
            self.spawn_workers(0);
        }
    }

    /// Spawns workers up to the usual concurrency, or `extra` workers if that is more; at most one for each job.
    pub(super) fn spawn_workers(self: &Arc<Self>, extra: usize) {
        if self.try_spawn_workers(extra) > 0 && !self.tasks.has_runtime() {
            // The remembered runtime has shut down, and the jobs are still queued.
            self.tasks.remember_runtime_once_probed();
            if self.tasks.has_runtime() {
                self.try_spawn_workers(extra);
            }
        }
    }

    fn try_spawn_workers(self: &Arc<Self>, extra: usize) -> usize {
        let usual = self.config.max_concurrent_hooks.unwrap_or(BASE_CONCURRENCY);
        let spawned = {
            let now = self.tracker.clock.now();
            let mut queue = self.tracker.queue.state();
            if !queue.limits.allow_start(now) {
                return 0;
            }
            // Starting workers count, or each tick would spawn them again.
            let extra = extra.saturating_sub(queue.starting);
            let available = usual.saturating_sub(queue.attached).max(extra);
            let spawned = available.min(queue.jobs.len().saturating_sub(queue.starting));
            queue.attached += spawned;
            queue.starting += spawned;
            spawned
        };
        for _ in 0..spawned {
            Worker::spawn(self);
        }
        spawned
    }

    /// Queues an end for every batch hook.
    pub(super) fn push_to_batches(self: &Arc<Self>, end: &Arc<SharedEnd>) {
        for (index, batch) in self.batches.iter().enumerate() {
            match end.is_for(index) {
                true => batch.push(end),
                false => end.complete_part(Outcome::Ended, None),
            }
        }
        self.wake_batches();
    }

    pub(crate) fn wake_batches(self: &Arc<Self>) {
        (0..self.batches.len()).for_each(|index| BatchQueue::wake(self, index));
    }

    /// Sets the drain's deadline, which replaces the hook timeout. With [`NEVER`] there is no deadline.
    pub(crate) fn begin_drain(&self, now: Nanos, deadline: Nanos) {
        let mut queue = self.tracker.queue.state();
        queue.limits.deadline = deadline;
        queue.limits.draining = true;
        // All hooks start within 60 % of the budget, which leaves the last ones time to complete.
        let span = deadline.saturating_sub(now) / 5 * 3;
        queue.pace = (deadline != NEVER).then_some(Pace { began: now, span, started: queue.started });
    }

    /// After a drain: unfinished and late hooks may start until `deadline`.
    pub(crate) fn end_drain(&self, deadline: Nanos) {
        let mut queue = self.tracker.queue.state();
        queue.limits.deadline = deadline;
        queue.pace = None;
    }

    /// Starts no more hooks, and aborts every task.
    pub(crate) fn close(&self) {
        self.tracker.queue.state().limits.closed = true;
        // A drain that still waits returns: no hook will complete.
        self.tracker.drained.notify_waiters();
        {
            let workers = lock(&self.workers);
            workers.states.values().for_each(|worker| worker.abort());
            workers.watchdog.iter().for_each(AbortHandle::abort);
        }
        self.batches.iter().for_each(BatchQueue::abort);
    }

    /// The limits of a call that starts `now`: the drain's deadline, which the call may outlive, or the hook timeout.
    pub(super) fn call_limits(&self, now: Nanos, limits: &RunLimits) -> CallLimits {
        let in_drain = limits.draining && limits.deadline != NEVER;
        let at = if in_drain { limits.deadline } else { Clock::add(now, self.config.hook_timeout) };
        let deadline = self.tracker.clock.instant(at);
        CallLimits { deadline, expires: deadline.filter(|_| !in_drain) }
    }

    /// A worker is detached after its hook has run for this time.
    pub(super) fn patience(&self) -> Nanos {
        let sixteenth = nanos(self.config.drain_timeout) / 16;
        sixteenth.clamp(1_000_000, 1_000_000_000)
    }

    /// The failures since the first drain began, at most [`MAX_KEPT_FAILURES`].
    pub(crate) fn failures(&self) -> Vec<HookFailure> {
        lock(&self.failures).clone()
    }

    /// Logs a failure, and keeps it for the report. In a drain only the first [`MAX_KEPT_FAILURES`] are logged: more
    /// would use up its budget.
    pub(super) fn record_failure(&self, failure: HookFailure) {
        // The text of an error, its drop, and the subscribers of the log are user code.
        if catch(|| self.log_and_keep(failure)).is_err() {
            tracing::warn!(name: "session-hook-failed", "a session hook failed, and showing its error panicked");
        }
    }

    fn log_and_keep(&self, failure: HookFailure) {
        let draining = self.tracker.queue.state().limits.draining;
        if draining {
            let mut failures = lock(&self.failures);
            if failures.len() >= MAX_KEPT_FAILURES {
                return;
            }
            failures.push(failure.clone());
        }
        let HookFailure { session_id, generation, hook, error } = failure;
        tracing::warn!(
            name: "session-hook-failed",
            session = %session_id.redacted(),
            %generation,
            hook,
            error = %escape_controls(error_chain(&error)),
            "a session hook failed",
        );
    }

    /// Whether all hooks with these numbers are batch hooks.
    pub(super) fn are_batches(&self, hooks: &[usize]) -> bool {
        hooks.iter().all(|number| *number >= self.hooks.end.len())
    }

    /// Records the failures of hooks with these numbers, for one end.
    pub(super) fn record_failures(
        &self,
        generation: &Generation,
        failed: Vec<(usize, HookError)>,
    ) -> Option<FailedDelivery> {
        let error = failed.last().map(|(_, error)| catch(|| error_chain(error).to_string()).unwrap_or_default())?;
        let hooks = failed.iter().map(|(number, _)| *number).collect();
        for (number, error) in failed {
            let name = match number.checked_sub(self.hooks.end.len()) {
                None => &self.hooks.end[number].name,
                Some(batch) => &self.hooks.batch[batch].hook.name,
            };
            self.record_failure(self.failure(generation, name, error));
        }
        Some(FailedDelivery { hooks, is_uncommitted: false, error })
    }

    pub(super) fn failure(&self, generation: &Generation, hook: &str, error: HookError) -> HookFailure {
        HookFailure {
            session_id: generation.id.clone(),
            generation: self.tracker.generation_id(generation),
            hook: hook.to_owned(),
            error,
        }
    }

    pub(super) fn end_event(&self, generation: &Generation, end: PendingEnd, call_limits: &CallLimits) -> SessionEnd {
        let (started_at, duration, requests) = self.tracker.start_duration_requests(generation, &end);
        SessionEnd {
            session: generation.session(),
            reason: end.reason,
            next: end.next.map(|next| *next),
            started_at,
            duration,
            requests,
            transcript_archived: None,
            generation: self.tracker.generation_id(generation),
            deadline: call_limits.deadline.map(Into::into),
        }
    }
}
