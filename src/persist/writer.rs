//! The writer: a task that writes the outbox to the registry. It exists only while the outbox has entries.

use std::{sync::Arc, time::Duration};

use super::{
    CALL_TIMEOUT, Calls, Persister,
    breaker::MAX_ATTEMPTS_IN_DRAIN,
    call,
    heartbeat::{MAX_CONFLICTS, MAX_LEASE_RETRIES},
    translate::{Next, apply_answer, apply_degraded, apply_skipped, change_of},
};
use tokio::time::Instant;

use crate::{
    hooks::Pool,
    observability::error_chain,
    registry::{Applied, Change, RegistryError},
    sync::lock,
    tracker::Queued,
};

/// The most outbox entries that one call writes.
const ENTRIES_PER_CALL: usize = 1000;

/// The same with a transaction hook, whose calls take a part of the call's time.
const ENTRIES_PER_CALL_OF_HOOK: usize = 64;

pub(super) struct Writer {
    persister: Arc<Persister>,
    pool: Arc<Pool>,
    /// The entries of the running call. The writer's drop puts them back.
    group: Vec<Queued>,
    exited: bool,
    /// It has not been polled yet.
    is_starting: bool,
}

impl Writer {
    pub(super) fn new(persister: &Arc<Persister>, pool: &Arc<Pool>) -> Self {
        let (persister, pool) = (Arc::clone(persister), Arc::clone(pool));
        Self { persister, pool, group: Vec::new(), exited: false, is_starting: true }
    }

    pub(super) async fn run(mut self) {
        self.is_starting = false;
        let persister = Arc::clone(&self.persister);
        loop {
            persister.heartbeat_if_undriven(&self.pool).await;
            {
                let mut calls = persister.calls.lock().await;
                // Under the lock: another call may put back what comes before.
                if !self.take() {
                    return;
                }
                self.write(&mut calls).await;
            }
            self.pool.wake_workers();
            persister.heartbeat_if_expected(&self.pool).await;
        }
    }

    /// Takes the next group. Returns false if there is none.
    fn take(&mut self) -> bool {
        let mut writer = lock(&self.persister.writer);
        let max = if self.persister.transaction_hook.is_some() { ENTRIES_PER_CALL_OF_HOOK } else { ENTRIES_PER_CALL };
        self.group = self.persister.take_group(max);
        if self.group.is_empty() {
            // In the same critical section: an entry that is pushed later spawns a new writer.
            *writer = None;
            self.exited = true;
            self.persister.written.notify_waiters();
        }
        !self.group.is_empty()
    }

    async fn write(&mut self, calls: &mut Calls) {
        let persister = Arc::clone(&self.persister);
        if calls.breaker.retry_at.is_some() {
            let restored = persister.may_call(calls) && persister.reconnect(calls).await.is_ok();
            if !restored {
                return self.apply_degraded();
            }
            // Missed changes are written first.
            persister.outbox.put_back(std::mem::take(&mut self.group));
            return persister.replay_backlog();
        }
        let mut attempts = 0;
        loop {
            let changes = self.group.iter().map(|queued| change_of(&persister, &queued.entry));
            let changes: Vec<_> = changes.collect();
            let is_asked: Vec<_> = changes.iter().map(Option::is_some).collect();
            let changes: Vec<_> = changes.into_iter().flatten().collect();
            if changes.is_empty() {
                return self.apply_answers(&[], &is_asked);
            }
            let error = match self.apply(changes).await {
                Ok(answers) => {
                    persister.restore(calls);
                    return self.apply_answers(&answers, &is_asked);
                }
                Err(error) => error,
            };
            attempts += 1;
            match error {
                RegistryError::Conflict if attempts < MAX_CONFLICTS => {}
                RegistryError::Fenced if attempts < MAX_LEASE_RETRIES => persister.on_fenced(),
                RegistryError::DataLost if attempts < MAX_LEASE_RETRIES => persister.on_data_lost(),
                RegistryError::Unavailable(_)
                    if attempts < MAX_ATTEMPTS_IN_DRAIN && persister.call_timeout_in_drain().is_some() =>
                {
                    tokio::time::sleep(Duration::from_millis(10 << attempts)).await;
                }
                error => {
                    persister.degrade(&error_chain(&error));
                    calls.breaker.trip(persister.tracker.clock.now());
                    return self.apply_degraded();
                }
            }
        }
    }

    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        let n = changes.len();
        let limit = self.persister.call_timeout_in_drain().unwrap_or(CALL_TIMEOUT);
        // Before the limit of `call` begins: what is given up there is past its deadline.
        let deadline = std::time::Instant::now() + limit;
        let began = Instant::now();
        let answers = call(limit, self.persister.registry.apply_before(changes, deadline)).await?;
        self.persister.on_call(began.elapsed());
        if answers.len() == n {
            Ok(answers)
        } else {
            Err(RegistryError::unavailable(format!("{} answers to {n} changes", answers.len())))
        }
    }

    /// Applies one answer to each entry that was asked about.
    fn apply_answers(&mut self, answers: &[Applied], is_asked: &[bool]) {
        let mut answers = answers.iter();
        for (queued, is_asked) in std::mem::take(&mut self.group).into_iter().zip(is_asked) {
            let next = match is_asked.then(|| answers.next()).flatten() {
                Some(answer) => apply_answer(&self.persister, queued, answer),
                None => apply_skipped(&self.persister.tracker, queued.entry),
            };
            match next {
                Next::Nothing => {}
                Next::HoldLater(generation) => self.persister.hold_later(&self.pool, generation),
                Next::Postpone(end) => self.persister.postpone(&self.pool, end),
                Next::Committed(called, error) => self.pool.on_committed(*called, error),
            }
        }
    }

    fn apply_degraded(&mut self) {
        for queued in std::mem::take(&mut self.group) {
            apply_degraded(&self.persister, queued);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.exited {
            let mut writer = lock(&self.persister.writer);
            self.persister.outbox.put_back(std::mem::take(&mut self.group));
            *writer = None;
            self.persister.written.notify_waiters();
        }
        if self.is_starting {
            self.persister.tasks.drop_runtime();
        }
    }
}
