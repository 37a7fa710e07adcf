//! The queue of hook jobs, and the limits that apply when the next one starts.
//!
//! It belongs to the handle and not to a future, so a drain that is dropped half-way loses no job.

use std::{collections::VecDeque, sync::Arc};

use super::{
    clock::{NEVER, Nanos},
    generation::{Generation, PendingEnd},
};
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, lock};

/// The start hooks or the end hooks of one generation.
#[derive(Debug)]
pub(crate) enum Job {
    Start(Arc<Generation>),
    End(Arc<Generation>, PendingEnd),
}

/// The pace at which a drain starts hooks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) began: Nanos,
    /// All hooks should have started after this many nanoseconds.
    pub(crate) span: Nanos,
    /// [`QueueState::started`] when the drain began.
    pub(crate) started: u64,
}

/// The limits on hooks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunLimits {
    /// No hook starts after this.
    pub(crate) deadline: Nanos,
    /// A drain has begun: its deadline replaces the hook timeout.
    pub(crate) draining: bool,
    /// The handle is closed: no hook starts.
    pub(crate) closed: bool,
}

/// The part of the queue that its lock guards.
#[derive(Debug)]
pub(crate) struct QueueState {
    pub(crate) jobs: VecDeque<Job>,
    /// Workers that take jobs: spawned, and neither detached nor exited.
    pub(crate) attached: usize,
    /// Spawned workers that have not taken a job yet.
    pub(crate) starting: usize,
    /// Jobs taken so far.
    pub(crate) started: u64,
    pub(crate) limits: RunLimits,
    pub(crate) pace: Option<Pace>,
}

#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<QueueState>,
    /// A copy of `state.jobs.len()`, so an empty queue is not locked.
    len: AtomicUsize,
}

/// An empty queue with room for more entries than this has had a burst.
const MAX_KEPT_CAPACITY: usize = 4096;

/// Returns the memory of a burst once it is over. Must be called after entries were taken.
pub(super) fn return_memory<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() && queue.capacity() > MAX_KEPT_CAPACITY {
        *queue = VecDeque::new();
    }
}

impl Queue {
    pub(super) fn new() -> Self {
        let limits = RunLimits { deadline: NEVER, draining: false, closed: false };
        let state = QueueState { jobs: VecDeque::new(), attached: 0, starting: 0, started: 0, limits, pace: None };
        Self { state: Mutex::new(state), len: AtomicUsize::new(0) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, QueueState> {
        lock(&self.state)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len.load(Ordering::SeqCst) == 0
    }

    pub(super) fn push(&self, job: Job) {
        let mut state = self.state();
        state.jobs.push_back(job);
        self.len.store(state.jobs.len(), Ordering::SeqCst);
    }

    pub(crate) fn push_all(&self, jobs: Vec<Job>) {
        let mut state = self.state();
        state.jobs.extend(jobs);
        self.len.store(state.jobs.len(), Ordering::SeqCst);
    }

    /// The next job, if the limits allow a start at `now`.
    pub(crate) fn pop(&self, state: &mut QueueState, now: Nanos) -> Option<Job> {
        if !state.limits.allow_start(now) {
            return None;
        }
        let job = state.jobs.pop_front()?;
        return_memory(&mut state.jobs);
        state.started += 1;
        self.len.store(state.jobs.len(), Ordering::SeqCst);
        Some(job)
    }
}

impl RunLimits {
    pub(crate) fn allow_start(&self, now: Nanos) -> bool {
        !self.closed && now < self.deadline
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::session::Session;

    #[test]
    fn a_queue_returns_the_memory_of_a_burst() {
        let queue = Queue::new();
        let generation = Arc::new(Generation::new(Session::try_from("a").unwrap(), 0, 0, None));
        queue.push_all((0..100_000).map(|_| Job::Start(Arc::clone(&generation))).collect());
        let mut state = queue.state();
        for _ in 0..100_000 {
            assert!(queue.pop(&mut state, 0).is_some());
        }
        assert!(state.jobs.capacity() <= MAX_KEPT_CAPACITY, "{}", state.jobs.capacity());
        drop(state);
        // A few jobs at a time keep their room.
        queue.push(Job::Start(generation));
        let mut state = queue.state();
        assert!(queue.pop(&mut state, 0).is_some() && state.jobs.capacity() > 0);
    }
}
