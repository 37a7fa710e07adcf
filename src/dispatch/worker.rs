//! A worker: takes a job, polls its hooks in place, takes the next.

use std::sync::{Arc, OnceLock};

use tokio::task::AbortHandle;

use super::{CallLimits, HookError, HookFailure, Pool, TaskCount, batch::SharedEnd, call::call_all, ticker};
use crate::{
    session::{SessionEnd, SessionStart},
    sync::{AtomicU8, AtomicU64, Ordering, lock},
    tracker::{
        Generation, Job, Outcome, PendingEnd,
        clock::{NEVER, Nanos},
        queue::RunLimits,
    },
};

/// After so many jobs, or nanoseconds, a worker lets others have its thread.
const JOBS_PER_YIELD: u32 = 64;
const NANOS_PER_YIELD: Nanos = 200_000;

/// Whether a worker counts among the staff. It leaves the staff once, and who sees to that takes it off the count.
const ON_STAFF: u8 = 0;
const WRITTEN_OFF: u8 = 1;
const RETIRED: u8 = 2;

/// What the ticker sees of a worker.
#[derive(Debug)]
pub(super) struct WorkerState {
    key: u64,
    post: AtomicU8,
    /// When the hook in hand was started; [`NEVER`] if there is none.
    started: AtomicU64,
    abort: OnceLock<AbortHandle>,
}

impl WorkerState {
    /// Takes the worker off the staff; true if it was on it, and then `QueueState::staff` is one too high.
    fn leave_staff(&self, why: u8) -> bool {
        self.post.compare_exchange(ON_STAFF, why, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// As above, because the hook in hand takes too long.
    pub(super) fn write_off(&self) -> bool {
        self.leave_staff(WRITTEN_OFF)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.started.load(Ordering::SeqCst) != NEVER
    }

    pub(super) fn is_slow(&self, now: Nanos, patience: Nanos) -> bool {
        let started = self.started.load(Ordering::SeqCst);
        started != NEVER && now.saturating_sub(started) >= patience && self.post.load(Ordering::SeqCst) == ON_STAFF
    }

    pub(super) fn abort(&self) {
        if let Some(abort) = self.abort.get() {
            abort.abort();
        }
    }
}

pub(super) struct Worker {
    pool: Arc<Pool>,
    slot: Arc<WorkerState>,
    in_hand: Option<InHand>,
    /// It has not asked for a job yet: it has not run.
    is_starting: bool,
    _count: TaskCount,
}

/// What is finished by the worker's drop if the worker itself does not come to it.
enum InHand {
    Start(Arc<Generation>),
    /// A shared end is finished by the last of its parts.
    End(Arc<Generation>, Option<Arc<SharedEnd>>),
}

impl Worker {
    /// The caller has put it on the staff.
    pub(super) fn spawn(pool: &Arc<Pool>) {
        let key = pool.next_slot.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(WorkerState {
            key,
            post: AtomicU8::new(ON_STAFF),
            started: AtomicU64::new(NEVER),
            abort: OnceLock::new(),
        });
        lock(&pool.workers).slots.insert(key, Arc::clone(&slot));
        let worker = Self {
            pool: Arc::clone(pool),
            slot: Arc::clone(&slot),
            in_hand: None,
            is_starting: true,
            _count: TaskCount::new(pool),
        };
        // With no runtime the worker is dropped, and its job stays in the queue for a later kick.
        if let Some(abort) = pool.spawn(worker.run()) {
            let _ = slot.abort.set(abort);
            // `close` may have passed by before the handle was there.
            if pool.tracker.queue.state().limits.closed {
                slot.abort();
            }
        }
    }

    async fn run(mut self) {
        let (mut jobs, mut since) = (0, self.pool.tracker.clock.now());
        loop {
            let now = self.pool.tracker.clock.now();
            let Some((job, limits)) = self.take(now) else { break };
            if let Job::End(generation, ending) = &job
                && self.pool.defer_if_lease_uncertain(generation, ending)
            {
                continue;
            }
            self.slot.started.store(now, Ordering::SeqCst);
            let call_limits = self.pool.call_limits(now, &limits);
            let has_set_free = match job {
                Job::Start(generation) => self.start(generation, &call_limits).await,
                Job::End(generation, ending) => self.end(generation, ending, &call_limits).await,
            };
            self.slot.started.store(NEVER, Ordering::SeqCst);
            if has_set_free {
                self.pool.wake();
            }
            jobs += 1;
            if jobs >= JOBS_PER_YIELD || now.saturating_sub(since) >= NANOS_PER_YIELD {
                tokio::task::yield_now().await;
                (jobs, since) = (0, self.pool.tracker.clock.now());
            }
        }
    }

    /// The next job. With none, or where another works in its place, the worker leaves: in the same critical section,
    /// so that whoever queues a job later finds the vacancy.
    fn take(&mut self, now: Nanos) -> Option<(Job, RunLimits)> {
        if self.slot.post.load(Ordering::SeqCst) != ON_STAFF {
            return None;
        }
        let queue = &self.pool.tracker.queue;
        let mut line = queue.state();
        if std::mem::take(&mut self.is_starting) {
            line.starting -= 1;
        }
        let job = queue.pop(&mut line, now);
        if job.is_none() && self.slot.leave_staff(RETIRED) {
            line.attached -= 1;
        }
        Some((job?, line.limits))
    }

    async fn start(&mut self, generation: Arc<Generation>, call_limits: &CallLimits) -> bool {
        let event = SessionStart {
            session: generation.session(),
            resumed_from: generation.resumed_from(),
            generation: self.pool.tracker.generation_id(&generation),
        };
        self.in_hand = Some(InHand::Start(Arc::clone(&generation)));
        let pool = &self.pool;
        let failed = call_all(&pool.hooks.start, event, call_limits.expires, || ticker::ensure(pool)).await;
        for (hook, error) in failed {
            pool.record(pool.failure(&generation, &hook, error));
        }
        self.in_hand = None;
        self.pool.tracker.started(&generation)
    }

    async fn end(&mut self, generation: Arc<Generation>, ending: PendingEnd, call_limits: &CallLimits) -> bool {
        let pool = Arc::clone(&self.pool);
        let shared = (!pool.batches.is_empty()).then(|| SharedEnd::new(&pool, &generation, &ending));
        if let Some(shared) = &shared {
            pool.line_up(shared);
        }
        let failed = if pool.hooks.end.is_empty() {
            Vec::new()
        } else {
            generation.set_end_running();
            self.in_hand = Some(InHand::End(Arc::clone(&generation), shared.clone()));
            let event = pool.end_event(&generation, ending, call_limits);
            let failed = call_all(&pool.hooks.end, event, call_limits.expires, || ticker::ensure(&pool)).await;
            self.in_hand = None;
            failed
        };
        let outcome = if failed.is_empty() { Outcome::Ended } else { Outcome::Failed };
        for (hook, error) in failed {
            pool.record(pool.failure(&generation, &hook, error));
        }
        match shared {
            Some(shared) => {
                shared.complete_part(outcome);
                false
            }
            None => pool.tracker.ended(&generation, outcome),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.is_starting {
            self.pool.tracker.queue.state().starting -= 1;
            self.pool.drop_runtime();
        }
        if self.slot.leave_staff(RETIRED) {
            self.pool.tracker.queue.state().attached -= 1;
        }
        lock(&self.pool.workers).slots.remove(&self.slot.key);
        // Still in hand: the task was dropped, by `finish` or by a runtime that goes away.
        let Some(in_hand) = self.in_hand.take() else { return };
        match in_hand {
            InHand::Start(generation) => drop(self.pool.tracker.started(&generation)),
            InHand::End(_, Some(shared)) => shared.complete_part(Outcome::Aborted),
            InHand::End(generation, None) => drop(self.pool.tracker.ended(&generation, Outcome::Aborted)),
        }
        self.pool.wake();
    }
}

impl Pool {
    pub(super) fn failure(&self, generation: &Generation, hook: &str, error: HookError) -> HookFailure {
        HookFailure {
            session_id: generation.id.clone(),
            generation: self.tracker.generation_id(generation),
            hook: hook.to_owned(),
            error,
        }
    }

    pub(super) fn end_event(
        &self,
        generation: &Generation,
        ending: PendingEnd,
        call_limits: &CallLimits,
    ) -> SessionEnd {
        let (started_at, duration, requests) = self.tracker.life_of(generation, &ending);
        SessionEnd {
            session: generation.session(),
            reason: ending.reason,
            next: ending.next.map(|next| *next),
            started_at,
            duration,
            requests,
            transcript_archived: None,
            generation: self.tracker.generation_id(generation),
            deadline: call_limits.deadline.map(Into::into),
        }
    }
}
