//! Batch hooks: what has gathered while the last batch ran goes out in one call. One batch is in flight at a time.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};

use tokio::task::AbortHandle;

use super::{Pool, TaskCount, call::call_one};
use crate::{
    sync::{AtomicU8, AtomicUsize, Mutex, Ordering, lock},
    tracker::{Ending, Entry, Outcome},
};

/// An end that several parties work on: each batch hook, and the worker with the other hooks.
pub(super) struct Joint {
    pool: Arc<Pool>,
    entry: Arc<Entry>,
    ending: Ending,
    parts: AtomicUsize,
    /// The worst outcome so far.
    worst: AtomicU8,
}

impl Joint {
    pub(super) fn new(pool: &Arc<Pool>, entry: &Arc<Entry>, ending: &Ending) -> Arc<Self> {
        Arc::new(Self {
            pool: Arc::clone(pool),
            entry: Arc::clone(entry),
            ending: ending.clone(),
            parts: AtomicUsize::new(pool.batches.len() + 1),
            worst: AtomicU8::new(Outcome::Ended as u8),
        })
    }

    /// To be called once by each party; the last one finishes the end.
    pub(super) fn part_is_over(&self, outcome: Outcome) {
        self.worst.fetch_max(outcome as u8, Ordering::SeqCst);
        if self.parts.fetch_sub(1, Ordering::SeqCst) == 1 {
            let outcome = match self.worst.load(Ordering::SeqCst) {
                0 => Outcome::Ended,
                1 => Outcome::Failed,
                _ => Outcome::Aborted,
            };
            if self.pool.tracker.ended(&self.entry, outcome) {
                self.pool.kick();
            }
        }
    }
}

/// What waits for the next batch of one hook.
#[derive(Default)]
pub(super) struct BatchLine {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Arc<Joint>>,
    runner: Option<Arc<OnceLock<AbortHandle>>>,
}

impl BatchLine {
    pub(super) fn abort(&self) {
        if let Some(abort) = lock(&self.state).runner.as_ref().and_then(|runner| runner.get()) {
            abort.abort();
        }
    }
}

impl Pool {
    /// Hands an end to every batch hook.
    pub(super) fn line_up(self: &Arc<Self>, joint: &Arc<Joint>) {
        for batch in &self.batches {
            lock(&batch.state).waiting.push_back(Arc::clone(joint));
        }
        self.kick_batches();
    }

    pub(super) fn kick_batches(self: &Arc<Self>) {
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
                if self.tracker.queue.line().gate.closed {
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
    in_hand: Vec<Arc<Joint>>,
    /// Has left its place to the next one.
    retired: bool,
    _count: TaskCount,
}

impl Runner {
    async fn run(mut self) {
        let pool = Arc::clone(&self.pool);
        let batch = &pool.hooks.batch[self.index];
        while self.fill(batch.max) {
            let gate = pool.tracker.queue.line().gate;
            let terms = pool.terms(pool.tracker.clock.now(), &gate);
            let event = |joint: &Arc<Joint>| {
                joint.entry.set_ending();
                pool.end_event(&joint.entry, joint.ending.clone(), &terms)
            };
            let events = self.in_hand.iter().map(event).collect();
            let error = call_one(&batch.hook, events, terms.expires, || {}).await;
            for joint in std::mem::take(&mut self.in_hand) {
                match &error {
                    None => joint.part_is_over(Outcome::Ended),
                    Some(error) => {
                        pool.record(pool.failure(&joint.entry, &batch.hook.name, error.clone()));
                        joint.part_is_over(Outcome::Failed);
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
        let open = self.pool.tracker.queue.line().gate.is_open(now);
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
        for joint in std::mem::take(&mut self.in_hand) {
            joint.part_is_over(Outcome::Aborted);
        }
    }
}
