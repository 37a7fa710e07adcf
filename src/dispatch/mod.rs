//! The hook pool: workers take jobs from the handle's queue and poll the hooks in place.
//!
//! * **Patience**: a worker whose hook takes long is written off: it stays with that hook, and another is hired in its
//!   place, so that hung hooks delay nobody. With a hard limit on concurrent hooks this is off.
//! * **Pacing**: in a drain, hooks are started at least so fast that all of them are started well before the deadline.
//! * **Deadline**: it is read before a hook is polled for the first time, so hooks that block a thread cannot overrun
//!   it by more than the one that is running.
//!
//! Workers exist only while there are jobs; nothing idles in the background.

mod batch;
mod call;
mod recorder;
mod ticker;
mod worker;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use hashbrown::HashMap;
use tokio::{runtime::Handle, sync::Notify, task::AbortHandle, time::Instant};

pub use self::call::{HookError, HookFailure};
pub(crate) use self::recorder::{Recorder, START_WAIT};
use self::{
    batch::BatchQueue,
    worker::{Worker, WorkerState},
};
use crate::{
    hook::HookSet,
    observability::escape_controls,
    sync::{AtomicUsize, Mutex, Ordering, lock},
    tracker::{
        Tracker,
        clock::{Clock, NEVER, Nanos, nanos},
        queue::{Pace, RunLimits},
    },
};

/// How many hooks run at once where nobody set a limit and nobody hangs.
const BASE_CONCURRENCY: usize = 256;

/// How many failures a handle remembers word by word for the report of its drain.
const REMEMBERED_FAILURES: usize = 256;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// `None`: adaptive.
    pub(crate) max_concurrent_hooks: Option<usize>,
    pub(crate) hook_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    /// Whether what is born in a stop ends without asking anybody.
    pub(crate) ends_late_starts: bool,
}

/// What is said to a hook about time, and what is done about it.
struct CallLimits {
    /// When nobody waits for the hook any more.
    deadline: Option<Instant>,
    /// When it is dropped.
    expires: Option<Instant>,
}

pub(crate) struct Pool {
    pub(crate) tracker: Tracker,
    hooks: HookSet,
    batches: Vec<BatchQueue>,
    /// Where there is a registry.
    pub(crate) recorder: Option<Recorder>,
    limits: Limits,
    /// The runtime that was seen last: the calls that end sessions may come from a thread that has none.
    runtime: Mutex<Option<Handle>>,
    workers: Mutex<Workers>,
    next_slot: AtomicU64,
    /// Tasks of ours that are not gone.
    tasks: AtomicUsize,
    gone: Notify,
    failures: Mutex<Vec<HookFailure>>,
}

/// The workers that there are, and the one task that watches them.
#[derive(Default)]
struct Workers {
    slots: HashMap<u64, Arc<WorkerState>>,
    has_ticker: bool,
    ticker: Option<AbortHandle>,
}

impl Pool {
    pub(crate) fn new(hooks: HookSet, limits: Limits, recorder: Option<Recorder>) -> Arc<Self> {
        Arc::new(Self {
            tracker: Tracker::new(
                !hooks.start.is_empty(),
                hooks.has_end(),
                limits.ends_late_starts,
                recorder.is_some(),
            ),
            recorder,
            batches: hooks.batch.iter().map(|_| BatchQueue::default()).collect(),
            hooks: hooks.measured(),
            limits,
            runtime: Mutex::new(Handle::try_current().ok()),
            workers: Mutex::default(),
            next_slot: AtomicU64::new(0),
            tasks: AtomicUsize::new(0),
            gone: Notify::new(),
            failures: Mutex::default(),
        })
    }

    /// Remembers the runtime of the caller, if it has one, for the calls that have none.
    pub(crate) fn remember_runtime(&self) {
        if let Ok(current) = Handle::try_current() {
            // What was there before is dropped after the lock.
            let _before = lock(&self.runtime).replace(current);
        }
    }

    fn has_runtime(&self) -> bool {
        lock(&self.runtime).is_some()
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        let remembered = lock(&self.runtime).clone();
        // No lock is held here: a runtime that goes down drops the task at once, and its drop takes locks.
        Some(remembered.or_else(|| Handle::try_current().ok())?.spawn(task).abort_handle())
    }

    /// A task was dropped before it ran: the remembered runtime is gone.
    fn drop_runtime(&self) {
        let _before = lock(&self.runtime).take();
    }

    /// Hires as many workers as the queue has work for, and a writer if there is something to write. To be called after
    /// everything that may have queued a job.
    pub(crate) fn wake(self: &Arc<Self>) {
        self.wake_writer_on_any_runtime();
        self.wake_workers();
    }

    fn wake_workers(self: &Arc<Self>) {
        if !self.tracker.queue.is_empty() {
            self.spawn_workers(0);
        }
    }

    /// As [`wake`](Self::kick), with at least `extra` new workers beyond the usual staff.
    fn spawn_workers(self: &Arc<Self>, extra: usize) {
        if self.try_spawn_workers(extra) > 0 && !self.has_runtime() {
            // The remembered runtime has gone, and the jobs are in the queue again: they go to that of the caller.
            self.remember_runtime();
            if self.has_runtime() {
                self.try_spawn_workers(extra);
            }
        }
    }

    fn try_spawn_workers(self: &Arc<Self>, extra: usize) -> usize {
        let usual = self.limits.max_concurrent_hooks.unwrap_or(BASE_CONCURRENCY);
        let spawned = {
            let now = self.tracker.clock.now();
            let mut line = self.tracker.queue.state();
            if !line.limits.is_open(now) {
                return 0;
            }
            // Those that are on their way count: else each tick hires them again.
            let extra = extra.saturating_sub(line.starting);
            let available = usual.saturating_sub(line.attached).max(extra);
            let spawned = available.min(line.jobs.len().saturating_sub(line.starting));
            line.attached += spawned;
            line.starting += spawned;
            spawned
        };
        for _ in 0..spawned {
            Worker::spawn(self);
        }
        spawned
    }

    /// What a stop does first: from now on the drain's deadline counts. With [`NEVER`] there is none.
    pub(crate) fn begin_drain(self: &Arc<Self>, now: Nanos, deadline: Nanos) {
        self.remember_runtime();
        {
            let mut line = self.tracker.queue.state();
            line.limits.deadline = deadline;
            line.limits.stopping = true;
            // All are to be started in 0.6 of the budget, which leaves the last ones time to finish.
            let span = deadline.saturating_sub(now) / 5 * 3;
            line.pace = (deadline != NEVER).then_some(Pace { begun: now, span, started: line.started });
        }
        self.reclaim_deferred();
        self.wake();
        self.wake_batches();
    }

    /// What comes after a drain: what is left, and what is born late, goes on until `deadline`.
    pub(crate) fn after_drain(self: &Arc<Self>, deadline: Nanos) {
        {
            let mut line = self.tracker.queue.state();
            line.limits.deadline = deadline;
            line.pace = None;
        }
        self.wake();
        self.wake_batches();
    }

    /// Ends every task of ours, and waits for them to be gone, but not longer than `grace`: code that blocks its
    /// thread cannot be stopped.
    pub(crate) async fn close(&self, grace: Duration) {
        self.tracker.queue.state().limits.closed = true;
        // A drain that still waits, waits for what can no longer run.
        self.tracker.drained_notify.notify_waiters();
        {
            let workers = lock(&self.workers);
            workers.slots.values().for_each(|slot| slot.abort());
            workers.ticker.iter().for_each(AbortHandle::abort);
        }
        self.batches.iter().for_each(BatchQueue::abort);
        self.recorder.iter().for_each(Recorder::abort);
        let _ = tokio::time::timeout(grace, async {
            loop {
                let gone = self.gone.notified();
                if self.tasks.load(Ordering::SeqCst) == 0 {
                    break;
                }
                gone.await;
            }
        })
        .await;
    }

    /// The terms for a hook that starts `now`: a stop's deadline, which it may outlive, or else the hook timeout.
    fn call_limits(&self, now: Nanos, limits: &RunLimits) -> CallLimits {
        let of_stop = limits.stopping && limits.deadline != NEVER;
        let at = if of_stop { limits.deadline } else { Clock::add(now, self.limits.hook_timeout) };
        let deadline = self.tracker.clock.instant(at);
        CallLimits { deadline, expires: deadline.filter(|_| !of_stop) }
    }

    fn patience(&self) -> Nanos {
        let sixteenth = nanos(self.limits.drain_timeout) / 16;
        sixteenth.clamp(1_000_000, 1_000_000_000)
    }

    /// The failures since the first drain began, as far as they are remembered.
    pub(crate) fn failures(&self) -> Vec<HookFailure> {
        lock(&self.failures).clone()
    }

    /// Logs a failure, unless there have been so many in this drain that logging them would eat it.
    ///
    /// Contained: the text of an error is user code, and so are its drop and whoever subscribes to the log.
    fn record(&self, failure: HookFailure) {
        if catch_unwind(AssertUnwindSafe(|| self.record_unguarded(failure))).is_err() {
            tracing::warn!(name: "session-hook-failed", "a session hook failed, with an error that cannot be shown");
        }
    }

    fn record_unguarded(&self, failure: HookFailure) {
        let stopping = self.tracker.queue.state().limits.stopping;
        if stopping {
            let mut failures = lock(&self.failures);
            if failures.len() >= REMEMBERED_FAILURES {
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
            error = %escape_controls(&error),
            "a session hook failed",
        );
    }
}

/// Counts a task of ours from its spawning to its end, however it ends.
struct TaskCount(Arc<Pool>);

impl TaskCount {
    fn new(pool: &Arc<Pool>) -> Self {
        pool.tasks.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(pool))
    }
}

impl Drop for TaskCount {
    fn drop(&mut self) {
        if self.0.tasks.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.gone.notify_waiters();
        }
    }
}
