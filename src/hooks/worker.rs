//! A worker: takes a job, polls its hooks in place, takes the next.

use std::sync::{Arc, OnceLock};

use tokio::task::AbortHandle;

use super::{
    batch::SharedEnd,
    call::call_all,
    pool::{CallLimits, Pool},
    watchdog::ensure_watchdog,
};
use crate::{
    session::SessionStart,
    sync::{AtomicU8, AtomicU64, Ordering, lock},
    tracker::{
        Generation, Job, Outcome, PendingEnd,
        clock::{NEVER, Nanos},
        queue::RunLimits,
    },
};

/// After this many jobs, or nanoseconds, a worker yields.
const JOBS_PER_YIELD: u32 = 64;
const NANOS_PER_YIELD: Nanos = 200_000;

/// Whether a worker counts as attached. That changes once, and the call that changes it decrements the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum WorkerStatus {
    /// Takes jobs.
    Attached = 0,
    /// Its hook is slow: it stays with that hook, and another worker takes jobs in its place.
    Detached = 1,
    /// It takes no more jobs.
    Exited = 2,
}

/// The part of a worker that the watchdog sees.
#[derive(Debug)]
pub(super) struct WorkerState {
    key: u64,
    status: AtomicU8,
    /// When the present hook was started; [`NEVER`] if there is none.
    started: AtomicU64,
    abort: OnceLock<AbortHandle>,
}

impl WorkerState {
    /// Returns true if it was attached. The caller then decrements `QueueState::attached`.
    fn set_unattached(&self, status: WorkerStatus) -> bool {
        let attached = WorkerStatus::Attached as u8;
        self.status.compare_exchange(attached, status as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Must be called if the hook is slow. Returns true if the worker was attached, as
    /// [`set_unattached`](Self::set_unattached) does.
    pub(super) fn detach(&self) -> bool {
        self.set_unattached(WorkerStatus::Detached)
    }

    fn is_attached(&self) -> bool {
        self.status.load(Ordering::SeqCst) == WorkerStatus::Attached as u8
    }

    pub(super) fn is_busy(&self) -> bool {
        self.started.load(Ordering::SeqCst) != NEVER
    }

    pub(super) fn is_slow(&self, now: Nanos, patience: Nanos) -> bool {
        let started = self.started.load(Ordering::SeqCst);
        started != NEVER && now.saturating_sub(started) >= patience && self.is_attached()
    }

    pub(super) fn abort(&self) {
        if let Some(abort) = self.abort.get() {
            abort.abort();
        }
    }
}

pub(super) struct Worker {
    pool: Arc<Pool>,
    state: Arc<WorkerState>,
    current: Option<Current>,
    /// It has not been polled yet.
    is_starting: bool,
}

/// The hook that the worker polls. Its drop completes it, if the worker itself does not.
enum Current {
    Start(Arc<Generation>),
    /// A shared end is completed by the last of its parts.
    End(Arc<Generation>, PendingEnd, Option<Arc<SharedEnd>>),
}

impl Worker {
    /// The caller has counted it as attached and starting.
    pub(super) fn spawn(pool: &Arc<Pool>) {
        let key = pool.next_worker.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(WorkerState {
            key,
            status: AtomicU8::new(WorkerStatus::Attached as u8),
            started: AtomicU64::new(NEVER),
            abort: OnceLock::new(),
        });
        lock(&pool.workers).states.insert(key, Arc::clone(&state));
        let worker = Self { pool: Arc::clone(pool), state: Arc::clone(&state), current: None, is_starting: true };
        // With no runtime the worker is dropped, and its job stays in the queue.
        if let Some(abort) = pool.tasks.spawn(worker.run()) {
            let _ = state.abort.set(abort);
            // `close` may have run before the handle was set.
            if pool.tracker.queue.state().limits.closed {
                state.abort();
            }
        }
    }

    async fn run(mut self) {
        let (mut jobs, mut since) = (0, self.pool.tracker.clock.now());
        loop {
            let now = self.pool.tracker.clock.now();
            let Some((job, limits)) = self.next_job(now) else { break };
            if let Job::End(generation, end) = &job
                && !self.pool.may_deliver(generation, end)
            {
                continue;
            }
            self.state.started.store(now, Ordering::SeqCst);
            let call_limits = self.pool.call_limits(now, &limits);
            let may_have_queued = match job {
                Job::Start(generation) => self.run_start(generation, &call_limits).await,
                Job::End(generation, end) => self.run_end(generation, end, &call_limits).await,
            };
            self.state.started.store(NEVER, Ordering::SeqCst);
            if may_have_queued {
                self.pool.wake();
            }
            jobs += 1;
            if jobs >= JOBS_PER_YIELD || now.saturating_sub(since) >= NANOS_PER_YIELD {
                tokio::task::yield_now().await;
                (jobs, since) = (0, self.pool.tracker.clock.now());
            }
        }
    }

    /// The next job. Without one, the worker exits, in the same critical section: a job that is queued later spawns a
    /// worker. A detached worker exits too.
    fn next_job(&mut self, now: Nanos) -> Option<(Job, RunLimits)> {
        if !self.state.is_attached() {
            return None;
        }
        let queue = &self.pool.tracker.queue;
        let mut state = queue.state();
        if std::mem::take(&mut self.is_starting) {
            state.starting -= 1;
        }
        let job = queue.pop(&mut state, now);
        if job.is_none() && self.state.set_unattached(WorkerStatus::Exited) {
            state.attached -= 1;
        }
        Some((job?, state.limits))
    }

    async fn run_start(&mut self, generation: Arc<Generation>, call_limits: &CallLimits) -> bool {
        let event = SessionStart {
            session: generation.session(),
            resumed_from: generation.resumed_from(),
            generation: self.pool.tracker.generation_id(&generation),
        };
        self.current = Some(Current::Start(Arc::clone(&generation)));
        let pool = &self.pool;
        let failed = call_all(&pool.hooks.start, None, event, call_limits.expires, || ensure_watchdog(pool)).await;
        for (number, error) in failed {
            pool.record_failure(pool.failure(&generation, &pool.hooks.start[number].name, error));
        }
        self.current = None;
        self.pool.tracker.on_start_done(&generation)
    }

    async fn run_end(&mut self, generation: Arc<Generation>, end: PendingEnd, call_limits: &CallLimits) -> bool {
        let pool = Arc::clone(&self.pool);
        let redelivery = end.redelivery.clone();
        let only = redelivery.as_ref().map(|redelivery| redelivery.hooks.as_slice());
        let calls_hooks = !pool.hooks.end.is_empty() && !only.is_some_and(|only| pool.are_batches(only));
        if calls_hooks && pool.is_counted(&generation, &end) {
            self.current = Some(Current::End(Arc::clone(&generation), end.clone(), None));
            let may_call = pool.count_call(&generation, &end).await;
            self.current = None;
            if !may_call {
                return true;
            }
        }
        let shared = (!pool.batches.is_empty()).then(|| SharedEnd::new(&pool, &generation, &end));
        if let Some(shared) = &shared {
            pool.push_to_batches(shared);
        }
        let failed = if calls_hooks {
            self.current = Some(Current::End(Arc::clone(&generation), end.clone(), shared.clone()));
            if end.redelivery.is_none() {
                generation.set_end_running();
            }
            let event = pool.end_event(&generation, end.clone(), call_limits);
            let failed = call_all(&pool.hooks.end, only, event, call_limits.expires, || ensure_watchdog(&pool)).await;
            self.current = None;
            failed
        } else {
            Vec::new()
        };
        let outcome = if failed.is_empty() { Outcome::Ended } else { Outcome::Failed };
        let failure = pool.record_failures(&generation, failed);
        match shared {
            Some(shared) => {
                shared.complete_part(outcome, failure);
                false
            }
            None => pool.on_end_done(&generation, &end, outcome, failure),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.is_starting {
            self.pool.tracker.queue.state().starting -= 1;
            self.pool.tasks.drop_runtime();
        }
        if self.state.set_unattached(WorkerStatus::Exited) {
            self.pool.tracker.queue.state().attached -= 1;
        }
        lock(&self.pool.workers).states.remove(&self.state.key);
        // A hook is still running: the task was dropped, by `finish` or by a runtime that shuts down.
        let Some(current) = self.current.take() else { return };
        match current {
            Current::Start(generation) => drop(self.pool.tracker.on_start_done(&generation)),
            Current::End(_, _, Some(shared)) => shared.complete_part(Outcome::Aborted, None),
            Current::End(generation, end, None) => {
                self.pool.on_end_done(&generation, &end, Outcome::Aborted, None);
            }
        }
        self.pool.wake();
    }
}
