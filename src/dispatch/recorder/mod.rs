//! The recorder: writes the outbox into the registry, group by group, and keeps the lease.
//!
//! * **One at a time**: every call of the registry is made under one lock, so what an error means for the sessions is
//!   settled before the next call.
//! * **Breaker**: a registry that is down or slow is left alone for a while. Until then everything goes on in memory:
//!   births do not wait, ends are delivered here, and what the registry has missed is made up for later.
//! * **Lease**: a `session_end` that is on record is delivered only while the lease certainly runs.

mod plan;
mod tend;
mod writer;

use std::{
    collections::VecDeque,
    sync::{Arc, Once, OnceLock},
    time::Duration,
};

use tokio::{sync::Notify, task::AbortHandle, time::timeout};

use self::writer::Writer;
use super::Pool;
use crate::{
    observability::{RegistryMeter, ReleaseCause, escape_controls},
    registry::{Durability, DynRegistry, RegistryError},
    sync::{AtomicU8, AtomicU64, Mutex, Ordering, lock},
    tracker::{
        Generation, OutboxEntry, PendingEnd, RecordState,
        clock::{Clock, Nanos},
    },
};

/// How long a birth waits for its record.
pub(crate) const START_WAIT: Duration = Duration::from_millis(250);

/// How long one call of the registry may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a take-over may, which has more to do, and for which nobody waits.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// For how long a registry that is down is left alone: at first, and at most.
const RETRY_BACKOFF: Duration = Duration::from_millis(250);
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(5);

/// How many missed changes, and how many withheld ends, are remembered for when the registry is back.
const BACKLOG: usize = 65_536;

pub(crate) struct Recorder {
    registry: Box<dyn DynRegistry>,
    heartbeat_interval: Duration,
    pub(crate) durability: Durability,
    /// What is on record when the registry is out of reach in a drain is left to whoever comes after us.
    hands_over: bool,
    io: tokio::sync::Mutex<Breaker>,
    writer: Mutex<Option<Arc<OnceLock<AbortHandle>>>>,
    /// Births do not wait.
    degraded: AtomicU8,
    /// How often it came to that.
    pub(crate) degradations: AtomicU64,
    meter: RegistryMeter,
    /// When the lease was last seen to.
    last_heartbeat: AtomicU64,
    /// It was said that nobody sees to it.
    warned: Once,
    /// Ends that are on record, and came due while the lease may have been over.
    withheld: Mutex<Vec<(Arc<Generation>, PendingEnd)>>,
    /// Told when there is nothing left to write.
    idle: Notify,
}

/// What is known of the registry's health.
struct Breaker {
    /// Until then it is left alone.
    retry_at: Option<Nanos>,
    pause: Duration,
    attempts_in_drain: u32,
    /// What it has missed.
    backlog: VecDeque<OutboxEntry>,
    dropped: u64,
    /// How much it was when it was last made up for.
    missed: usize,
}

impl Recorder {
    pub(crate) fn new(registry: Box<dyn DynRegistry>, durability: Durability, hands_over: bool) -> Self {
        let io = Breaker {
            retry_at: None,
            pause: RETRY_BACKOFF,
            attempts_in_drain: 0,
            backlog: VecDeque::new(),
            dropped: 0,
            missed: 0,
        };
        // Asked once: what is called later may not panic.
        let heartbeat_interval = registry.heartbeat_interval().max(Duration::from_millis(10));
        Self {
            registry,
            heartbeat_interval,
            durability,
            hands_over,
            io: tokio::sync::Mutex::new(io),
            writer: Mutex::default(),
            degraded: AtomicU8::new(0),
            degradations: AtomicU64::new(0),
            meter: RegistryMeter::new(),
            last_heartbeat: AtomicU64::new(0),
            warned: Once::new(),
            withheld: Mutex::default(),
            idle: Notify::new(),
        }
    }

    pub(crate) const fn heartbeat_interval(&self) -> Duration {
        self.heartbeat_interval
    }

    pub(crate) fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::SeqCst) != 0
    }

    /// Nobody waits for it from here on, until it has answered again.
    pub(crate) fn degrade(&self, why: &dyn std::fmt::Display) {
        if self.degraded.swap(1, Ordering::SeqCst) == 0 {
            self.degradations.fetch_add(1, Ordering::Relaxed);
            self.meter.degraded();
            tracing::warn!(
                name: "session-registry-degraded",
                error = %escape_controls(why),
                "the session registry does not answer in time: going on in memory until it does",
            );
        }
    }

    fn restored(&self, io: &mut Breaker) {
        (io.retry_at, io.pause) = (None, RETRY_BACKOFF);
        if self.degraded.swap(0, Ordering::SeqCst) != 0 {
            self.meter.restored();
            let (missed, dropped) = (std::mem::take(&mut io.missed), std::mem::take(&mut io.dropped));
            tracing::info!(name: "session-registry-restored", missed, dropped, "the session registry answers again");
        }
    }

    /// Whether the end of this generation may be delivered: it is not on record, or the lease runs.
    fn lease_allows_delivery(&self, generation: &Generation) -> bool {
        match generation.recorded() {
            RecordState::TakenOver => false,
            RecordState::Held => self.registry.lease_is_valid(),
            RecordState::None | RecordState::Pending | RecordState::Uncertain | RecordState::Detached => true,
        }
    }

    pub(super) fn abort(&self) {
        if let Some(abort) = lock(&self.writer).as_ref().and_then(|writer| writer.get()) {
            abort.abort();
        }
        self.idle.notify_waiters();
    }

    async fn call<T>(
        limit: Duration,
        call: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        timeout(limit, call).await.unwrap_or_else(|_| Err(RegistryError::unavailable("no answer in time")))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if self.is_degraded() {
            self.meter.restored();
        }
    }
}

impl Breaker {
    fn is_shut(&self, now: Nanos) -> bool {
        self.retry_at.is_some_and(|at| now < at)
    }

    fn trip(&mut self, now: Nanos) {
        self.retry_at = Some(Clock::add(now, self.pause));
        self.pause = (self.pause * 2).min(MAX_RETRY_BACKOFF);
    }

    fn miss(&mut self, op: OutboxEntry) {
        if self.backlog.len() == BACKLOG {
            // The worst of it: an end is delivered once more, with the same event id, when this process is gone.
            self.backlog.pop_front();
            self.dropped += 1;
        }
        self.backlog.push_back(op);
    }
}

impl Pool {
    /// Sees to it that somebody writes what there is to write.
    pub(super) fn wake_writer(self: &Arc<Self>) {
        let (Some(recorder), Some(outbox)) = (&self.recorder, &self.tracker.outbox) else { return };
        if outbox.is_empty() {
            return;
        }
        let abort = {
            let mut writer = lock(&recorder.writer);
            if outbox.is_empty() || writer.is_some() {
                return;
            }
            Arc::clone(writer.insert(Arc::default()))
        };
        // With no runtime the writer is dropped, and what waits stays for a later kick.
        if let Some(handle) = self.spawn(Writer::new(self).run()) {
            let _ = abort.set(handle);
            // `close` may have passed by before the handle was there.
            if self.tracker.queue.state().limits.closed {
                recorder.abort();
            }
        }
    }

    /// As [`wake_writer`](Self::wake_writer); if the remembered runtime has gone, with that of the caller.
    pub(super) fn wake_writer_on_any_runtime(self: &Arc<Self>) {
        self.wake_writer();
        if self.recorder.is_some() && !self.has_runtime() {
            self.remember_runtime();
            if self.has_runtime() {
                self.wake_writer();
            }
        }
    }

    /// Whether this end is not to be delivered, because the lease is over or may be. If so, the registry is asked again
    /// once it has answered; in a stop there is no time for that, and it is left to whoever comes after us.
    pub(super) fn defer_if_lease_uncertain(&self, generation: &Arc<Generation>, ending: &PendingEnd) -> bool {
        let Some(recorder) = &self.recorder else { return false };
        if recorder.lease_allows_delivery(generation) {
            return false;
        }
        {
            let mut withheld = lock(&recorder.withheld);
            let may_wait = generation.recorded() == RecordState::Held && withheld.len() < BACKLOG;
            // Looked at under the lock: the stop empties the list after it has begun.
            if may_wait && !self.is_stopping() {
                withheld.push((Arc::clone(generation), ending.clone()));
                return true;
            }
        }
        self.tracker.resolve_released(generation, ReleaseCause::HandedOver);
        true
    }

    /// Puts what the registry has missed before everything else, in its order.
    fn replay_backlog(&self, io: &mut Breaker) {
        self.reclaim_deferred();
        if let Some(outbox) = &self.tracker.outbox {
            outbox.put_back(std::mem::take(&mut io.backlog));
        }
    }

    /// Asks the registry about what was withheld.
    pub(super) fn reclaim_deferred(&self) {
        let (Some(recorder), Some(outbox)) = (&self.recorder, &self.tracker.outbox) else { return };
        let withheld = std::mem::take(&mut *lock(&recorder.withheld));
        outbox.put_back(withheld.into_iter().map(|(generation, ending)| OutboxEntry::End(generation, ending)));
    }

    /// Waits until everything is written, or nothing can be any more; bounded by whoever calls.
    pub(crate) async fn until_written(self: &Arc<Self>) {
        let (Some(recorder), Some(outbox)) = (&self.recorder, &self.tracker.outbox) else { return };
        loop {
            let idle = recorder.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            let is_written = outbox.is_empty() && lock(&recorder.writer).is_none();
            if is_written || self.tracker.queue.state().limits.closed {
                return;
            }
            self.wake_writer();
            idle.await;
        }
    }
}
