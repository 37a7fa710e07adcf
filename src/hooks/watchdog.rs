//! The watchdog: one task that detaches slow workers and paces a drain, without a timer for each hook.
//!
//! It exists only while a hook is pending.

use std::{sync::Arc, time::Duration};

use super::pool::Pool;
use crate::{
    sync::lock,
    tracker::clock::{Nanos, nanos},
};

/// Spawns the watchdog, unless it exists. Called by a worker whose hook is pending after its first poll.
pub(super) fn ensure_watchdog(pool: &Arc<Pool>) {
    {
        let mut workers = lock(&pool.workers);
        if workers.has_watchdog {
            return;
        }
        workers.has_watchdog = true;
    }
    let watchdog = Watchdog { pool: Arc::clone(pool), exited: false };
    if let Some(abort) = pool.tasks.spawn(watchdog.run()) {
        lock(&pool.workers).watchdog = Some(abort);
    }
}

/// The most workers that one tick spawns for a drain that is behind its pace. A thread starts fewer before the next
/// tick.
const MAX_CATCH_UP_WORKERS: usize = 8192;

/// The same after a late tick: the runtime's threads are busy, and more hooks would slow each other down. It is not 0,
/// because the threads may be busy with other work while all hooks hang.
const MAX_CATCH_UP_WORKERS_LATE: usize = 512;

struct Watchdog {
    pool: Arc<Pool>,
    exited: bool,
}

impl Watchdog {
    async fn run(mut self) {
        let period = (self.pool.config.drain_timeout / 64).clamp(Duration::from_millis(1), Duration::from_millis(250));
        loop {
            let due = self.pool.tracker.clock.now().saturating_add(nanos(period));
            tokio::time::sleep(period).await;
            let now = self.pool.tracker.clock.now();
            if !self.check_workers(now) {
                return;
            }
            let is_late = now.saturating_sub(due) > nanos(period) / 8;
            let max = if is_late { MAX_CATCH_UP_WORKERS_LATE } else { MAX_CATCH_UP_WORKERS };
            self.pool.spawn_workers(self.missing_starts(self.pool.tracker.clock.now()).min(max));
        }
    }

    /// Detaches slow workers. Returns false if no worker is busy.
    fn check_workers(&mut self, now: Nanos) -> bool {
        let adaptive = self.pool.config.max_concurrent_hooks.is_none();
        let patience = self.pool.patience();
        let mut detached = 0;
        {
            let mut workers = lock(&self.pool.workers);
            if !workers.states.values().any(|worker| worker.is_busy()) {
                // In the same critical section: a worker whose hook is pending later spawns a new watchdog.
                workers.has_watchdog = false;
                self.exited = true;
                return false;
            }
            for worker in workers.states.values() {
                if adaptive && worker.is_slow(now, patience) && worker.detach() {
                    detached += 1;
                }
            }
        }
        self.pool.tracker.queue.state().attached -= detached;
        true
    }

    /// How many hooks the drain is behind its pace.
    fn missing_starts(&self, now: Nanos) -> usize {
        if self.pool.config.max_concurrent_hooks.is_some() {
            return 0;
        }
        let queue = self.pool.tracker.queue.state();
        let Some(pace) = queue.pace else { return 0 };
        let started = queue.started - pace.started;
        let all = u128::from(started) + queue.jobs.len() as u128;
        let due = all * u128::from(now.saturating_sub(pace.began)) / u128::from(pace.span.max(1));
        usize::try_from(due.min(all).saturating_sub(u128::from(started))).unwrap_or(usize::MAX)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if !self.exited {
            lock(&self.pool.workers).has_watchdog = false;
        }
    }
}
