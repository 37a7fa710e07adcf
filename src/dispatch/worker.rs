//! A worker: takes a job, polls its hooks in place, takes the next.

use std::sync::{Arc, OnceLock};

use tokio::task::AbortHandle;

use super::{HookError, HookFailure, Pool, TaskCount, Terms, batch::Joint, call::call_all, ticker};
use crate::{
    session::{SessionEnd, SessionStart},
    sync::{AtomicU8, AtomicU64, Ordering, lock},
    tracker::{
        Ending, Entry, Job, Outcome,
        clock::{NEVER, Nanos},
        queue::Gate,
    },
};

/// After so many jobs, or nanoseconds, a worker lets others have its thread.
const JOBS_A_TURN: u32 = 64;
const NANOS_A_TURN: Nanos = 200_000;

/// Whether a worker counts among the staff. It leaves the staff once, and who sees to that takes it off the count.
const ON_STAFF: u8 = 0;
const WRITTEN_OFF: u8 = 1;
const RETIRED: u8 = 2;

/// What the ticker sees of a worker.
#[derive(Debug)]
pub(super) struct Slot {
    key: u64,
    post: AtomicU8,
    /// When the hook in hand was started; [`NEVER`] if there is none.
    started: AtomicU64,
    abort: OnceLock<AbortHandle>,
}

impl Slot {
    /// Takes the worker off the staff; true if it was on it, and then `Line::staff` is one too high.
    fn leave_staff(&self, why: u8) -> bool {
        self.post.compare_exchange(ON_STAFF, why, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// As above, because the hook in hand takes too long.
    pub(super) fn write_off(&self) -> bool {
        self.leave_staff(WRITTEN_OFF)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.started.load(Ordering::SeqCst) != NEVER
    }

    pub(super) fn is_slow(&self, now: Nanos, patience: Nanos) -> bool {
        let started = self.started.load(Ordering::SeqCst);
        started != NEVER && now.saturating_sub(started) >= patience && self.post.load(Ordering::SeqCst) == ON_STAFF
    }

    pub(super) fn abort(&self) {
        if let Some(abort) = self.abort.get() {
            abort.abort();
        }
    }
}

pub(super) struct Worker {
    pool: Arc<Pool>,
    slot: Arc<Slot>,
    in_hand: Option<InHand>,
    /// It has not asked for a job yet: it has not run.
    is_fresh: bool,
    _count: TaskCount,
}

/// What is finished by the worker's drop if the worker itself does not come to it.
enum InHand {
    Start(Arc<Entry>),
    /// A shared end is finished by the last of its parts.
    End(Arc<Entry>, Option<Arc<Joint>>),
}

impl Worker {
    /// The caller has put it on the staff.
    pub(super) fn spawn(pool: &Arc<Pool>) {
        let key = pool.next_slot.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(Slot {
            key,
            post: AtomicU8::new(ON_STAFF),
            started: AtomicU64::new(NEVER),
            abort: OnceLock::new(),
        });
        lock(&pool.floor).slots.insert(key, Arc::clone(&slot));
        let worker = Self {
            pool: Arc::clone(pool),
            slot: Arc::clone(&slot),
            in_hand: None,
            is_fresh: true,
            _count: TaskCount::new(pool),
        };
        // With no runtime the worker is dropped, and its job stays in the queue for a later kick.
        if let Some(abort) = pool.spawn(worker.run()) {
            let _ = slot.abort.set(abort);
            // `close` may have passed by before the handle was there.
            if pool.tracker.queue.line().gate.closed {
                slot.abort();
            }
        }
    }

    async fn run(mut self) {
        let (mut jobs, mut since) = (0, self.pool.tracker.clock.now());
        loop {
            let now = self.pool.tracker.clock.now();
            let Some((job, gate)) = self.take(now) else { break };
            if let Job::End(entry, ending) = &job
                && self.pool.withholds(entry, ending)
            {
                continue;
            }
            self.slot.started.store(now, Ordering::SeqCst);
            let terms = self.pool.terms(now, &gate);
            let has_set_free = match job {
                Job::Start(entry) => self.start(entry, &terms).await,
                Job::End(entry, ending) => self.end(entry, ending, &terms).await,
            };
            self.slot.started.store(NEVER, Ordering::SeqCst);
            if has_set_free {
                self.pool.kick();
            }
            jobs += 1;
            if jobs >= JOBS_A_TURN || now.saturating_sub(since) >= NANOS_A_TURN {
                tokio::task::yield_now().await;
                (jobs, since) = (0, self.pool.tracker.clock.now());
            }
        }
    }

    /// The next job. With none, or where another works in its place, the worker leaves: in the same critical section,
    /// so that whoever queues a job later finds the vacancy.
    fn take(&mut self, now: Nanos) -> Option<(Job, Gate)> {
        if self.slot.post.load(Ordering::SeqCst) != ON_STAFF {
            return None;
        }
        let queue = &self.pool.tracker.queue;
        let mut line = queue.line();
        if std::mem::take(&mut self.is_fresh) {
            line.fresh -= 1;
        }
        let job = queue.pop(&mut line, now);
        if job.is_none() && self.slot.leave_staff(RETIRED) {
            line.staff -= 1;
        }
        Some((job?, line.gate))
    }

    async fn start(&mut self, entry: Arc<Entry>, terms: &Terms) -> bool {
        let event = SessionStart {
            session: entry.session(),
            resumed_from: entry.resumed_from(),
            event_id: self.pool.tracker.event_id(&entry),
        };
        self.in_hand = Some(InHand::Start(Arc::clone(&entry)));
        let pool = &self.pool;
        let failed = call_all(&pool.hooks.start, event, terms.expires, || ticker::ensure(pool)).await;
        for (hook, error) in failed {
            pool.record(pool.failure(&entry, &hook, error));
        }
        self.in_hand = None;
        self.pool.tracker.started(&entry)
    }

    async fn end(&mut self, entry: Arc<Entry>, ending: Ending, terms: &Terms) -> bool {
        let pool = Arc::clone(&self.pool);
        let joint = (!pool.batches.is_empty()).then(|| Joint::new(&pool, &entry, &ending));
        if let Some(joint) = &joint {
            pool.line_up(joint);
        }
        let failed = if pool.hooks.end.is_empty() {
            Vec::new()
        } else {
            entry.set_ending();
            self.in_hand = Some(InHand::End(Arc::clone(&entry), joint.clone()));
            let event = pool.end_event(&entry, ending, terms);
            let failed = call_all(&pool.hooks.end, event, terms.expires, || ticker::ensure(&pool)).await;
            self.in_hand = None;
            failed
        };
        let outcome = if failed.is_empty() { Outcome::Ended } else { Outcome::Failed };
        for (hook, error) in failed {
            pool.record(pool.failure(&entry, &hook, error));
        }
        match joint {
            Some(joint) => {
                joint.part_is_over(outcome);
                false
            }
            None => pool.tracker.ended(&entry, outcome),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.is_fresh {
            self.pool.tracker.queue.line().fresh -= 1;
            self.pool.forget_runtime();
        }
        if self.slot.leave_staff(RETIRED) {
            self.pool.tracker.queue.line().staff -= 1;
        }
        lock(&self.pool.floor).slots.remove(&self.slot.key);
        // Still in hand: the task was dropped, by `finish` or by a runtime that goes away.
        let Some(in_hand) = self.in_hand.take() else { return };
        match in_hand {
            InHand::Start(entry) => drop(self.pool.tracker.started(&entry)),
            InHand::End(_, Some(joint)) => joint.part_is_over(Outcome::Aborted),
            InHand::End(entry, None) => drop(self.pool.tracker.ended(&entry, Outcome::Aborted)),
        }
        self.pool.kick();
    }
}

impl Pool {
    pub(super) fn failure(&self, entry: &Entry, hook: &str, error: HookError) -> HookFailure {
        HookFailure {
            session_id: entry.id.clone(),
            event_id: self.tracker.event_id(entry),
            hook: hook.to_owned(),
            error,
        }
    }

    pub(super) fn end_event(&self, entry: &Entry, ending: Ending, terms: &Terms) -> SessionEnd {
        let (started_at, duration, requests) = self.tracker.life_of(entry, &ending);
        SessionEnd {
            session: entry.session(),
            reason: ending.reason,
            next: ending.next.map(|next| *next),
            started_at,
            duration,
            requests,
            transcript_archived: None,
            event_id: self.tracker.event_id(entry),
            deadline: terms.deadline.map(Into::into),
        }
    }
}
