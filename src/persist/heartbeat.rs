//! The lease: heartbeats, and the recovery of ends that dead processes left.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{CALL_TIMEOUT, Calls, Persister, call};
use crate::{
    hooks::Pool,
    observability::{error_chain, escape_controls},
    registry::{Orphan, RegistryError},
    session::Phase,
    sync::{Ordering, wait_for},
    tracker::{
        Recovery,
        clock::{NEVER, Nanos, nanos},
    },
};

/// Orphans of one call.
const RECOVERY_BATCH: usize = 256;

/// How many of these calls a heartbeat makes in a row, before the driver does other work.
const BATCHES_PER_ROUND: usize = 64;

/// How long one of these calls may take. No request waits for it.
const RECOVERY_CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// After this time without a driver a warning is logged.
const UNDRIVEN_AFTER: Duration = Duration::from_secs(30);

/// How often in a row a lost lease, or lost records, are accepted as an answer.
pub(super) const MAX_LEASE_RETRIES: u32 = 10;

/// How often an end is delivered at most.
const MAX_DELIVERY_ATTEMPTS: u32 = 5;

/// The outcome of [`Persister::recover`].
pub(crate) struct Recovered {
    pub(crate) recovery: Arc<Recovery>,
    pub(crate) error: Option<RegistryError>,
}

impl Persister {
    /// A heartbeat each interval, for as long as it is polled.
    pub(crate) async fn drive(&self, pool: &Arc<Pool>) -> Infallible {
        loop {
            if self.is_heartbeat_due() {
                self.heartbeat_round(pool, BATCHES_PER_ROUND).await;
            }
            sleep(self.heartbeat_interval).await;
        }
    }

    /// Without a driver, the writer sends the heartbeat, with one batch of recovery.
    pub(super) async fn heartbeat_if_undriven(&self, pool: &Arc<Pool>) {
        let now = self.tracker.clock.now();
        let silence = now.saturating_sub(self.last_heartbeat.load(Ordering::SeqCst));
        if silence <= 2 * self.interval() {
            return;
        }
        // A handle that was built a moment ago may still be about to be driven.
        if now > nanos(UNDRIVEN_AFTER) {
            self.undriven.call_once(|| {
                tracing::warn!(
                    name: "session-registry-undriven",
                    "there is a session registry, and no `shutdown_on` or `finish` future is being polled: its lease is renewed only \
                     when sessions start and end (logged once)",
                );
            });
        }
        self.heartbeat_round(pool, 1).await;
    }

    /// Whether this heartbeat is still to be sent: several drivers share the work.
    fn is_heartbeat_due(&self) -> bool {
        let last = self.last_heartbeat.load(Ordering::SeqCst);
        last == 0 || self.tracker.clock.now().saturating_sub(last) >= self.interval() / 2
    }

    fn interval(&self) -> Nanos {
        nanos(self.heartbeat_interval)
    }

    /// Renews the lease, and recovers up to this many batches of orphans.
    async fn heartbeat_round(&self, pool: &Arc<Pool>, batches: usize) {
        let recovery = Arc::new(Recovery::default());
        let mut batches = 0..batches;
        let goes_on = || batches.next().is_some() && self.tracker.phase() < Phase::Closing;
        // An error has been logged, and the next heartbeat tries again.
        let _ = self.claim_orphans(pool, &recovery, goes_on).await;
        let found = recovery.found.load(Ordering::SeqCst);
        if found > 0 {
            tracing::info!(name: "session-recovered", found, "delivering the pending session_ends of dead processes");
        }
        pool.wake();
    }

    /// Renews the lease, and claims orphans for as long as there are any and it `goes_on`. The lock is free in between, so that
    /// starts do not wait for it.
    async fn claim_orphans(
        &self,
        pool: &Arc<Pool>,
        recovery: &Arc<Recovery>,
        mut goes_on: impl FnMut() -> bool,
    ) -> Result<(), RegistryError> {
        let mut is_first = true;
        loop {
            let mut calls = self.calls.lock().await;
            if std::mem::take(&mut is_first) || self.is_heartbeat_due() {
                self.heartbeat(&mut calls).await?;
            }
            if !goes_on() || self.claim_batch(&mut calls, recovery).await? == 0 {
                return Ok(());
            }
            drop(calls);
            pool.wake();
            tokio::task::yield_now().await;
        }
    }

    async fn heartbeat(&self, calls: &mut Calls) -> Result<(), RegistryError> {
        let now = self.tracker.clock.now();
        self.last_heartbeat.store(now.max(1), Ordering::SeqCst);
        if calls.breaker.is_open(now) {
            return Err(RegistryError::unavailable("not called for a moment, after an error"));
        }
        if calls.breaker.retry_at.is_some() {
            self.reconnect(calls).await?;
            self.replay_backlog(calls);
            return Ok(());
        }
        let limit = self.call_timeout_in_drain();
        match call(limit.unwrap_or(CALL_TIMEOUT), self.registry.heartbeat()).await {
            Ok(()) => {}
            Err(RegistryError::Fenced) => self.on_fenced(),
            Err(RegistryError::DataLost) => self.on_data_lost(),
            // In a drain the writer finds out by itself, and tries more than once.
            Err(error) if limit.is_some() => return Err(error),
            Err(error) => return Err(self.trip(calls, error)),
        }
        self.reclaim_deferred();
        if self.outbox.is_empty() {
            self.restore(calls);
        }
        Ok(())
    }

    /// Asks a registry that was left alone whether it is back. Then the caller [replays](Self::replay_backlog) what it has missed.
    pub(super) async fn reconnect(&self, calls: &mut Calls) -> Result<(), RegistryError> {
        let limit = self.call_timeout_in_drain().unwrap_or(CALL_TIMEOUT);
        match call(limit, self.registry.heartbeat()).await {
            Ok(()) => {}
            Err(RegistryError::Fenced) => self.on_fenced(),
            Err(RegistryError::DataLost) => self.on_data_lost(),
            Err(error) => return Err(self.trip(calls, error)),
        }
        calls.breaker.retry_at = None;
        calls.backlog.replayed = calls.backlog.len();
        self.tracker.rehold_unrecorded();
        // It answers. Whether it takes changes, the next ones will tell.
        if calls.backlog.len() == 0 && self.outbox.is_empty() {
            self.restore(calls);
        }
        Ok(())
    }

    fn trip(&self, calls: &mut Calls, error: RegistryError) -> RegistryError {
        self.degrade(&error_chain(&error));
        calls.breaker.trip(self.tracker.clock.now());
        error
    }

    /// Returns how many orphans were claimed.
    async fn claim_batch(&self, calls: &mut Calls, recovery: &Arc<Recovery>) -> Result<usize, RegistryError> {
        let mut retries = 0;
        let orphans = loop {
            match call(RECOVERY_CALL_TIMEOUT, self.registry.claim_orphans(RECOVERY_BATCH)).await {
                Ok(orphans) => break orphans,
                Err(RegistryError::Fenced) if retries < MAX_LEASE_RETRIES => self.on_fenced(),
                Err(RegistryError::DataLost) if retries < MAX_LEASE_RETRIES => self.on_data_lost(),
                Err(error) => return Err(self.trip(calls, error)),
            }
            retries += 1;
        };
        let n = orphans.len();
        for orphan in orphans {
            if orphan.attempts > MAX_DELIVERY_ATTEMPTS {
                recovery.given_up.fetch_add(1, Ordering::SeqCst);
                self.give_up(&orphan);
            } else {
                self.tracker.deliver_orphan(orphan, recovery);
            }
        }
        Ok(n)
    }

    fn give_up(&self, orphan: &Orphan) {
        self.meter.given_up();
        tracing::error!(
            name: "session-end-given-up",
            session = %orphan.record.session.id.redacted(),
            generation = %orphan.record.generation,
            reason = %orphan.end.reason,
            "this session_end was claimed {MAX_DELIVERY_ATTEMPTS} times, and its process died each time; it is given up",
        );
        self.tracker.abandon(orphan);
    }

    /// Claims the orphans that there are and waits until their ends are delivered, not beyond `deadline`.
    pub(crate) async fn recover(&self, pool: &Arc<Pool>, deadline: Option<Instant>) -> Recovered {
        let recovery = Arc::new(Recovery::default());
        let found = self.claim_orphans(pool, &recovery, || true);
        let a_year = || Instant::now() + Duration::from_secs(86_400 * 365);
        let deadline = deadline.unwrap_or_else(a_year);
        let found = timeout_at(deadline, found)
            .await
            .unwrap_or_else(|_| Err(RegistryError::unavailable("the `recovery_timeout` is over")));
        pool.wake();
        tokio::select! {
            biased;
            () = wait_for(&recovery.progress, Some(deadline), || recovery.running() == 0) => {}
            never = self.drive(pool) => match never {},
        }
        Recovered { recovery, error: found.err() }
    }

    /// Gives the lease back; the last call.
    pub(crate) async fn release_lease(&self, limit: Duration) {
        let release = async {
            // The breaker stays open from here on.
            self.calls.lock().await.breaker.retry_at = Some(NEVER);
            self.registry.release_lease().await
        };
        if let Err(error) = call(limit, release).await {
            tracing::warn!(
                name: "session-registry-lease-not-released",
                error = %escape_controls(error_chain(&error)),
                "could not release the lease in the session registry; its sessions are recovered once it has expired",
            );
        }
    }
}
