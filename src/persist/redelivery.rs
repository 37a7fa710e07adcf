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

use hashbrown::{HashMap, HashSet};
use tokio::{
    sync::{Notify, oneshot},
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use super::{CALL_TIMEOUT, Persister, breaker::MAX_RETRY_BACKOFF};
use crate::{
    hooks::Pool,
    observability::escape_controls,
    session::{EndReason, GenerationId, Phase, SessionId},
    sync::{AtomicBool, Mutex, Ordering, lock},
    tracker::{FailedDelivery, Generation, Job, OutboxEntry, PendingEnd, RecordState, Redelivery},
};

/// The calls of the hooks of one end, before it becomes a dead letter.
pub(super) const MAX_ATTEMPTS: u32 = 5;

/// The pause after the first failure. It doubles up to [`MAX_BACKOFF`].
const BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// A carried id without a record is asked for again after this time. A process that has made it in an outage has recorded it by
/// then: its last call in the outage may time out, and the next one comes after a backoff.
pub(super) const HOLD_AGAIN_AFTER: Duration = Duration::from_millis(1750);
const _: () = assert!(HOLD_AGAIN_AFTER.as_millis() > (CALL_TIMEOUT.as_millis() + MAX_RETRY_BACKOFF.as_millis()));

/// What is to be done later, by time: ends are delivered again, holds repeated, and postponed entries queued again.
#[derive(Debug, Default)]
pub(super) struct Redeliveries {
    schedule: Mutex<Schedule>,
    /// Notified when an earlier time was added.
    changed: Notify,
    /// The runtime of the task has shut down.
    is_suspended: AtomicBool,
}

#[derive(Debug, Default)]
struct Schedule {
    due: BTreeMap<(Instant, u64), Later>,
    /// All ends whose hooks have failed and that are neither delivered nor dead letters, by number: also those whose hooks run.
    failed: HashMap<u64, Arc<Generation>>,
    added: u64,
    task: Option<Arc<OnceLock<AbortHandle>>>,
    is_closed: bool,
}

#[derive(Debug)]
pub(super) enum Later {
    End(Arc<Generation>, PendingEnd),
    Hold(Arc<Generation>),
    /// The postponed entries of this id.
    Postponed(SessionId),
}

impl Redeliveries {
    /// An end whose hooks have failed.
    pub(super) fn add(&self, generation: &Arc<Generation>) {
        lock(&self.schedule).failed.insert(generation.number, Arc::clone(generation));
    }

    fn remove(&self, generation: &Generation) {
        lock(&self.schedule).failed.remove(&generation.number);
    }

    /// What is on record is left to other processes, which have recovered it. They do not know of the rest.
    pub(super) fn leave_recorded(&self) {
        let mut schedule = lock(&self.schedule);
        let recorded = schedule.failed.extract_if(|_, generation| generation.record_state().is_on_record());
        for (_, generation) in recorded {
            generation.set_record_state(RecordState::TakenOver);
        }
        schedule.due.retain(|_, later| match later {
            Later::End(generation, _) => generation.record_state() != RecordState::TakenOver,
            Later::Hold(_) | Later::Postponed(_) => true,
        });
    }

    pub(super) fn close(&self) {
        let task = {
            let mut schedule = lock(&self.schedule);
            schedule.is_closed = true;
            schedule.due.clear();
            schedule.failed.clear();
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
            && has_record(generation)
        {
            self.outbox.push(OutboxEntry::Attempted(Arc::clone(generation), before + 1, None));
        }
    }

    /// As [`record_attempt`](Self::record_attempt). The caller waits until the call is counted, so a hook that ends the process
    /// is called five times at most. A drain has no time for that.
    pub(super) fn count_attempt(
        &self,
        generation: &Arc<Generation>,
        end: &PendingEnd,
    ) -> Option<oneshot::Receiver<()>> {
        let before = attempts_before(generation, end)?;
        if !has_record(generation) || self.is_draining() {
            self.record_attempt(generation, end);
            return None;
        }
        let (counted, wait) = oneshot::channel();
        self.outbox.push(OutboxEntry::Attempted(Arc::clone(generation), before + 1, Some(counted)));
        Some(wait)
    }

    pub(super) fn record_redelivered(&self, generation: &Arc<Generation>) {
        self.redeliveries.remove(generation);
        if has_record(generation) {
            self.outbox.push(OutboxEntry::Delivered(Arc::clone(generation)));
        }
    }

    /// Records an end that has no record, because its hooks have failed. The session has ended here.
    fn record_late(&self, generation: &Arc<Generation>, end: &PendingEnd) {
        generation.set_record_state(RecordState::Unsent);
        self.outbox.push(OutboxEntry::Hold(Arc::clone(generation)));
        self.outbox.push(OutboxEntry::EndDeliveredOffline(Arc::clone(generation), end.clone()));
    }

    /// The ends whose hooks have failed, and that this process delivers again.
    pub(super) fn scheduled_generations(&self) -> HashSet<GenerationId> {
        let schedule = lock(&self.redeliveries.schedule);
        schedule.failed.values().map(|generation| self.tracker.generation_id(generation)).collect()
    }

    /// The registry has lost its records: ends that are to be delivered again are recorded again.
    pub(super) fn record_scheduled_again(&self) {
        let schedule = lock(&self.redeliveries.schedule);
        for later in schedule.due.values() {
            if let Later::End(generation, end) = later
                && has_record(generation)
            {
                self.record_late(generation, end);
            }
        }
    }

    /// The hooks of an end have failed: it is delivered again later, unless that was the last attempt.
    pub(super) fn on_failed_delivery(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        generation: &Arc<Generation>,
        end: &PendingEnd,
        failure: FailedDelivery,
    ) {
        let FailedDelivery { hooks, is_uncommitted, error } = failure;
        if generation.record_state() == RecordState::TakenOver {
            // The lease was lost while the hooks ran, and another process delivers it.
            return self.redeliveries.remove(generation);
        }
        let before = attempts_before(generation, end);
        let attempts = before.unwrap_or(0) + 1;
        if !self.redeliver && !is_uncommitted {
            return self.record_redelivered(generation);
        }
        // Without an answer, or after the registry has lost its records, its record may not exist.
        if generation.record_state() != RecordState::Held {
            self.record_late(generation, end);
        }
        if attempts >= MAX_ATTEMPTS || !self.redeliver {
            self.redeliveries.remove(generation);
            return self.make_dead_letter(
                generation.id.clone(),
                self.tracker.generation_id(generation),
                Some(end.reason),
                error,
            );
        }
        if before.is_none() {
            self.outbox.push(OutboxEntry::Attempted(Arc::clone(generation), attempts, None));
        }
        let redelivery = Redelivery { attempts, hooks };
        let end = PendingEnd { redelivery: Some(Arc::new(redelivery)), ..end.clone() };
        self.schedule(pool, Later::End(Arc::clone(generation), end), backoff(attempts));
    }

    /// The record is kept for an operator, and no process delivers it until the operator asks for it.
    pub(super) fn make_dead_letter(
        &self,
        id: SessionId,
        generation: GenerationId,
        reason: Option<EndReason>,
        error: String,
    ) {
        tracing::error!(
            name: "session-end-dead-letter",
            session = %id.redacted(),
            %generation,
            reason = reason.map(tracing::field::display),
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
    ) -> bool {
        // A drain has no time for it, and the next process delivers it.
        if generation.record_state() == RecordState::TakenOver || self.tracker.phase() >= Phase::Closing {
            self.redeliveries.remove(generation);
            return false;
        }
        if generation.record_state().is_on_record() && !self.registry.lease_is_valid() {
            self.schedule(pool, Later::End(Arc::clone(generation), end.clone()), BACKOFF);
            return false;
        }
        true
    }

    /// There is no record that this generation could join. Another process may be about to write one.
    pub(super) fn hold_later(self: &Arc<Self>, pool: &Arc<Pool>, generation: Arc<Generation>) {
        self.schedule(pool, Later::Hold(generation), HOLD_AGAIN_AFTER);
    }

    pub(super) fn schedule(self: &Arc<Self>, pool: &Arc<Pool>, later: Later, after: Duration) {
        {
            let mut schedule = lock(&self.redeliveries.schedule);
            if schedule.is_closed || self.tracker.phase() >= Phase::Closing {
                return;
            }
            schedule.added += 1;
            let key = (Instant::now() + after, schedule.added);
            schedule.due.insert(key, later);
        }
        self.redeliveries.changed.notify_one();
        self.spawn_runner(pool);
    }

    /// If the runtime of the schedule's task has shut down, it goes on in the present one.
    pub(super) fn resume_redeliveries(self: &Arc<Self>, pool: &Arc<Pool>) {
        let is_suspended = &self.redeliveries.is_suspended;
        if is_suspended.load(Ordering::SeqCst) && is_suspended.swap(false, Ordering::SeqCst) {
            self.spawn_runner(pool);
        }
    }

    /// Spawns the runner, if something is scheduled and no runner exists.
    fn spawn_runner(self: &Arc<Self>, pool: &Arc<Pool>) {
        let abort = {
            let mut schedule = lock(&self.redeliveries.schedule);
            if schedule.is_closed || schedule.due.is_empty() || schedule.task.is_some() {
                return;
            }
            Arc::clone(schedule.task.insert(Arc::default()))
        };
        let runner = Runner { persister: Arc::clone(self), pool: Arc::clone(pool), exited: false };
        // With no runtime the runner is dropped, and a later call spawns one.
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
            let mut jobs = Vec::new();
            for later in due.into_values() {
                match later {
                    Later::End(generation, end) => jobs.push(Job::End(generation, end)),
                    // What has started or ended meanwhile has been held for that.
                    Later::Hold(generation) if !generation.waits_for_record() => {}
                    Later::Hold(generation) => {
                        self.persister.find_again_or_create(&generation);
                        self.persister.outbox.push(OutboxEntry::Hold(generation));
                    }
                    Later::Postponed(id) => self.persister.requeue_postponed(&id),
                }
            }
            self.persister.tracker.queue.push_all(jobs);
            self.persister.wake_writer(&self.pool);
            self.pool.wake_workers();
        }
        next
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if !self.exited {
            let redeliveries = &self.persister.redeliveries;
            lock(&redeliveries.schedule).task = None;
            redeliveries.is_suspended.store(true, Ordering::SeqCst);
        }
    }
}

/// Whether the end has a record in the registry, or is to have one.
fn has_record(generation: &Generation) -> bool {
    !matches!(generation.record_state(), RecordState::None | RecordState::TakenOver)
}

/// The calls of the hooks of this end so far; `None` if none was counted.
fn attempts_before(generation: &Generation, end: &PendingEnd) -> Option<u32> {
    let redelivered = end.redelivery.as_ref().map(|redelivery| redelivery.attempts);
    redelivered.or_else(|| generation.recovered_attempts())
}

fn backoff(attempts: u32) -> Duration {
    BACKOFF.saturating_mul(1 << (attempts - 1).min(16)).min(MAX_BACKOFF)
}
