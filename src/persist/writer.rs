//! The writer: a task that writes the outbox to the registry. It exists only while the outbox has entries.

use std::{sync::Arc, time::Duration};

use super::{
    CALL_TIMEOUT, Calls, Persister,
    breaker::MAX_ATTEMPTS_IN_DRAIN,
    call,
    heartbeat::MAX_LEASE_RETRIES,
    translate::{apply_answers, apply_degraded, changes_of},
};
use crate::{
    hooks::Pool,
    observability::error_chain,
    registry::{Applied, Change, RegistryError},
    sync::lock,
    tracker::OutboxEntry,
};

/// The most outbox entries that one call writes.
const ENTRIES_PER_CALL: usize = 1000;

pub(super) struct Writer {
    persister: Arc<Persister>,
    pool: Arc<Pool>,
    /// The entries of the running call. The writer's drop puts them back.
    group: Vec<OutboxEntry>,
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
        while self.take() {
            persister.heartbeat_if_undriven(&self.pool).await;
            self.write(&mut *persister.calls.lock().await).await;
            self.pool.wake_workers();
        }
    }

    /// Takes the next group. Returns false if there is none.
    fn take(&mut self) -> bool {
        let mut writer = lock(&self.persister.writer);
        self.group = self.persister.outbox.take(ENTRIES_PER_CALL);
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
                return self.apply_degraded(calls, false);
            }
            // Missed changes are written first.
            persister.outbox.put_back(std::mem::take(&mut self.group));
            return persister.replay_backlog(calls);
        }
        let mut attempts = 0;
        loop {
            let (changes, counts) = self.changes();
            let is_asked = !changes.is_empty();
            let error = match self.apply(changes).await {
                Ok(answers) => {
                    if is_asked {
                        persister.restore(calls);
                    }
                    return self.apply_answers(&answers, &counts);
                }
                Err(error) => error,
            };
            attempts += 1;
            match error {
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
                    return self.apply_degraded(calls, true);
                }
            }
        }
    }

    /// The changes of the group, and the number of changes of each entry.
    fn changes(&self) -> (Vec<Change>, Vec<usize>) {
        let mut changes = Vec::with_capacity(self.group.len());
        let mut counts = Vec::with_capacity(self.group.len());
        for entry in &self.group {
            let before = changes.len();
            changes_of(&self.persister.tracker, entry, &mut changes);
            counts.push(changes.len() - before);
        }
        (changes, counts)
    }

    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let n = changes.len();
        let limit = self.persister.call_timeout_in_drain().unwrap_or(CALL_TIMEOUT);
        let answers = call(limit, self.persister.registry.apply(changes)).await?;
        if answers.len() == n {
            Ok(answers)
        } else {
            Err(RegistryError::unavailable(format!("{} answers to {n} changes", answers.len())))
        }
    }

    fn apply_answers(&mut self, answers: &[Applied], counts: &[usize]) {
        let mut answers = answers;
        for (entry, count) in std::mem::take(&mut self.group).into_iter().zip(counts) {
            let (own, rest) = answers.split_at(*count);
            apply_answers(&self.persister.tracker, &self.persister.outbox, entry, own);
            answers = rest;
        }
    }

    fn apply_degraded(&mut self, calls: &mut Calls, tried: bool) {
        for entry in std::mem::take(&mut self.group) {
            apply_degraded(&self.persister, &mut calls.backlog, entry, tried);
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
