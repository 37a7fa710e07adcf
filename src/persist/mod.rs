//! The [`Persister`] writes the tracker's outbox to the registry, renews the lease, and recovers ends that dead
//! processes have not delivered.
//!
//! * **One call at a time**: every call of the registry is made under one lock, so the consequences of an error are
//!   applied before the next call.
//! * **Circuit breaker**: a registry that is down or slow is not called for 250 ms, doubling to 5 s. Meanwhile the
//!   process goes on in memory: starts do not wait, ends are delivered, and missed changes are replayed later.
//! * **Lease**: the `session_end` of a recorded session is delivered only while the lease is certainly valid.

mod breaker;
mod heartbeat;
mod translate;
mod writer;

use std::{
    sync::{Arc, Once, OnceLock},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, timeout},
};

pub(crate) use self::heartbeat::Recovered;
use self::{
    breaker::{Backlog, CircuitBreaker, MAX_ATTEMPTS_IN_DRAIN, MAX_BACKLOG},
    writer::Writer,
};
use crate::{
    hooks::{Persistence, Pool},
    observability::{RegistryMeter, ReleaseCause, escape_controls},
    registry::{Durability, DynRegistry, RegistryError},
    sync::{AtomicU8, AtomicU64, Mutex, Ordering, lock, wait_for},
    tasks::Tasks,
    tracker::{Generation, Outbox, OutboxEntry, PendingEnd, RecordState, Tracker, clock::NEVER},
};

/// How long a start waits for its record.
const MAX_START_WAIT: Duration = Duration::from_millis(250);

/// How long one call of the registry may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The settings of a registry.
pub(crate) struct PersistConfig {
    pub(crate) registry: Box<dyn DynRegistry>,
    pub(crate) durability: Durability,
    /// In a drain without a registry, the ends of recorded sessions are left to the next process.
    pub(crate) hand_over_on_outage: bool,
}

pub(crate) struct Persister {
    tracker: Arc<Tracker>,
    outbox: Arc<Outbox>,
    tasks: Arc<Tasks>,
    registry: Box<dyn DynRegistry>,
    heartbeat_interval: Duration,
    durability: Durability,
    hand_over_on_outage: bool,
    /// Held during each call of the registry.
    calls: tokio::sync::Mutex<Calls>,
    writer: Mutex<Option<Arc<OnceLock<AbortHandle>>>>,
    /// Starts do not wait for their records.
    degraded: AtomicU8,
    degradations: AtomicU64,
    meter: RegistryMeter,
    /// When the last heartbeat was attempted. 0: never.
    last_heartbeat: AtomicU64,
    undriven: Once,
    /// Recorded ends that came due while the lease was uncertain.
    deferred: Mutex<Vec<(Arc<Generation>, PendingEnd)>>,
    /// Notified when the outbox is empty and no writer runs.
    written: Notify,
}

/// The state that the lock of the calls guards.
struct Calls {
    breaker: CircuitBreaker,
    backlog: Backlog,
}

impl Persister {
    pub(crate) fn new(
        config: PersistConfig,
        tracker: Arc<Tracker>,
        outbox: Arc<Outbox>,
        tasks: Arc<Tasks>,
    ) -> Arc<Self> {
        let PersistConfig { registry, durability, hand_over_on_outage } = config;
        // Called once, here: the panics of this method are not caught.
        let heartbeat_interval = registry.heartbeat_interval().max(Duration::from_millis(10));
        Arc::new(Self {
            tracker,
            outbox,
            tasks,
            registry,
            heartbeat_interval,
            durability,
            hand_over_on_outage,
            calls: tokio::sync::Mutex::new(Calls { breaker: CircuitBreaker::new(), backlog: Backlog::default() }),
            writer: Mutex::default(),
            degraded: AtomicU8::new(0),
            degradations: AtomicU64::new(0),
            meter: RegistryMeter::new(),
            last_heartbeat: AtomicU64::new(0),
            undriven: Once::new(),
            deferred: Mutex::default(),
            written: Notify::new(),
        })
    }

    pub(crate) fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::SeqCst) != 0
    }

    pub(crate) fn degradations(&self) -> u64 {
        self.degradations.load(Ordering::Relaxed)
    }

    /// Whether a response that starts this session waits for its record.
    pub(crate) fn delays_head(&self, generation: &Generation) -> bool {
        self.durability == Durability::Strict
            && generation.record_state() == RecordState::Pending
            && !self.is_degraded()
    }

    /// Waits for the records of starts, at most [`MAX_START_WAIT`].
    pub(crate) async fn until_recorded(&self, starts: &[Arc<Generation>]) {
        let recorded = async {
            for generation in starts {
                generation.until_recorded().await;
            }
        };
        if timeout(MAX_START_WAIT, recorded).await.is_err() {
            self.degrade(&format_args!("a session was not recorded within {MAX_START_WAIT:?}"));
        }
    }

    /// Waits until the outbox is written or the handle is closed, at most until `deadline`.
    pub(crate) async fn until_written(self: &Arc<Self>, pool: &Arc<Pool>, deadline: Option<Instant>) {
        let is_written = || {
            let is_written = self.outbox.is_empty() && lock(&self.writer).is_none();
            if !is_written {
                self.wake_writer(pool);
            }
            is_written || self.tracker.queue.state().limits.closed
        };
        wait_for(&self.written, deadline, is_written).await;
    }

    pub(crate) fn abort_writer(&self) {
        if let Some(abort) = lock(&self.writer).as_ref().and_then(|writer| writer.get()) {
            abort.abort();
        }
        self.written.notify_waiters();
    }

    /// Queues the deferred ends in the outbox again.
    pub(crate) fn reclaim_deferred(&self) {
        let deferred = std::mem::take(&mut *lock(&self.deferred));
        self.outbox.put_back(deferred.into_iter().map(|(generation, end)| OutboxEntry::End(generation, end)));
    }

    /// Starts no longer wait for the registry, until it answers again.
    fn degrade(&self, error: &dyn std::fmt::Display) {
        if self.degraded.swap(1, Ordering::SeqCst) == 0 {
            self.degradations.fetch_add(1, Ordering::Relaxed);
            self.meter.degraded();
            tracing::warn!(
                name: "session-registry-degraded",
                error = %escape_controls(error),
                "the session registry is unavailable; sessions are kept in memory until it answers again",
            );
        }
    }

    fn restore(&self, calls: &mut Calls) {
        calls.breaker.reset();
        if self.degraded.swap(0, Ordering::SeqCst) != 0 {
            self.meter.restored();
            let missed = std::mem::take(&mut calls.backlog.replayed);
            let dropped = std::mem::take(&mut calls.backlog.dropped);
            tracing::info!(
                name: "session-registry-restored",
                missed,
                dropped,
                "the session registry answers again; missed changes were replayed",
            );
        }
    }

    /// Queues the changes that the registry has missed before everything else, in their order.
    fn replay_backlog(&self, calls: &mut Calls) {
        self.reclaim_deferred();
        self.outbox.put_back(calls.backlog.take());
    }

    /// Spawns the writer, if the outbox has entries and no writer exists.
    fn wake_writer(self: &Arc<Self>, pool: &Arc<Pool>) {
        if self.outbox.is_empty() {
            return;
        }
        let abort = {
            let mut writer = lock(&self.writer);
            if self.outbox.is_empty() || writer.is_some() {
                return;
            }
            Arc::clone(writer.insert(Arc::default()))
        };
        // With no runtime the writer is dropped, and the outbox stays for a later call.
        if let Some(handle) = self.tasks.spawn(Writer::new(self, pool).run()) {
            let _ = abort.set(handle);
            // `close` may have run before the handle was set.
            if self.tracker.queue.state().limits.closed {
                self.abort_writer();
            }
        }
    }

    /// Whether the end of this generation may be delivered: it has no record, or the lease is valid.
    fn lease_allows_delivery(&self, generation: &Generation) -> bool {
        match generation.record_state() {
            RecordState::TakenOver => false,
            RecordState::Held => self.registry.lease_is_valid(),
            RecordState::None | RecordState::Pending | RecordState::Uncertain | RecordState::Detached => true,
        }
    }

    /// Whether an open circuit breaker allows a call now. A drain may call a few times without waiting for the backoff.
    fn may_call(&self, calls: &mut Calls) -> bool {
        let breaker = &mut calls.breaker;
        let in_drain = self.call_timeout_in_drain().is_some() && breaker.attempts_in_drain < MAX_ATTEMPTS_IN_DRAIN;
        if in_drain {
            breaker.attempts_in_drain += 1;
        }
        in_drain && breaker.retry_at != Some(NEVER) || !breaker.is_open(self.tracker.clock.now())
    }

    /// In a drain, the time limit of one call of the registry: a registry that hangs must leave time for the hooks.
    fn call_timeout_in_drain(&self) -> Option<Duration> {
        let limits = self.tracker.queue.state().limits;
        if !limits.draining || limits.deadline == NEVER {
            return None;
        }
        let left = Duration::from_nanos(limits.deadline.saturating_sub(self.tracker.clock.now()));
        Some((left / 4).clamp(Duration::from_millis(10), CALL_TIMEOUT))
    }

    fn is_draining(&self) -> bool {
        self.tracker.queue.state().limits.draining
    }

    /// The lease has expired, and other processes have ended the sessions with a record.
    fn on_fenced(&self) {
        tracing::warn!(
            name: "session-registry-fenced",
            "the lease in the session registry expired, and other processes have ended the sessions that this process \
             held; active sessions go on as new generations",
        );
        self.tracker.restart_all();
    }

    /// The registry has lost its records.
    fn on_data_lost(&self) {
        tracing::warn!(
            name: "session-registry-data-lost",
            "the session registry has lost its records; the active sessions of this process are recorded again",
        );
        self.tracker.mark_records_uncertain();
        self.last_heartbeat.store(0, Ordering::SeqCst);
    }
}

impl Persistence for Persister {
    /// While the lease is uncertain, an end is deferred until the next heartbeat. A drain has no time for that: the end
    /// is handed over to the next process.
    fn may_deliver(&self, generation: &Arc<Generation>, end: &PendingEnd) -> bool {
        if self.lease_allows_delivery(generation) {
            return true;
        }
        {
            let mut deferred = lock(&self.deferred);
            let may_wait = generation.record_state() == RecordState::Held && deferred.len() < MAX_BACKLOG;
            // Read under the lock: a drain sets `draining` first and empties the list then.
            if may_wait && !self.is_draining() {
                deferred.push((Arc::clone(generation), end.clone()));
                return false;
            }
        }
        self.tracker.resolve_released(generation, ReleaseCause::HandedOver);
        false
    }

    /// If the remembered runtime has shut down, the writer is spawned on the caller's.
    fn wake(self: Arc<Self>, pool: &Arc<Pool>) {
        self.wake_writer(pool);
        if !self.tasks.has_runtime() {
            self.tasks.remember_runtime_once_probed();
            if self.tasks.has_runtime() {
                self.wake_writer(pool);
            }
        }
    }
}

impl Drop for Persister {
    fn drop(&mut self) {
        if self.is_degraded() {
            self.meter.restored();
        }
    }
}

/// One call of the registry. [`DynRegistry`] turns a panic into an error.
async fn call<T>(limit: Duration, call: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistryError> {
    timeout(limit, call)
        .await
        .unwrap_or_else(|_| Err(RegistryError::unavailable(format!("no answer within {limit:?}"))))
}
