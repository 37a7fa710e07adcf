//! The recorder: writes the ledger into the registry, group by group, and keeps the lease.
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
    observability::{RegistryMeter, plain},
    registry::{Durability, ErasedRegistry, RegistryError},
    sync::{AtomicU8, AtomicU64, Mutex, Ordering, lock},
    tracker::{
        Ending, Entry, NotOurs, Op, Recorded,
        clock::{Clock, Nanos},
    },
};

/// How long a birth waits for its record.
pub(crate) const BIRTH_WAIT: Duration = Duration::from_millis(250);

/// How long one call of the registry may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a take-over may, which has more to do, and for which nobody waits.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// For how long a registry that is down is left alone: at first, and at most.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How many missed changes, and how many withheld ends, are remembered for when the registry is back.
const BACKLOG: usize = 65_536;

pub(crate) struct Recorder {
    registry: Box<dyn ErasedRegistry>,
    beat_every: Duration,
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
    tended: AtomicU64,
    /// It was said that nobody sees to it.
    warned: Once,
    /// Ends that are on record, and came due while the lease may have been over.
    withheld: Mutex<Vec<(Arc<Entry>, Ending)>>,
    /// Told when there is nothing left to write.
    idle: Notify,
}

/// What is known of the registry's health.
struct Breaker {
    /// Until then it is left alone.
    retry_at: Option<Nanos>,
    pause: Duration,
    tries_in_a_drain: u32,
    /// What it has missed.
    backlog: VecDeque<Op>,
    dropped: u64,
    /// How much it was when it was last made up for.
    missed: usize,
}

impl Recorder {
    pub(crate) fn new(registry: Box<dyn ErasedRegistry>, durability: Durability, hands_over: bool) -> Self {
        let io = Breaker {
            retry_at: None,
            pause: PAUSE,
            tries_in_a_drain: 0,
            backlog: VecDeque::new(),
            dropped: 0,
            missed: 0,
        };
        // Asked once: what is called later may not panic.
        let beat_every = registry.beat_every().max(Duration::from_millis(10));
        Self {
            registry,
            beat_every,
            durability,
            hands_over,
            io: tokio::sync::Mutex::new(io),
            writer: Mutex::default(),
            degraded: AtomicU8::new(0),
            degradations: AtomicU64::new(0),
            meter: RegistryMeter::new(),
            tended: AtomicU64::new(0),
            warned: Once::new(),
            withheld: Mutex::default(),
            idle: Notify::new(),
        }
    }

    pub(crate) const fn beat_every(&self) -> Duration {
        self.beat_every
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
                error = %plain(why),
                "the session registry does not answer in time: going on in memory until it does",
            );
        }
    }

    fn restored(&self, io: &mut Breaker) {
        (io.retry_at, io.pause) = (None, PAUSE);
        if self.degraded.swap(0, Ordering::SeqCst) != 0 {
            self.meter.restored();
            let (missed, dropped) = (std::mem::take(&mut io.missed), std::mem::take(&mut io.dropped));
            tracing::info!(name: "session-registry-restored", missed, dropped, "the session registry answers again");
        }
    }

    /// Whether the end of this generation may be delivered: it is not on record, or the lease runs.
    fn may_deliver(&self, entry: &Entry) -> bool {
        match entry.recorded() {
            Recorded::Taken => false,
            Recorded::Held => self.registry.is_current(),
            Recorded::Not | Recorded::Pending | Recorded::Doubtful | Recorded::Apart => true,
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
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn miss(&mut self, op: Op) {
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
    pub(super) fn kick_recorder(self: &Arc<Self>) {
        let (Some(recorder), Some(ledger)) = (&self.recorder, &self.tracker.ledger) else { return };
        if ledger.is_empty() {
            return;
        }
        let abort = {
            let mut writer = lock(&recorder.writer);
            if ledger.is_empty() || writer.is_some() {
                return;
            }
            Arc::clone(writer.insert(Arc::default()))
        };
        // With no runtime the writer is dropped, and what waits stays for a later kick.
        if let Some(handle) = self.spawn(Writer::new(self).run()) {
            let _ = abort.set(handle);
            // `close` may have passed by before the handle was there.
            if self.tracker.queue.line().gate.closed {
                recorder.abort();
            }
        }
    }

    /// As [`kick_recorder`](Self::kick_recorder); if the remembered runtime has gone, with that of the caller.
    pub(super) fn kick_recorder_anywhere(self: &Arc<Self>) {
        self.kick_recorder();
        if self.recorder.is_some() && !self.has_runtime() {
            self.adopt_runtime();
            if self.has_runtime() {
                self.kick_recorder();
            }
        }
    }

    /// Whether this end is not to be delivered, because the lease is over or may be. If so, the registry is asked again
    /// once it has answered; in a stop there is no time for that, and it is left to whoever comes after us.
    pub(super) fn withholds(&self, entry: &Arc<Entry>, ending: &Ending) -> bool {
        let Some(recorder) = &self.recorder else { return false };
        if recorder.may_deliver(entry) {
            return false;
        }
        {
            let mut withheld = lock(&recorder.withheld);
            let may_wait = entry.recorded() == Recorded::Held && withheld.len() < BACKLOG;
            // Looked at under the lock: the stop empties the list after it has begun.
            if may_wait && !self.is_stopping() {
                withheld.push((Arc::clone(entry), ending.clone()));
                return true;
            }
        }
        self.tracker.is_not_ours(entry, NotOurs::HandedOver);
        true
    }

    /// Puts what the registry has missed before everything else, in its order.
    fn make_up(&self, io: &mut Breaker) {
        self.claim_withheld();
        if let Some(ledger) = &self.tracker.ledger {
            ledger.put_back(std::mem::take(&mut io.backlog));
        }
    }

    /// Asks the registry about what was withheld.
    pub(super) fn claim_withheld(&self) {
        let (Some(recorder), Some(ledger)) = (&self.recorder, &self.tracker.ledger) else { return };
        let withheld = std::mem::take(&mut *lock(&recorder.withheld));
        ledger.put_back(withheld.into_iter().map(|(entry, ending)| Op::Claimed(entry, ending)));
    }

    /// Waits until everything is written, or nothing can be any more; bounded by whoever calls.
    pub(crate) async fn until_written(self: &Arc<Self>) {
        let (Some(recorder), Some(ledger)) = (&self.recorder, &self.tracker.ledger) else { return };
        loop {
            let idle = recorder.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            let is_written = ledger.is_empty() && lock(&recorder.writer).is_none();
            if is_written || self.tracker.queue.line().gate.closed {
                return;
            }
            self.kick_recorder();
            idle.await;
        }
    }
}
