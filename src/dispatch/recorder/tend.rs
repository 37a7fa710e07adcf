//! Keeping the lease, and taking over what others have left behind.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{Breaker, CALL_TIMEOUT, Pool, Recorder, TAKE_OVER_TIMEOUT};
use crate::{
    observability::escape_controls,
    registry::{Orphan, RegistryError},
    session::Phase,
    sync::Ordering,
    tracker::{
        Outbox, Recovery,
        clock::{NEVER, Nanos, nanos},
    },
};

/// Ends that are taken over in one go.
const RECOVERY_BATCH: usize = 256;

/// After so long a time without a driver it is said that there is none.
const UNDRIVEN_AFTER: Duration = Duration::from_secs(30);
/// How many times in a row that is done in a round of the driver, before it looks after other things.
const BATCHES_PER_ROUND: usize = 64;

/// How often in a row a lost lease, or lost records, are taken for an answer.
pub(super) const MAX_LEASE_RETRIES: u32 = 10;

/// How often an end is delivered at most.
const MAX_DELIVERY_ATTEMPTS: u32 = 5;

impl Pool {
    /// Asks a registry that was left alone whether it is back. If so, the caller [makes up](Self::make_up) for what it has
    /// missed.
    pub(super) async fn try_again(&self, io: &mut Breaker) -> Result<(), RegistryError> {
        let Some(recorder) = &self.recorder else { return Ok(()) };
        let limit = self.time_for_io().unwrap_or(CALL_TIMEOUT);
        match Recorder::call(limit, recorder.registry.heartbeat()).await {
            Ok(()) => {}
            Err(RegistryError::Fenced) => self.fenced(),
            Err(RegistryError::DataLost) => self.forgotten(),
            Err(error) => {
                recorder.degrade(&error);
                io.trip(self.tracker.clock.now());
                return Err(error);
            }
        }
        io.retry_at = None;
        io.missed = io.backlog.len();
        self.tracker.rehold_unrecorded();
        // It answers; whether it takes changes too, the first ones will tell.
        if io.backlog.is_empty() && self.tracker.outbox.as_ref().is_none_or(Outbox::is_empty) {
            recorder.restored(io);
        }
        Ok(())
    }

    /// Renews the lease.
    async fn heartbeat(&self, io: &mut Breaker) -> Result<(), RegistryError> {
        let (Some(recorder), Some(outbox)) = (&self.recorder, &self.tracker.outbox) else { return Ok(()) };
        let now = self.tracker.clock.now();
        recorder.last_heartbeat.store(now.max(1), Ordering::SeqCst);
        if io.is_shut(now) {
            return Err(RegistryError::unavailable("left alone for a moment, after an error"));
        }
        if io.retry_at.is_some() {
            self.try_again(io).await?;
            self.replay_backlog(io);
            return Ok(());
        }
        let limit = self.time_for_io();
        match Recorder::call(limit.unwrap_or(CALL_TIMEOUT), recorder.registry.heartbeat()).await {
            Ok(()) => {}
            Err(RegistryError::Fenced) => self.fenced(),
            Err(RegistryError::DataLost) => self.forgotten(),
            // In a drain the writer finds out by itself, and tries more than once.
            Err(error) if limit.is_some() => return Err(error),
            Err(error) => {
                recorder.degrade(&error);
                io.trip(self.tracker.clock.now());
                return Err(error);
            }
        }
        self.reclaim_deferred();
        if outbox.is_empty() {
            recorder.restored(io);
        }
        Ok(())
    }

    /// One round of what the driver owes the registry: the lease, and what others have left behind.
    pub(crate) async fn heartbeat_round(self: &Arc<Self>) {
        self.heartbeat_step(BATCHES_PER_ROUND).await;
    }

    async fn heartbeat_step(self: &Arc<Self>, goes: usize) {
        let Some(recorder) = &self.recorder else { return };
        let recovery = Arc::new(Recovery::default());
        let mut goes = 0..goes;
        let goes_on = || goes.next().is_some() && self.tracker.phase() < Phase::Closing;
        // An error has been said; there will be another round.
        let _ = self.claim_orphans(recorder, &recovery, goes_on).await;
        let found = recovery.found.load(Ordering::SeqCst);
        if found > 0 {
            tracing::info!(name: "session-recovered", found, "ends of processes that are gone are delivered here");
        }
        self.wake();
    }

    /// A round each period, for as long as it is polled.
    pub(crate) async fn drive_registry(self: &Arc<Self>) -> Infallible {
        let Some(recorder) = &self.recorder else { return std::future::pending().await };
        loop {
            if self.is_heartbeat_due() {
                self.heartbeat_round().await;
            }
            sleep(recorder.heartbeat_interval()).await;
        }
    }

    /// Whether the last round is so long ago that nobody can be seeing to it.
    pub(crate) fn is_undriven(&self) -> bool {
        let Some(recorder) = &self.recorder else { return false };
        let now = self.tracker.clock.now();
        now.saturating_sub(recorder.last_heartbeat.load(Ordering::SeqCst)) > 2 * Self::period(recorder)
    }

    /// Without a driver, the writer does its work, a little of it: it has things to write.
    pub(super) async fn heartbeat_if_overdue(self: &Arc<Self>) {
        if self.is_undriven() {
            // Whoever has built the handle a moment ago may still be about to poll.
            if let Some(recorder) = self.recorder.as_ref().filter(|_| self.tracker.clock.now() > nanos(UNDRIVEN_AFTER))
            {
                recorder.warned.call_once(|| {
                    tracing::warn!(
                        name: "session-registry-undriven",
                        "there is a session registry, and nobody polls `shutdown_on` or `finish`: its lease is renewed only \
                         as sessions begin and end; said once",
                    );
                });
            }
            self.heartbeat_step(1).await;
        }
    }

    /// Whether this round is still to be done: several drivers share the work.
    pub(crate) fn is_heartbeat_due(&self) -> bool {
        let Some(recorder) = &self.recorder else { return false };
        let last_heartbeat = recorder.last_heartbeat.load(Ordering::SeqCst);
        last_heartbeat == 0 || self.tracker.clock.now().saturating_sub(last_heartbeat) >= Self::period(recorder) / 2
    }

    fn period(recorder: &Recorder) -> Nanos {
        nanos(recorder.heartbeat_interval())
    }

    /// Renews the lease, and takes over what there is for as long as it `goes_on`. The lock is free in between: births
    /// do not wait for the ends of others.
    async fn claim_orphans(
        self: &Arc<Self>,
        recorder: &Recorder,
        recovery: &Arc<Recovery>,
        mut goes_on: impl FnMut() -> bool,
    ) -> Result<(), RegistryError> {
        let mut is_first = true;
        loop {
            let mut io = recorder.io.lock().await;
            if std::mem::take(&mut is_first) || self.is_heartbeat_due() {
                self.heartbeat(&mut io).await?;
            }
            if !goes_on() || self.take_over_some(recorder, &mut io, recovery).await? == 0 {
                return Ok(());
            }
            drop(io);
            self.wake();
            tokio::task::yield_now().await;
        }
    }

    async fn take_over_some(
        &self,
        recorder: &Recorder,
        io: &mut Breaker,
        recovery: &Arc<Recovery>,
    ) -> Result<usize, RegistryError> {
        let mut setbacks = 0;
        let orphans = loop {
            match Recorder::call(TAKE_OVER_TIMEOUT, recorder.registry.claim_orphans(RECOVERY_BATCH)).await {
                Ok(orphans) => break orphans,
                Err(RegistryError::Fenced) if setbacks < MAX_LEASE_RETRIES => self.fenced(),
                Err(RegistryError::DataLost) if setbacks < MAX_LEASE_RETRIES => self.forgotten(),
                Err(error) => {
                    recorder.degrade(&error);
                    io.trip(self.tracker.clock.now());
                    return Err(error);
                }
            }
            setbacks += 1;
        };
        let n = orphans.len();
        for orphan in orphans {
            if orphan.attempts > MAX_DELIVERY_ATTEMPTS {
                recovery.given_up.fetch_add(1, Ordering::SeqCst);
                self.give_up(recorder, &orphan);
            } else {
                self.tracker.adopt(orphan, recovery);
            }
        }
        Ok(n)
    }

    fn give_up(&self, recorder: &Recorder, orphan: &Orphan) {
        recorder.meter.given_up();
        tracing::error!(
            name: "session-end-given-up",
            session = %orphan.record.session.id.redacted(),
            generation = %orphan.record.generation,
            reason = %orphan.end.reason,
            "this session_end was tried {MAX_DELIVERY_ATTEMPTS} times, and each time its process died; it is given up",
        );
        self.tracker.forget_orphan(orphan);
    }

    /// Takes over what there is and waits until it is delivered, not beyond `deadline`.
    pub(crate) async fn recover(self: &Arc<Self>, deadline: Option<Instant>) -> Recovered {
        let recovery = Arc::new(Recovery::default());
        let Some(recorder) = &self.recorder else {
            return Recovered { recovery, error: None };
        };
        let found = self.claim_orphans(recorder, &recovery, || true);
        let far = || Instant::now() + Duration::from_secs(86_400 * 365);
        let deadline = deadline.unwrap_or_else(far);
        let found = timeout_at(deadline, found)
            .await
            .unwrap_or_else(|_| Err(RegistryError::unavailable("the time for the recovery was over")));
        self.wake();
        let delivered = async {
            loop {
                let over = recovery.over.notified();
                tokio::pin!(over);
                over.as_mut().enable();
                if recovery.running() == 0 {
                    break;
                }
                over.await;
            }
        };
        tokio::select! {
            biased;
            _ = timeout_at(deadline, delivered) => {}
            never = self.drive_registry() => match never {},
        }
        Recovered { recovery, error: found.err() }
    }

    /// Gives the lease back; the last call.
    pub(crate) async fn leave_registry(&self, limit: Duration) {
        let Some(recorder) = &self.recorder else { return };
        let leaving = async {
            // Nobody comes in again after this.
            recorder.io.lock().await.retry_at = Some(NEVER);
            recorder.registry.release_lease().await
        };
        if let Err(error) = Recorder::call(limit, leaving).await {
            tracing::warn!(
                name: "session-registry-lease-not-after",
                error = %escape_controls(&error),
                "could not give back the lease in the session registry; what is left is found when it is over",
            );
        }
    }
}

/// What a recovery came to.
pub(crate) struct Recovered {
    pub(crate) recovery: Arc<Recovery>,
    pub(crate) error: Option<RegistryError>,
}
