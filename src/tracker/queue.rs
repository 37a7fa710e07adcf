//! The handle's queue of hook jobs, and what decides whether the next one may start.
//!
//! It belongs to the handle, never to a future's stack: a drain that is dropped half-way loses nothing.

use std::{collections::VecDeque, sync::Arc};

use super::{
    clock::{NEVER, Nanos},
    generation::{Generation, PendingEnd},
};
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, lock};

/// A hook that is due.
#[derive(Debug)]
pub(crate) enum Job {
    Start(Arc<Generation>),
    End(Arc<Generation>, PendingEnd),
}

/// How many hooks a drain wants to have started by when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) began: Nanos,
    /// The time in which all of them are to be started, in nanoseconds.
    pub(crate) span: Nanos,
    /// [`QueueState::started`] when the drain began.
    pub(crate) started: u64,
}

/// Until when hooks may be started, and how long they may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunLimits {
    /// No hook is polled for the first time from here on.
    pub(crate) deadline: Nanos,
    /// The deadline is that of a stop, which replaces the hook timeout.
    pub(crate) draining: bool,
    /// Nothing starts any more.
    pub(crate) closed: bool,
}

/// What the queue's lock guards.
#[derive(Debug)]
pub(crate) struct QueueState {
    pub(crate) jobs: VecDeque<Job>,
    /// Workers that take jobs and are not written off.
    pub(crate) attached: usize,
    /// Workers that were hired and have not taken their first job.
    pub(crate) starting: usize,
    /// Jobs that were ever taken.
    pub(crate) started: u64,
    pub(crate) limits: RunLimits,
    pub(crate) pace: Option<Pace>,
}

#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<QueueState>,
    /// A copy of `state.jobs.len()`, so that nobody locks an empty queue.
    len: AtomicUsize,
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

    pub(super) fn push_all(&self, jobs: Vec<Job>) {
        let mut state = self.state();
        state.jobs.extend(jobs);
        self.len.store(state.jobs.len(), Ordering::SeqCst);
    }

    /// The next job, if the gate lets it pass at `now`.
    pub(crate) fn pop(&self, state: &mut QueueState, now: Nanos) -> Option<Job> {
        if !state.limits.allow_start(now) {
            return None;
        }
        let job = state.jobs.pop_front()?;
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
