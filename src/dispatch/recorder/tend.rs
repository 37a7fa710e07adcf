//! Keeping the lease, and taking over what others have left behind.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{Breaker, CALL_TIMEOUT, Pool, Recorder, TAKE_OVER_TIMEOUT};
use crate::{
    observability::plain,
    registry::{Orphan, RegistryError},
    session::Phase,
    sync::Ordering,
    tracker::{
        Recovery,
        clock::{NEVER, Nanos, nanos},
    },
};

/// Ends that are taken over in one go.
const AT_A_TIME: usize = 256;

/// After so long a time without a driver it is said that there is none.
const UNTENDED: Duration = Duration::from_secs(30);

/// How often an end is delivered at most.
const TRIES: u32 = 5;

impl Pool {
    /// Asks a registry that was left alone whether it is back. The caller puts the backlog into the ledger.
    pub(super) async fn try_again(&self, io: &mut Breaker) -> Result<(), RegistryError> {
        let Some(recorder) = &self.recorder else { return Ok(()) };
        let limit = self.time_for_io().unwrap_or(CALL_TIMEOUT);
        match Recorder::call(limit, recorder.registry.beat()).await {
            Ok(()) => {}
            Err(RegistryError::Fenced) => self.fenced(),
            Err(RegistryError::Forgotten) => self.forgotten(),
            Err(error) => {
                recorder.degrade(&error);
                io.trip(self.tracker.clock.now());
                return Err(error);
            }
        }
        recorder.restored(io);
        self.tracker.hold_the_rest();
        Ok(())
    }

    /// Renews the lease.
    async fn beat(&self, io: &mut Breaker) -> Result<(), RegistryError> {
        let (Some(recorder), Some(ledger)) = (&self.recorder, &self.tracker.ledger) else { return Ok(()) };
        let now = self.tracker.clock.now();
        recorder.tended.store(now.max(1), Ordering::SeqCst);
        if io.is_shut(now) {
            return Err(RegistryError::unavailable("left alone for a moment, after an error"));
        }
        if io.retry_at.is_some() {
            self.try_again(io).await?;
            ledger.put_back(std::mem::take(&mut io.backlog));
            return Ok(());
        }
        let limit = self.time_for_io();
        match Recorder::call(limit.unwrap_or(CALL_TIMEOUT), recorder.registry.beat()).await {
            Ok(()) => {}
            Err(RegistryError::Fenced) => self.fenced(),
            Err(RegistryError::Forgotten) => self.forgotten(),
            // In a drain the writer finds out by itself, and tries more than once.
            Err(error) if limit.is_some() => return Err(error),
            Err(error) => {
                recorder.degrade(&error);
                io.trip(self.tracker.clock.now());
                return Err(error);
            }
        }
        recorder.restored(io);
        Ok(())
    }

    /// One round of what the driver owes the registry: the lease, and what others have left behind.
    pub(crate) async fn tend(self: &Arc<Self>) {
        let Some(recorder) = &self.recorder else { return };
        let recovery = Arc::new(Recovery::default());
        {
            let mut io = recorder.io.lock().await;
            let taking_over = self.tracker.phase() < Phase::Closing;
            if self.beat(&mut io).await.is_ok() && taking_over {
                // An error has been said; there will be another round.
                let _ = self.take_over(&mut io, &recovery).await;
            }
        }
        let found = recovery.found.load(Ordering::SeqCst);
        if found > 0 {
            tracing::info!(name: "session-take-over", found, "ends of processes that are gone are delivered here");
        }
        self.kick();
    }

    /// Whether the last round is so long ago that nobody can be seeing to it.
    pub(crate) fn is_untended(&self) -> bool {
        let Some(recorder) = &self.recorder else { return false };
        let now = self.tracker.clock.now();
        now.saturating_sub(recorder.tended.load(Ordering::SeqCst)) > 2 * Self::period(recorder)
    }

    /// Without a driver, the writer does its work.
    pub(super) async fn tend_if_overdue(self: &Arc<Self>) {
        if self.is_untended() {
            // Whoever has built the handle a moment ago may still be about to poll.
            if let Some(recorder) = self.recorder.as_ref().filter(|_| self.tracker.clock.now() > nanos(UNTENDED)) {
                recorder.warned.call_once(|| {
                    tracing::warn!(
                        name: "session-registry-undriven",
                        "there is a session registry, and nobody polls `shutdown_on` or `finish`: its lease is renewed only \
                         as sessions begin and end; said once",
                    );
                });
            }
            self.tend().await;
        }
    }

    /// Whether this round is still to be done: several drivers share the work.
    pub(crate) fn is_round_due(&self) -> bool {
        let Some(recorder) = &self.recorder else { return false };
        let tended = recorder.tended.load(Ordering::SeqCst);
        tended == 0 || self.tracker.clock.now().saturating_sub(tended) >= Self::period(recorder) / 2
    }

    fn period(recorder: &Recorder) -> Nanos {
        nanos(recorder.beat_every())
    }

    /// Takes over everything that there is. Says how many ends were given up, after too many tries.
    async fn take_over(&self, io: &mut Breaker, recovery: &Arc<Recovery>) -> Result<usize, RegistryError> {
        let Some(recorder) = &self.recorder else { return Ok(0) };
        let mut given_up = 0;
        loop {
            let orphans = match Recorder::call(TAKE_OVER_TIMEOUT, recorder.registry.take_over(AT_A_TIME)).await {
                Ok(orphans) => orphans,
                Err(RegistryError::Fenced) => {
                    self.fenced();
                    continue;
                }
                Err(RegistryError::Forgotten) => {
                    self.forgotten();
                    continue;
                }
                Err(error) => {
                    recorder.degrade(&error);
                    io.trip(self.tracker.clock.now());
                    return Err(error);
                }
            };
            if orphans.is_empty() {
                return Ok(given_up);
            }
            for orphan in orphans {
                if orphan.tries > TRIES {
                    given_up += 1;
                    self.give_up(recorder, &orphan);
                } else {
                    self.tracker.adopt(orphan, recovery);
                }
            }
        }
    }

    fn give_up(&self, recorder: &Recorder, orphan: &Orphan) {
        recorder.meter.given_up();
        tracing::error!(
            name: "session-end-given-up",
            session = %orphan.record.session.id.redacted(),
            event_id = %orphan.record.event_id,
            reason = %orphan.end.reason,
            "this session_end was tried {TRIES} times, and each time its process died; it is given up",
        );
        self.tracker.forget_orphan(orphan);
    }

    /// Takes over what there is and waits until it is delivered, not beyond `deadline`.
    pub(crate) async fn recover(self: &Arc<Self>, deadline: Option<Instant>) -> Recovered {
        let recovery = Arc::new(Recovery::default());
        let Some(recorder) = &self.recorder else {
            return Recovered { recovery, given_up: 0, error: None };
        };
        let found = async {
            let mut io = recorder.io.lock().await;
            self.beat(&mut io).await?;
            self.take_over(&mut io, &recovery).await
        };
        let far = || Instant::now() + Duration::from_secs(86_400 * 365);
        let deadline = deadline.unwrap_or_else(far);
        let found = timeout_at(deadline, found)
            .await
            .unwrap_or_else(|_| Err(RegistryError::unavailable("the time for the recovery was over")));
        self.kick();
        let delivered = async {
            loop {
                let over = recovery.over.notified();
                tokio::pin!(over);
                over.as_mut().enable();
                if recovery.left() == 0 {
                    break;
                }
                over.await;
            }
        };
        let _ = timeout_at(deadline, delivered).await;
        let (given_up, error) = match found {
            Ok(given_up) => (given_up, None),
            Err(error) => (0, Some(error)),
        };
        Recovered { recovery, given_up, error }
    }

    /// Gives the lease back; the last call.
    pub(crate) async fn leave_registry(&self, limit: Duration) {
        let Some(recorder) = &self.recorder else { return };
        let leaving = async {
            // Nobody comes in again after this.
            recorder.io.lock().await.retry_at = Some(NEVER);
            recorder.registry.leave().await
        };
        if let Err(error) = Recorder::call(limit, leaving).await {
            tracing::warn!(
                name: "session-registry-not-left",
                error = %plain(&error),
                "could not give back the lease in the session registry; what is left is found when it is over",
            );
        }
    }
}

/// What a recovery came to.
pub(crate) struct Recovered {
    pub(crate) recovery: Arc<Recovery>,
    pub(crate) given_up: usize,
    pub(crate) error: Option<RegistryError>,
}
