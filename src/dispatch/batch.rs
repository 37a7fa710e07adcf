//! Batch hooks: what has gathered while the last batch ran goes out in one call. One batch is in flight at a time.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};

use tokio::task::AbortHandle;

use super::{Pool, TaskCount, call::call_one};
use crate::{
    sync::{AtomicU8, AtomicUsize, Mutex, Ordering, lock},
    tracker::{Generation, Outcome, PendingEnd},
};

/// An end that several parties work on: each batch hook, and the worker with the other hooks.
pub(super) struct SharedEnd {
    pool: Arc<Pool>,
    generation: Arc<Generation>,
    ending: PendingEnd,
    parts: AtomicUsize,
    /// The worst outcome so far.
    worst: AtomicU8,
}

impl SharedEnd {
    pub(super) fn new(pool: &Arc<Pool>, generation: &Arc<Generation>, ending: &PendingEnd) -> Arc<Self> {
        Arc::new(Self {
            pool: Arc::clone(pool),
            generation: Arc::clone(generation),
            ending: ending.clone(),
            parts: AtomicUsize::new(pool.batches.len() + 1),
            worst: AtomicU8::new(Outcome::Ended as u8),
        })
    }

    /// To be called once by each party; the last one finishes the end.
    pub(super) fn complete_part(&self, outcome: Outcome) {
        self.worst.fetch_max(outcome as u8, Ordering::SeqCst);
        if self.parts.fetch_sub(1, Ordering::SeqCst) == 1 {
            let outcome = match self.worst.load(Ordering::SeqCst) {
                0 => Outcome::Ended,
                1 => Outcome::Failed,
                _ => Outcome::Aborted,
            };
            if self.pool.tracker.ended(&self.generation, outcome) {
                self.pool.wake();
            }
        }
    }
}

/// What waits for the next batch of one hook.
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
    pub(super) fn abort(&self) {
        if let Some(abort) = lock(&self.state).runner.as_ref().and_then(|runner| runner.get()) {
            abort.abort();
        }
    }
}

impl Pool {
    /// Hands an end to every batch hook.
    pub(super) fn line_up(self: &Arc<Self>, shared: &Arc<SharedEnd>) {
        for batch in &self.batches {
            lock(&batch.state).waiting.push_back(Arc::clone(shared));
        }
        self.wake_batches();
    }

    pub(super) fn wake_batches(self: &Arc<Self>) {
        for (index, batch) in self.batches.iter().enumerate() {
            let abort = {
                let mut state = lock(&batch.state);
                if state.waiting.is_empty() || state.runner.is_some() {
                    continue;
                }
                Arc::clone(state.runner.insert(Arc::default()))
            };
            let pool = Arc::clone(self);
            let runner = Runner { pool, index, in_hand: Vec::new(), retired: false, _count: TaskCount::new(self) };
            // With no runtime the runner is dropped, and what waits stays for a later kick.
            if let Some(handle) = self.spawn(runner.run()) {
                let _ = abort.set(handle);
                // `close` may have passed by before the handle was there.
                if self.tracker.queue.state().limits.closed {
                    batch.abort();
                }
            }
        }
    }
}

struct Runner {
    pool: Arc<Pool>,
    index: usize,
    /// What its drop finishes if it does not come to it itself.
    in_hand: Vec<Arc<SharedEnd>>,
    /// Has left its place to the next one.
    retired: bool,
    _count: TaskCount,
}

impl Runner {
    async fn run(mut self) {
        let pool = Arc::clone(&self.pool);
        let batch = &pool.hooks.batch[self.index];
        while self.fill(batch.max) {
            let limits = pool.tracker.queue.state().limits;
            let call_limits = pool.call_limits(pool.tracker.clock.now(), &limits);
            let event = |shared: &Arc<SharedEnd>| {
                shared.generation.set_end_running();
                pool.end_event(&shared.generation, shared.ending.clone(), &call_limits)
            };
            let events = self.in_hand.iter().map(event).collect();
            let error = call_one(&batch.hook, events, call_limits.expires, || {}).await;
            for shared in std::mem::take(&mut self.in_hand) {
                match &error {
                    None => shared.complete_part(Outcome::Ended),
                    Some(error) => {
                        pool.record(pool.failure(&shared.generation, &batch.hook.name, error.clone()));
                        shared.complete_part(Outcome::Failed);
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Takes the next batch; false if there is none, or none may start any more.
    fn fill(&mut self, max: usize) -> bool {
        let now = self.pool.tracker.clock.now();
        let mut state = lock(&self.pool.batches[self.index].state);
        // Under the lock: whoever opens the gate afterwards finds the place empty.
        let open = self.pool.tracker.queue.state().limits.is_open(now);
        if open {
            let n = max.min(state.waiting.len());
            self.in_hand = state.waiting.drain(..n).collect();
        }
        if self.in_hand.is_empty() {
            // In the same critical section, so that who lines up later finds the place empty.
            state.runner = None;
            self.retired = true;
        }
        !self.in_hand.is_empty()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if !self.retired {
            lock(&self.pool.batches[self.index].state).runner = None;
        }
        for shared in std::mem::take(&mut self.in_hand) {
            shared.complete_part(Outcome::Aborted);
        }
    }
}
