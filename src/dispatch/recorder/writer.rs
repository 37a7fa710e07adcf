//! The writer: a task that is there only while there is something to write.

use std::{sync::Arc, time::Duration};

use super::{Breaker, CALL_TIMEOUT, Recorder, tend::MAX_LEASE_RETRIES};
use crate::{
    dispatch::{Pool, TaskCount},
    registry::{Applied, Change, RegistryError},
    sync::{Ordering, lock},
    tracker::{OutboxEntry, clock::NEVER},
};

/// Changes that go into one group, at most.
const GROUP: usize = 1000;

/// How often a group is tried in a drain, before the registry counts as out of reach.
const ATTEMPTS_IN_DRAIN: u32 = 3;

pub(super) struct Writer {
    pool: Arc<Pool>,
    /// What its drop puts back if it does not come to it.
    in_hand: Vec<OutboxEntry>,
    retired: bool,
    /// It has not run yet.
    is_starting: bool,
    _count: TaskCount,
}

impl Writer {
    pub(super) fn new(pool: &Arc<Pool>) -> Self {
        Self {
            pool: Arc::clone(pool),
            in_hand: Vec::new(),
            retired: false,
            is_starting: true,
            _count: TaskCount::new(pool),
        }
    }

    pub(super) async fn run(mut self) {
        self.is_starting = false;
        let pool = Arc::clone(&self.pool);
        let Some(recorder) = &pool.recorder else { return };
        while self.take(recorder) {
            pool.heartbeat_if_overdue().await;
            self.write(&mut *recorder.io.lock().await).await;
            pool.wake_workers();
        }
    }

    /// The next group; false if there is none.
    fn take(&mut self, recorder: &Recorder) -> bool {
        let mut writer = lock(&recorder.writer);
        if let Some(outbox) = &self.pool.tracker.outbox {
            self.in_hand = outbox.take(GROUP);
        }
        if self.in_hand.is_empty() {
            // In the same critical section, so that who writes something down later finds the place empty.
            *writer = None;
            self.retired = true;
            recorder.idle.notify_waiters();
        }
        !self.in_hand.is_empty()
    }

    async fn write(&mut self, io: &mut Breaker) {
        let pool = Arc::clone(&self.pool);
        let Some(recorder) = &pool.recorder else { return };
        if io.retry_at.is_some() {
            let restored = pool.may_try(io) && pool.try_again(io).await.is_ok();
            if !restored {
                return self.apply_degraded(recorder, io, false);
            }
            // What it has missed comes first, and has been put before this.
            return self.requeue_after_backlog(io);
        }
        let mut tries = 0;
        loop {
            let (changes, shares) = self.plan();
            let is_asked = !changes.is_empty();
            let error = match self.apply(recorder, changes).await {
                Ok(answers) => {
                    if is_asked {
                        recorder.restored(io);
                    }
                    return self.settle(&answers, &shares);
                }
                Err(error) => error,
            };
            tries += 1;
            match error {
                RegistryError::Fenced if tries < MAX_LEASE_RETRIES => pool.fenced(),
                RegistryError::DataLost if tries < MAX_LEASE_RETRIES => pool.forgotten(),
                RegistryError::Unavailable(_) if tries < ATTEMPTS_IN_DRAIN && pool.time_for_io().is_some() => {
                    tokio::time::sleep(Duration::from_millis(10 << tries)).await;
                }
                error => {
                    recorder.degrade(&error);
                    io.trip(pool.tracker.clock.now());
                    return self.apply_degraded(recorder, io, true);
                }
            }
        }
    }

    /// The changes of the group in hand, and how many of them are whose.
    fn plan(&self) -> (Vec<Change>, Vec<usize>) {
        let (mut changes, mut shares) =
            (Vec::with_capacity(self.in_hand.len()), Vec::with_capacity(self.in_hand.len()));
        for op in &self.in_hand {
            let before = changes.len();
            self.pool.plan(op, &mut changes);
            shares.push(changes.len() - before);
        }
        (changes, shares)
    }

    async fn apply(&self, recorder: &Recorder, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let n = changes.len();
        let limit = self.pool.time_for_io().unwrap_or(CALL_TIMEOUT);
        let answers = Recorder::call(limit, recorder.registry.apply(changes)).await?;
        if answers.len() == n {
            Ok(answers)
        } else {
            Err(RegistryError::unavailable(format!("{} answers to {n} changes", answers.len())))
        }
    }

    fn settle(&mut self, answers: &[Applied], shares: &[usize]) {
        let mut answers = answers;
        for (op, share) in std::mem::take(&mut self.in_hand).into_iter().zip(shares) {
            let (ours, rest) = answers.split_at(*share);
            self.pool.settle(op, ours);
            answers = rest;
        }
    }

    fn apply_degraded(&mut self, recorder: &Recorder, io: &mut Breaker, tried: bool) {
        for op in std::mem::take(&mut self.in_hand) {
            self.pool.apply_degraded(recorder, io, op, tried);
        }
    }

    fn requeue_after_backlog(&mut self, io: &mut Breaker) {
        if let Some(outbox) = &self.pool.tracker.outbox {
            outbox.put_back(std::mem::take(&mut self.in_hand));
        }
        self.pool.replay_backlog(io);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let (Some(recorder), Some(outbox)) = (&self.pool.recorder, &self.pool.tracker.outbox) else { return };
        if !self.retired {
            let mut writer = lock(&recorder.writer);
            outbox.put_back(std::mem::take(&mut self.in_hand));
            *writer = None;
            recorder.idle.notify_waiters();
        }
        if self.is_starting {
            self.pool.drop_runtime();
        }
    }
}

impl Pool {
    /// In a drain, how long one call of the registry may take: so that a registry which does not answer leaves time
    /// for the hooks.
    pub(super) fn time_for_io(&self) -> Option<Duration> {
        let limits = self.tracker.queue.state().limits;
        if !limits.stopping || limits.deadline == NEVER {
            return None;
        }
        let left = Duration::from_nanos(limits.deadline.saturating_sub(self.tracker.clock.now()));
        Some((left / 4).clamp(Duration::from_millis(10), CALL_TIMEOUT))
    }

    /// Whether the registry has been left alone for long enough. In a drain there is no time for that.
    fn may_try(&self, io: &mut Breaker) -> bool {
        let in_a_hurry = self.time_for_io().is_some() && io.attempts_in_drain < ATTEMPTS_IN_DRAIN;
        if in_a_hurry {
            io.attempts_in_drain += 1;
        }
        in_a_hurry && io.retry_at != Some(NEVER) || !io.is_shut(self.tracker.clock.now())
    }

    /// Others have ended what was held here.
    pub(super) fn fenced(&self) {
        tracing::warn!(
            name: "session-registry-fenced",
            "the lease in the session registry was over, and others have ended the sessions that this process held; \
             what is active goes on as new generations",
        );
        self.tracker.restart_all();
    }

    /// The registry has lost what it knew.
    pub(super) fn forgotten(&self) {
        tracing::warn!(
            name: "session-registry-data-lost",
            "the session registry has lost its records; what is active here is recorded again",
        );
        self.tracker.mark_records_uncertain();
        if let Some(recorder) = &self.recorder {
            recorder.last_heartbeat.store(0, Ordering::SeqCst);
        }
    }
}
