//! The lease: heartbeats, and the recovery of ends that dead processes have not delivered.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    CALL_TIMEOUT, Calls, Persister, breaker::MAX_RETRY_BACKOFF, call, redelivery::MAX_ATTEMPTS, translate::apply_notice,
};
use crate::{
    hooks::Pool,
    observability::escape_controls,
    registry::{Heartbeat, Orphan, RegistryError},
    session::Phase,
    sync::{Ordering, wait_for},
    tracker::{
        Recovery,
        clock::{NEVER, Nanos, nanos},
    },
};

/// The most orphans of one call.
const RECOVERY_BATCH: usize = 500;

/// The most such calls after one heartbeat.
const BATCHES_PER_ROUND: usize = 64;

/// The time limit of one such call. No request waits for it.
const RECOVERY_CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A warning is logged if the handle has no driver after this time.
const UNDRIVEN_AFTER: Duration = Duration::from_secs(30);

/// After this many answers `Fenced` or `DataLost` in a row, the registry counts as unavailable.
pub(super) const MAX_LEASE_RETRIES: u32 = 10;

/// After this many answers `Conflict` in a row, the registry counts as unavailable.
pub(super) const MAX_CONFLICTS: u32 = 10;

/// The outcome of [`Persister::recover`].
pub(crate) struct Recovered {
    pub(crate) recovery: Arc<Recovery>,
    pub(crate) error: Option<RegistryError>,
}

impl Persister {
    /// Sends a heartbeat each interval while it is polled, and in an outage after each backoff: what was made in it is to be on record
    /// soon after it. Several drivers share the work.
    pub(crate) async fn drive(&self, pool: &Arc<Pool>) -> Infallible {
        loop {
            if self.is_heartbeat_due() {
                self.heartbeat_round(pool, BATCHES_PER_ROUND).await;
            }
            let interval = self.heartbeat_interval;
            sleep(if self.is_down() { interval.min(MAX_RETRY_BACKOFF) } else { interval }).await;
        }
    }

    /// Claims all orphans and waits until their ends are delivered, at most until `deadline`.
    pub(crate) async fn recover(&self, pool: &Arc<Pool>, deadline: Option<Instant>) -> Recovered {
        let recovery = Arc::new(Recovery::default());
        let may_continue = || match self.is_draining() {
            true => Err(RegistryError::unavailable("a drain has begun")),
            false => Ok(true),
        };
        let claimed = self.claim_orphans(pool, &recovery, may_continue);
        let in_a_year = || Instant::now() + Duration::from_secs(86_400 * 365);
        let deadline = deadline.unwrap_or_else(in_a_year);
        let claimed = timeout_at(deadline, claimed)
            .await
            .unwrap_or_else(|_| Err(RegistryError::unavailable("`recovery_timeout` has expired")));
        pool.wake();
        tokio::select! {
            biased;
            () = wait_for(&recovery.progress, Some(deadline), || recovery.running() == 0) => {}
            never = self.drive(pool) => match never {},
        }
        Recovered { recovery, error: claimed.err() }
    }

    /// Releases the lease. This is the last call of the registry.
    pub(crate) async fn release_lease(&self, limit: Duration) {
        let release = async {
            // The breaker stays open.
            self.calls.lock().await.breaker.retry_at = Some(NEVER);
            self.registry.release_lease().await
        };
        if let Err(error) = call(limit, release).await {
            tracing::warn!(
                name: "session-registry-lease-not-released",
                error = %escape_controls(&error),
                "could not release the lease in the session registry; its sessions are recovered once it has expired",
            );
        }
    }

    /// Without a driver, or before it has woken up, the writer sends the heartbeats, each with one batch of recovery.
    pub(super) async fn heartbeat_if_undriven(&self, pool: &Arc<Pool>) {
        let now = self.tracker.clock.now();
        if !self.is_heartbeat_overdue(now) {
            return;
        }
        // A new handle may not be driven yet.
        if now > nanos(UNDRIVEN_AFTER) {
            self.undriven.call_once(|| {
                tracing::warn!(
                    name: "session-registry-undriven",
                    "a session registry is set but no `shutdown_on` or `finish` future is being polled: its lease is \
                     renewed only when sessions start and end (logged once)",
                );
            });
        }
        self.heartbeat_round(pool, 1).await;
    }

    /// There are more notices than one heartbeat returns, and the writer has acknowledged these.
    pub(super) async fn heartbeat_if_expected(&self, pool: &Arc<Pool>) {
        if self.expects_notices.load(Ordering::SeqCst) && self.tracker.phase() < Phase::Closing {
            self.heartbeat_round(pool, 1).await;
        }
    }

    /// Sends a heartbeat to a registry whose breaker is open. On success the caller
    /// [replays](Self::replay_backlog) the backlog.
    pub(super) async fn reconnect(&self, calls: &mut Calls) -> Result<(), RegistryError> {
        let limit = self.call_timeout_in_drain().unwrap_or(CALL_TIMEOUT);
        match self.send_heartbeat(limit).await {
            Ok(answer) => self.on_heartbeat(answer),
            Err(RegistryError::Fenced) => self.on_fenced(),
            Err(RegistryError::DataLost) => self.on_data_lost(),
            Err(error) => return Err(self.trip(calls, error)),
        }
        calls.breaker.retry_at = None;
        calls.missed = self.backlog().len();
        self.tracker.rehold_unrecorded();
        // With changes to write, the registry counts as restored once it has applied them.
        if self.backlog().is_empty() && self.outbox.is_empty() {
            self.restore(calls);
        }
        Ok(())
    }

    /// One heartbeat. A conflict is tried again at once.
    async fn send_heartbeat(&self, limit: Duration) -> Result<Heartbeat, RegistryError> {
        let mut conflicts = 0;
        loop {
            match call(limit, self.registry.heartbeat()).await {
                Err(RegistryError::Conflict) if conflicts < MAX_CONFLICTS => conflicts += 1,
                answer => return answer,
            }
        }
    }

    fn on_heartbeat(&self, answer: Heartbeat) {
        let Heartbeat { notices, has_more, dead_letters } = answer;
        self.dead_letters.store(dead_letters, Ordering::SeqCst);
        self.meter.dead_letters(dead_letters);
        notices.into_iter().for_each(|notice| apply_notice(self, notice));
        if has_more {
            self.expect_notices();
        }
    }

    /// Renews the lease, and recovers up to this many batches of orphans.
    async fn heartbeat_round(&self, pool: &Arc<Pool>, batches: usize) {
        let recovery = Arc::new(Recovery::default());
        let mut batches = 0..batches;
        let may_continue = || Ok(batches.next().is_some() && self.tracker.phase() < Phase::Closing);
        // The error has been logged, and the next heartbeat retries.
        let _ = self.claim_orphans(pool, &recovery, may_continue).await;
        let found = recovery.found.load(Ordering::SeqCst);
        if found > 0 {
            tracing::info!(name: "session-recovered", found, "delivering the pending session_ends of dead processes");
        }
        pool.wake();
    }

    /// Renews the lease, and claims orphans while there are any and `may_continue` returns true. The lock is released
    /// between batches, so starts do not wait for all of them.
    async fn claim_orphans(
        &self,
        pool: &Arc<Pool>,
        recovery: &Arc<Recovery>,
        mut may_continue: impl FnMut() -> Result<bool, RegistryError>,
    ) -> Result<(), RegistryError> {
        let mut is_first = true;
        loop {
            let mut calls = self.calls.lock().await;
            if std::mem::take(&mut is_first) || self.is_heartbeat_due() {
                self.heartbeat(&mut calls).await?;
            }
            // After the first batch: the writer may have tripped it, or `finish` has released the lease.
            if calls.breaker.retry_at.is_some() {
                return Err(RegistryError::unavailable("the circuit breaker is open after an error"));
            }
            if !may_continue()? || self.is_recording_again() {
                return Ok(());
            }
            // After an empty answer there may be more, as the last heartbeat has said or the next one says.
            if self.claim_batch(&mut calls, recovery).await? == 0 && !self.expects_notices.load(Ordering::SeqCst) {
                return Ok(());
            }
            drop(calls);
            pool.wake();
            tokio::task::yield_now().await;
        }
    }

    async fn heartbeat(&self, calls: &mut Calls) -> Result<(), RegistryError> {
        let now = self.tracker.clock.now();
        self.note_standstill();
        self.last_heartbeat.store(now.max(1), Ordering::SeqCst);
        self.expects_notices.store(false, Ordering::SeqCst);
        if calls.breaker.is_open(now) {
            return Err(RegistryError::unavailable("the circuit breaker is open after an error"));
        }
        if calls.breaker.retry_at.is_some() {
            self.reconnect(calls).await?;
            self.reclaim_deliverable();
            self.replay_backlog();
            return Ok(());
        }
        let limit = self.call_timeout_in_drain();
        let began = Instant::now();
        match self.send_heartbeat(limit.unwrap_or(CALL_TIMEOUT)).await {
            Ok(answer) => {
                self.on_call(began.elapsed());
                self.on_heartbeat(answer);
            }
            Err(RegistryError::Fenced) => self.on_fenced(),
            Err(RegistryError::DataLost) => self.on_data_lost(),
            Err(error @ RegistryError::Conflict) => return Err(error),
            // In a drain the writer decides, after several attempts.
            Err(error) if limit.is_some() => return Err(error),
            Err(error) => return Err(self.trip(calls, error)),
        }
        self.reclaim_deliverable();
        if self.outbox.is_empty() {
            self.restore(calls);
        }
        Ok(())
    }

    /// Whether changes wait that the registry has lost. Until they are written, it may return ends that were delivered.
    fn is_recording_again(&self) -> bool {
        let is_written = || self.outbox.is_empty() && self.backlog().is_empty();
        if self.records_again.load(Ordering::SeqCst) && is_written() {
            self.records_again.store(false, Ordering::SeqCst);
        }
        self.records_again.load(Ordering::SeqCst)
    }

    /// Whether the last heartbeat is at least half an interval old. Otherwise another driver has sent this one.
    fn is_heartbeat_due(&self) -> bool {
        let last = self.last_heartbeat.load(Ordering::SeqCst);
        last == 0
            || self.expects_notices.load(Ordering::SeqCst)
            || self.is_down()
            || self.tracker.clock.now().saturating_sub(last) >= self.heartbeat_nanos() / 2
    }

    pub(super) fn is_heartbeat_overdue(&self, now: Nanos) -> bool {
        now.saturating_sub(self.last_heartbeat.load(Ordering::SeqCst)) > self.heartbeat_nanos() * 3 / 2
    }

    fn heartbeat_nanos(&self) -> Nanos {
        nanos(self.heartbeat_interval)
    }

    /// Returns how many orphans were claimed.
    async fn claim_batch(&self, calls: &mut Calls, recovery: &Arc<Recovery>) -> Result<usize, RegistryError> {
        let mut retries = 0;
        let orphans = loop {
            let limit = self.call_timeout_in_drain().unwrap_or(RECOVERY_CALL_TIMEOUT);
            match self.until_drain(call(limit, self.registry.claim_orphans(RECOVERY_BATCH))).await {
                Ok(orphans) => break orphans,
                Err(RegistryError::Conflict) if retries < MAX_CONFLICTS => {}
                Err(RegistryError::Fenced) if retries < MAX_LEASE_RETRIES => self.on_fenced(),
                Err(RegistryError::DataLost) if retries < MAX_LEASE_RETRIES => self.on_data_lost(),
                // In a drain the writer decides, after several attempts.
                Err(error) if self.is_draining() => return Err(error),
                Err(error) => return Err(self.trip(calls, error)),
            }
            retries += 1;
        };
        let n = orphans.len();
        let scheduled = self.scheduled_generations();
        for orphan in orphans {
            // Claimed before the registry has lost its records: this process delivers it again itself.
            if scheduled.contains(&orphan.record.generation) {
                continue;
            }
            if orphan.attempts >= MAX_ATTEMPTS {
                recovery.dead_letters.fetch_add(1, Ordering::SeqCst);
                let Orphan { record, end, attempts } = orphan;
                let error = format!("the process ended during each of {attempts} calls of a hook");
                self.make_dead_letter(record.session.id, record.generation, Some(end.reason), error);
            } else {
                self.tracker.take_over(orphan, recovery);
            }
        }
        Ok(n)
    }

    /// Drops a long call of the registry once a drain begins, which has no time for it.
    async fn until_drain<T>(&self, call: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistryError> {
        let is_long = !self.is_draining();
        tokio::select! {
            biased;
            answer = call => answer,
            () = wait_for(&self.drain_began, None, || self.is_draining()), if is_long => {
                Err(RegistryError::unavailable("a drain has begun"))
            }
        }
    }

    fn trip(&self, calls: &mut Calls, error: RegistryError) -> RegistryError {
        self.degrade(&error);
        calls.breaker.trip(self.tracker.clock.now());
        error
    }
}
