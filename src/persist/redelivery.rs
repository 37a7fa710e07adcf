//! Redelivery: an end whose hooks have failed is delivered again, and then becomes a dead letter.
//!
//! A failed end has left the tracker: its counts say `failed`, and the next generation of its id starts. Its record stays in
//! the registry until its hooks have succeeded. With the process the schedule is lost, and not the end: the next process
//! recovers it.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use super::Persister;
use crate::{
    hooks::{FailedDelivery, Pool},
    observability::escape_controls,
    session::{EndReason, GenerationId, Phase, SessionId},
    sync::{Mutex, Ordering, lock},
    tracker::{Generation, Job, OutboxEntry, PendingEnd, Redelivery},
};

/// The calls of the hooks of one end, before it becomes a dead letter.
pub(super) const MAX_ATTEMPTS: u32 = 5;

/// The pause after the first failure. It doubles up to [`MAX_BACKOFF`].
const BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Ends that are to be delivered again, by time.
#[derive(Debug, Default)]
pub(super) struct Redeliveries {
    schedule: Mutex<Schedule>,
    /// Notified when an earlier time was added.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Schedule {
    due: BTreeMap<(Instant, u64), (Arc<Generation>, PendingEnd)>,
    added: u64,
    task: Option<Arc<OnceLock<AbortHandle>>>,
    is_closed: bool,
}

impl Redeliveries {
    /// What was scheduled is left to other processes.
    pub(super) fn clear(&self) {
        let due = std::mem::take(&mut lock(&self.schedule).due);
        drop(due);
    }

    pub(super) fn close(&self) {
        let task = {
            let mut schedule = lock(&self.schedule);
            schedule.is_closed = true;
            schedule.due.clear();
            schedule.task.clone()
        };
        if let Some(abort) = task.as_ref().and_then(|task| task.get()) {
            abort.abort();
        }
    }
}

impl Persister {
    /// A hook is called for this end. Ends that were neither recovered nor failed before are not counted: most of them are
    /// delivered at once.
    pub(super) fn record_attempt(&self, generation: &Arc<Generation>, end: &PendingEnd) {
        if let Some(before) = attempts_before(generation, end)
            && generation.record_state().is_on_record()
        {
            self.outbox.push(OutboxEntry::Attempted(Arc::clone(generation), before + 1));
        }
    }

    pub(super) fn record_redelivered(&self, generation: &Arc<Generation>) {
        if generation.record_state().is_on_record() {
            self.outbox.push(OutboxEntry::Delivered(Arc::clone(generation)));
        }
    }

    /// The hooks of an end have failed: it is delivered again later, unless that was the last attempt.
    pub(super) fn redeliver_or_bury(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        generation: &Arc<Generation>,
        end: &PendingEnd,
        failure: FailedDelivery,
    ) {
        let FailedDelivery { hooks, error } = failure;
        let before = attempts_before(generation, end);
        let attempts = before.unwrap_or(0) + 1;
        if !self.redeliver {
            return self.record_redelivered(generation);
        }
        if attempts >= MAX_ATTEMPTS {
            return self.bury(generation.id.clone(), self.tracker.generation_id(generation), end.reason, error);
        }
        if before.is_none() && generation.record_state().is_on_record() {
            self.outbox.push(OutboxEntry::Attempted(Arc::clone(generation), attempts));
        }
        let redelivery = Redelivery { attempts, hooks, lease: self.lost_leases.load(Ordering::SeqCst) };
        let end = PendingEnd { redelivery: Some(Arc::new(redelivery)), ..end.clone() };
        self.schedule(pool, Arc::clone(generation), end, backoff(attempts));
    }

    /// The record is kept for an operator, and no process delivers it until the operator asks for it.
    pub(super) fn bury(&self, id: SessionId, generation: GenerationId, reason: EndReason, error: String) {
        tracing::error!(
            name: "session-end-dead-letter",
            session = %id.redacted(),
            %generation,
            %reason,
            error = %escape_controls(&error),
            "the hooks of this session_end have failed too often; it is a dead letter",
        );
        self.outbox.push(OutboxEntry::DeadLetter(id, generation, error));
    }

    /// Whether this end may be delivered again now. If not, it is scheduled anew, or left to others.
    pub(super) fn may_redeliver(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        generation: &Arc<Generation>,
        end: &PendingEnd,
        redelivery: &Redelivery,
    ) -> bool {
        let is_owned = redelivery.lease == self.lost_leases.load(Ordering::SeqCst);
        // A drain has no time for it, and the next process delivers it.
        if !is_owned || self.tracker.phase() >= Phase::Closing {
            return false;
        }
        if generation.record_state().is_on_record() && !self.registry.lease_is_valid() {
            self.schedule(pool, Arc::clone(generation), end.clone(), BACKOFF);
            return false;
        }
        true
    }

    fn schedule(self: &Arc<Self>, pool: &Arc<Pool>, generation: Arc<Generation>, end: PendingEnd, after: Duration) {
        let abort = {
            let mut schedule = lock(&self.redeliveries.schedule);
            if schedule.is_closed || self.tracker.phase() >= Phase::Closing {
                return;
            }
            schedule.added += 1;
            let key = (Instant::now() + after, schedule.added);
            schedule.due.insert(key, (generation, end));
            if schedule.task.is_some() {
                self.redeliveries.changed.notify_one();
                return;
            }
            Arc::clone(schedule.task.insert(Arc::default()))
        };
        let runner = Runner { persister: Arc::clone(self), pool: Arc::clone(pool), exited: false };
        // With no runtime the runner is dropped, and the next failure spawns one.
        if let Some(handle) = self.tasks.spawn(runner.run()) {
            let _ = abort.set(handle);
            // `close` may have run before the handle was set.
            if lock(&self.redeliveries.schedule).is_closed {
                self.redeliveries.close();
            }
        }
    }
}

/// The task that queues what is due. It exists only while something is scheduled.
struct Runner {
    persister: Arc<Persister>,
    pool: Arc<Pool>,
    exited: bool,
}

impl Runner {
    async fn run(mut self) {
        let persister = Arc::clone(&self.persister);
        while let Some(next) = self.queue_due() {
            tokio::select! {
                () = sleep_until(next) => {}
                () = persister.redeliveries.changed.notified() => {}
            }
        }
    }

    /// Queues what is due, and returns when the next one is. Without one, the task exits.
    fn queue_due(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let (due, next) = {
            let mut schedule = lock(&self.persister.redeliveries.schedule);
            let later = schedule.due.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut schedule.due, later);
            let next = schedule.due.first_key_value().map(|((at, _), _)| *at);
            if next.is_none() {
                // In the same critical section: what is scheduled later spawns a task.
                schedule.task = None;
                self.exited = true;
            }
            (due, next)
        };
        if !due.is_empty() {
            let jobs = due.into_values().map(|(generation, end)| Job::End(generation, end)).collect();
            self.persister.tracker.queue.push_all(jobs);
            self.pool.wake_workers();
        }
        next
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if !self.exited {
            lock(&self.persister.redeliveries.schedule).task = None;
        }
    }
}

/// The calls of the hooks of this end so far; `None` if none was counted.
fn attempts_before(generation: &Generation, end: &PendingEnd) -> Option<u32> {
    let redelivered = end.redelivery.as_ref().map(|redelivery| redelivery.attempts);
    redelivered.or_else(|| generation.recovered_attempts())
}

fn backoff(attempts: u32) -> Duration {
    BACKOFF.saturating_mul(1 << (attempts - 1).min(16)).min(MAX_BACKOFF)
}
