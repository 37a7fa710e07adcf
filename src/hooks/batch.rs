//! Batch hooks: ends that come due while a batch runs are delivered together in the next one. Each batch hook has one
//! call in flight.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};

use tokio::task::AbortHandle;

use super::{call::call_one, pool::Pool};
use crate::{
    sync::{AtomicU8, AtomicUsize, Mutex, Ordering, lock},
    tracker::{FailedDelivery, Generation, Outcome, PendingEnd},
};

/// After this many calls an end is delivered alone, so that one bad end makes no dead letters of others.
const SUSPECT_AFTER: u32 = 2;

/// An end with several parts: one for each batch hook, and one for the worker with the other hooks.
pub(super) struct SharedEnd {
    pool: Arc<Pool>,
    generation: Arc<Generation>,
    end: PendingEnd,
    parts: AtomicUsize,
    /// The worst outcome so far.
    worst: AtomicU8,
    failure: Mutex<Option<FailedDelivery>>,
}

impl SharedEnd {
    pub(super) fn new(pool: &Arc<Pool>, generation: &Arc<Generation>, end: &PendingEnd) -> Arc<Self> {
        Arc::new(Self {
            pool: Arc::clone(pool),
            generation: Arc::clone(generation),
            end: end.clone(),
            parts: AtomicUsize::new(pool.batches.len() + 1),
            worst: AtomicU8::new(Outcome::Ended as u8),
            failure: Mutex::default(),
        })
    }

    /// Whether this batch hook is called. In a redelivery, the ones that failed are.
    pub(super) fn is_for(&self, index: usize) -> bool {
        let number = self.pool.hooks.end.len() + index;
        self.end.redelivery.as_ref().is_none_or(|redelivery| redelivery.hooks.contains(&number))
    }

    /// Whether it has failed so often that it may be the one that makes a batch fail.
    fn is_suspect(&self) -> bool {
        let redelivered = self.end.redelivery.as_ref().map(|redelivery| redelivery.attempts);
        redelivered.or_else(|| self.generation.recovered_attempts()).is_some_and(|attempts| attempts >= SUSPECT_AFTER)
    }

    /// Must be called once for each part. The last call completes the end.
    pub(super) fn complete_part(&self, outcome: Outcome, failure: Option<FailedDelivery>) {
        if let Some(mut failed) = failure {
            let mut all = lock(&self.failure);
            if let Some(before) = all.take() {
                failed.hooks.extend(before.hooks);
            }
            *all = Some(failed);
        }
        self.worst.fetch_max(outcome as u8, Ordering::SeqCst);
        if self.parts.fetch_sub(1, Ordering::SeqCst) == 1 {
            let outcome = match self.worst.load(Ordering::SeqCst) {
                0 => Outcome::Ended,
                1 => Outcome::Failed,
                _ => Outcome::Aborted,
            };
            let failure = lock(&self.failure).take();
            if self.pool.on_end_done(&self.generation, &self.end, outcome, failure) {
                self.pool.wake();
            }
        }
    }
}

/// The ends that wait for the next batch of one hook.
#[derive(Default)]
pub(super) struct BatchQueue {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Arc<SharedEnd>>,
    runner: Option<Arc<OnceLock<AbortHandle>>>,
}

impl BatchQueue {
    pub(super) fn push(&self, end: &Arc<SharedEnd>) {
        lock(&self.state).waiting.push_back(Arc::clone(end));
    }

    /// Spawns the runner if ends are waiting and no runner exists.
    pub(super) fn wake(pool: &Arc<Pool>, index: usize) {
        let batch = &pool.batches[index];
        let abort = {
            let mut state = lock(&batch.state);
            if state.waiting.is_empty() || state.runner.is_some() {
                return;
            }
            Arc::clone(state.runner.insert(Arc::default()))
        };
        let runner = Runner { pool: Arc::clone(pool), index, current: Vec::new(), exited: false };
        // With no runtime the runner is dropped, and the queue stays for a later call.
        if let Some(handle) = pool.tasks.spawn(runner.run()) {
            let _ = abort.set(handle);
            // `close` may have run before the handle was set.
            if pool.tracker.queue.state().limits.closed {
                batch.abort();
            }
        }
    }

    pub(super) fn abort(&self) {
        if let Some(abort) = lock(&self.state).runner.as_ref().and_then(|runner| runner.get()) {
            abort.abort();
        }
    }
}

struct Runner {
    pool: Arc<Pool>,
    index: usize,
    /// The ends of the running batch. The runner's drop completes them as aborted.
    current: Vec<Arc<SharedEnd>>,
    /// `State::runner` may belong to another runner.
    exited: bool,
}

impl Runner {
    async fn run(mut self) {
        let pool = Arc::clone(&self.pool);
        let batch = &pool.hooks.batch[self.index];
        while self.fill(batch.max) {
            let limits = pool.tracker.queue.state().limits;
            let call_limits = pool.call_limits(pool.tracker.clock.now(), &limits);
            let event = |shared: &Arc<SharedEnd>| {
                pool.on_call(&shared.generation, &shared.end);
                if shared.end.redelivery.is_none() {
                    shared.generation.set_end_running();
                }
                pool.end_event(&shared.generation, shared.end.clone(), &call_limits)
            };
            let events = self.current.iter().map(event).collect();
            let error = call_one(&batch.hook, events, call_limits.expires, || {}).await;
            for shared in std::mem::take(&mut self.current) {
                match &error {
                    None => shared.complete_part(Outcome::Ended, None),
                    Some(error) => {
                        let number = pool.hooks.end.len() + self.index;
                        let failure = pool.record_failures(&shared.generation, vec![(number, error.clone())]);
                        shared.complete_part(Outcome::Failed, failure);
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Takes the next batch. Returns false if no end is waiting, or none may start.
    fn fill(&mut self, max: usize) -> bool {
        let now = self.pool.tracker.clock.now();
        let mut state = lock(&self.pool.batches[self.index].state);
        // Under the lock: a call that relaxes the limits later finds no runner and spawns one.
        let may_start = self.pool.tracker.queue.state().limits.allow_start(now);
        if may_start {
            let n = max.min(state.waiting.len());
            let suspect = state.waiting.iter().take(n).position(|end| end.is_suspect());
            let n = suspect.map_or(n, |before| before.max(1));
            self.current = state.waiting.drain(..n).collect();
        }
        if self.current.is_empty() {
            // In the same critical section: an end that is pushed later finds no runner and spawns one.
            state.runner = None;
            self.exited = true;
        }
        !self.current.is_empty()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if !self.exited {
            lock(&self.pool.batches[self.index].state).runner = None;
        }
        for shared in std::mem::take(&mut self.current) {
            shared.complete_part(Outcome::Aborted, None);
        }
    }
}
