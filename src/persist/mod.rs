//! The [`Persister`] writes the tracker's outbox to the registry, renews the lease, and recovers ends that dead
//! processes have not delivered.
//!
//! * **One call at a time**: every call of the registry is made under one lock, so the consequences of an error are
//!   applied before the next call.
//! * **Circuit breaker**: a registry that is down is not called for 250 ms, doubling to 1 s. Meanwhile the process goes on
//!   in memory. A session that the host has just made starts. Whatever another process may hold waits for the registry.
//! * **One owner**: the `session_end` of a recorded session is delivered only after the registry has answered that this
//!   process owns it, and only while the lease is certainly valid.

mod backlog;
mod breaker;
mod health;
mod heartbeat;
mod postponed;
mod redelivery;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
mod translate;
mod writer;

use std::{
    sync::{Arc, Once, OnceLock},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    task::AbortHandle,
    time::{Instant, timeout},
};

pub(crate) use self::heartbeat::Recovered;
use self::{
    backlog::Backlog,
    breaker::{CircuitBreaker, MAX_ATTEMPTS_IN_DRAIN},
    health::SETTLING,
    postponed::Postponed,
    redelivery::Redeliveries,
    writer::Writer,
};
use crate::{
    hooks::{Persistence, Pool},
    observability::{RegistryMeter, ReleaseCause},
    registry::{Durability, DynRegistry, RegistryError},
    sync::{AtomicBool, AtomicU8, AtomicU64, Mutex, Ordering, lock, wait_for},
    tasks::Tasks,
    tracker::{
        CalledEnd, FailedDelivery, Generation, Origin, Outbox, OutboxEntry, PendingEnd, RecordState, Tracker,
        clock::{NEVER, nanos},
    },
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
    /// A hook's error is delivered again.
    pub(crate) redeliver: bool,
}

impl PersistConfig {
    pub(crate) fn has_transaction_hook(&self) -> bool {
        self.registry.transaction_hook().is_some()
    }
}

/// The most ends that wait for a certain lease.
const MAX_DEFERRED: usize = 65_536;

pub(crate) struct Persister {
    tracker: Arc<Tracker>,
    outbox: Arc<Outbox>,
    tasks: Arc<Tasks>,
    registry: Box<dyn DynRegistry>,
    heartbeat_interval: Duration,
    /// The name of the registry's transaction hook.
    transaction_hook: Option<String>,
    durability: Durability,
    hand_over_on_outage: bool,
    redeliver: bool,
    /// Held during each call of the registry.
    calls: tokio::sync::Mutex<Calls>,
    writer: Mutex<Option<Arc<OnceLock<AbortHandle>>>>,
    backlog: Mutex<Backlog>,
    /// The writer takes its groups under this lock. Whoever queues entries again holds it, so no later entry of their ids passes
    /// them.
    postponed: Mutex<Postponed>,
    redeliveries: Redeliveries,
    /// The `Health`.
    health: AtomicU8,
    /// Starts do not wait for their records until then.
    slow_until: AtomicU64,
    /// Until then, another process may have made ids that it has not recorded.
    troubled_until: AtomicU64,
    /// When a call last failed, or was slow. 0: never.
    last_trouble: AtomicU64,
    degradations: AtomicU64,
    meter: RegistryMeter,
    /// When the last heartbeat was attempted. 0: never.
    last_heartbeat: AtomicU64,
    /// The next heartbeat comes at once.
    expects_notices: AtomicBool,
    /// The registry has lost its records, and the changes that it has missed are not written yet.
    records_again: AtomicBool,
    undriven: Once,
    /// Recorded ends that came due while the lease was uncertain.
    deferred: Mutex<Vec<(Arc<Generation>, PendingEnd)>>,
    /// The dead letters in the store, at the last heartbeat.
    dead_letters: AtomicU64,
    drain_began: Notify,
    /// Notified when the outbox is empty and no writer runs.
    written: Notify,
}

/// The state that the lock of the calls guards.
struct Calls {
    breaker: CircuitBreaker,
    /// The changes that were missed in the present outage.
    missed: usize,
}

impl Persister {
    pub(crate) fn new(
        config: PersistConfig,
        tracker: Arc<Tracker>,
        outbox: Arc<Outbox>,
        tasks: Arc<Tasks>,
    ) -> Arc<Self> {
        let PersistConfig { registry, durability, hand_over_on_outage, redeliver } = config;
        // Called once, here: the panics of these methods are not caught.
        let transaction_hook = registry.transaction_hook().map(str::to_owned);
        let heartbeat_interval = registry.heartbeat_interval().max(Duration::from_millis(10));
        Arc::new(Self {
            tracker,
            outbox,
            tasks,
            registry,
            heartbeat_interval,
            transaction_hook,
            durability,
            hand_over_on_outage,
            redeliver,
            calls: tokio::sync::Mutex::new(Calls { breaker: CircuitBreaker::new(), missed: 0 }),
            writer: Mutex::default(),
            backlog: Mutex::default(),
            postponed: Mutex::default(),
            redeliveries: Redeliveries::default(),
            health: AtomicU8::new(0),
            slow_until: AtomicU64::new(0),
            troubled_until: AtomicU64::new(nanos(SETTLING)),
            last_trouble: AtomicU64::new(0),
            degradations: AtomicU64::new(0),
            meter: RegistryMeter::new(),
            last_heartbeat: AtomicU64::new(0),
            expects_notices: AtomicBool::new(false),
            records_again: AtomicBool::new(false),
            undriven: Once::new(),
            deferred: Mutex::default(),
            dead_letters: AtomicU64::new(0),
            drain_began: Notify::new(),
            written: Notify::new(),
        })
    }

    /// Whether a response that starts this session waits for its record. None waits while other processes are asked for it.
    pub(crate) fn delays_head(&self, generation: &Generation) -> bool {
        self.durability == Durability::Strict
            && generation.waits_for_record()
            && !(generation.origin() == Origin::Carried && self.finds_first())
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
            self.on_late_record();
        }
    }

    /// While the registry does not answer, nothing else ends a wait for this record: it is tried once more.
    pub(crate) fn retry_record(self: &Arc<Self>, pool: &Arc<Pool>, generation: &Arc<Generation>) {
        if self.is_down() && generation.waits_for_record() {
            self.outbox.push(OutboxEntry::Hold(Arc::clone(generation)));
            self.wake_writer(pool);
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

    /// Aborts the tasks.
    pub(crate) fn abort(&self) {
        self.redeliveries.close();
        *lock(&self.postponed) = Postponed::default();
        self.abort_writer();
    }

    fn abort_writer(&self) {
        if let Some(abort) = lock(&self.writer).as_ref().and_then(|writer| writer.get()) {
            abort.abort();
        }
        self.written.notify_waiters();
    }

    /// Must be called when a drain begins. What has waited for the registry is written now, or handed over.
    pub(crate) fn begin_drain(&self) {
        self.reclaim_deferred();
        self.replay_backlog();
        self.requeue_all_postponed();
        self.drain_began.notify_waiters();
    }

    /// As [`reclaim_deferred`](Self::reclaim_deferred), for the ends that can be delivered now, or are no longer this process's.
    /// The others would be deferred again, and their calls would hold up the starts behind them.
    fn reclaim_deliverable(&self) {
        if self.registry.lease_is_valid() {
            return self.reclaim_deferred();
        }
        let is_decided = |(generation, _): &mut (Arc<Generation>, _)| generation.record_state() != RecordState::Held;
        let decided: Vec<_> = lock(&self.deferred).extract_if(.., is_decided).collect();
        self.outbox.push_first(decided.into_iter().map(|(generation, end)| OutboxEntry::End(generation, end)));
    }

    /// Queues the deferred ends in the outbox again.
    fn reclaim_deferred(&self) {
        let _no_group_is_taken = lock(&self.postponed);
        let deferred = std::mem::take(&mut *lock(&self.deferred));
        self.outbox.push_first(deferred.into_iter().map(|(generation, end)| OutboxEntry::End(generation, end)));
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
            RecordState::None | RecordState::Unsent | RecordState::Sent => true,
        }
    }

    /// The next heartbeat comes at once.
    fn expect_notices(&self) {
        self.expects_notices.store(true, Ordering::SeqCst);
    }

    /// The dead letters in the store, at the last heartbeat.
    pub(crate) fn dead_letters(&self) -> u64 {
        self.dead_letters.load(Ordering::SeqCst)
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
        // Others have recovered the ends that this process was to deliver. After the tracker: an end that fails now is marked
        // there, or is among the failed ones already.
        self.redeliveries.leave_recorded();
    }

    /// The registry has lost its records.
    fn on_data_lost(&self) {
        tracing::warn!(
            name: "session-registry-data-lost",
            "the session registry has lost its records; the active sessions of this process are recorded again",
        );
        self.records_again.store(true, Ordering::SeqCst);
        self.tracker.mark_records_lost();
        self.record_scheduled_again();
        self.expect_notices();
    }
}

impl Persistence for Persister {
    /// While the lease is uncertain, an end is deferred until the next heartbeat. A drain has no time for that: the end
    /// is handed over to the next process.
    fn may_deliver(self: Arc<Self>, pool: &Arc<Pool>, generation: &Arc<Generation>, end: &PendingEnd) -> bool {
        if end.redelivery.is_some() {
            return self.may_redeliver(pool, generation, end);
        }
        if self.lease_allows_delivery(generation) {
            return true;
        }
        {
            let mut deferred = lock(&self.deferred);
            let may_wait = generation.record_state() == RecordState::Held && deferred.len() < MAX_DEFERRED;
            // Read under the lock: a drain sets `draining` first and empties the list then.
            if may_wait && !self.is_draining() {
                deferred.push((Arc::clone(generation), end.clone()));
                return false;
            }
        }
        self.tracker.resolve_released(generation, ReleaseCause::HandedOver);
        false
    }

    fn count_call(&self, generation: &Arc<Generation>, end: &PendingEnd) -> Option<oneshot::Receiver<()>> {
        self.count_attempt(generation, end)
    }

    fn on_failing(&self, generation: &Arc<Generation>) {
        self.redeliveries.add(generation);
    }

    fn on_call(&self, generation: &Arc<Generation>, end: &PendingEnd) {
        self.record_attempt(generation, end);
    }

    fn commits(&self, generation: &Generation) -> bool {
        // Without a record there is nothing to commit with.
        self.transaction_hook.is_some() && generation.record_state() == RecordState::Held
    }

    fn transaction_hook(&self) -> Option<&str> {
        self.transaction_hook.as_deref()
    }

    fn commit(&self, called: CalledEnd, has_awaited: bool) {
        let commit = OutboxEntry::Commit(Box::new(called));
        // A drain has not waited until the call was counted.
        if has_awaited && !self.is_draining() {
            // The calls that are counted for other ends can wait.
            self.outbox.push_first([commit]);
        } else {
            self.outbox.push(commit);
        }
    }

    fn on_failure(
        self: Arc<Self>,
        pool: &Arc<Pool>,
        generation: &Arc<Generation>,
        end: &PendingEnd,
        failure: FailedDelivery,
    ) {
        self.on_failed_delivery(pool, generation, end, failure);
    }

    fn on_redelivered(&self, generation: &Arc<Generation>) {
        self.record_redelivered(generation);
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
        self.resume_redeliveries(pool);
    }
}

/// One call of the registry. [`DynRegistry`] turns a panic into an error.
async fn call<T>(limit: Duration, call: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistryError> {
    timeout(limit, call)
        .await
        .unwrap_or_else(|_| Err(RegistryError::unavailable(format!("no answer within {limit:?}"))))
}
