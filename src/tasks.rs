//! The background tasks of a handle, and the runtime that they are spawned on.
//!
//! A session may end on a thread without a runtime, or while a runtime shuts down. So a runtime is remembered: the
//! one in which the handle was built, or that of a later caller. Without a runtime, work stays queued until a caller has
//! one. A runtime without a timer counts as none: hooks have time limits, so they cannot run there.

use std::{cell::Cell, sync::Once, time::Duration};

use tokio::{runtime::Handle, task::AbortHandle};
use tokio_util::task::TaskTracker;

use crate::{
    panic::catch,
    sync::{Mutex, lock},
};

#[derive(Debug)]
pub(crate) struct Tasks {
    runtime: Mutex<Option<Handle>>,
    running: TaskTracker,
    without_timer: Once,
}

/// The caller's runtime has no timer.
#[derive(Debug)]
pub(crate) struct NoTimer;

thread_local! {
    /// The last probe on this thread found a runtime without a timer. tokio has no question for that but a panic, which
    /// is printed. So a runtime is probed once on each of its threads, and again only by an explicit call.
    static WITHOUT_TIMER: Cell<bool> = const { Cell::new(false) };
}

impl Tasks {
    pub(crate) fn new() -> Result<Self, NoTimer> {
        let runtime = Mutex::new(probe()?);
        Ok(Self { runtime, running: TaskTracker::new(), without_timer: Once::new() })
    }

    /// Remembers the runtime of the caller, if it has one.
    pub(crate) fn remember_runtime(&self) {
        let current = self.timed_runtime();
        self.replace_runtime(current);
    }

    /// As [`remember_runtime`](Self::remember_runtime), for calls that come often: a thread without a timer is probed
    /// once.
    pub(crate) fn remember_runtime_once_probed(&self) {
        let current = self.timed_runtime_once_probed();
        self.replace_runtime(current);
    }

    fn replace_runtime(&self, current: Option<Handle>) {
        if let Some(current) = current {
            // The old handle is dropped after the lock.
            let _old = lock(&self.runtime).replace(current);
        }
    }

    /// The runtime of the caller, unless it has no timer.
    fn timed_runtime(&self) -> Option<Handle> {
        probe().unwrap_or_else(|NoTimer| {
            self.without_timer.call_once(|| {
                tracing::error!(
                    name: "session-runtime-without-timer",
                    "this tokio runtime has no timer, so no hook can run in it: build it with `enable_all` or \
                     `enable_time`. Hooks wait for a call from a runtime that has one (logged once)",
                );
            });
            None
        })
    }

    fn timed_runtime_once_probed(&self) -> Option<Handle> {
        if WITHOUT_TIMER.get() { None } else { self.timed_runtime() }
    }

    pub(crate) fn has_runtime(&self) -> bool {
        lock(&self.runtime).is_some()
    }

    /// Must be called when a task was dropped before its first poll: the remembered runtime has shut down.
    pub(crate) fn drop_runtime(&self) {
        let _old = lock(&self.runtime).take();
    }

    /// Spawns on the remembered runtime, or on the caller's. With neither, the task is dropped at once.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        let remembered = lock(&self.runtime).clone();
        // No lock is held here: a runtime that shuts down drops the task at once, and the drop takes locks.
        let runtime = remembered.or_else(|| self.timed_runtime_once_probed())?;
        Some(self.running.spawn_on(task, &runtime).abort_handle())
    }

    /// Waits until every task has exited, at most for `limit`: a task that blocks its thread cannot be aborted.
    pub(crate) async fn wait(&self, limit: Duration) {
        self.running.close();
        let _ = tokio::time::timeout(limit, self.running.wait()).await;
    }
}

/// The runtime of the caller. `None` outside of a runtime.
fn probe() -> Result<Option<Handle>, NoTimer> {
    let Ok(current) = Handle::try_current() else { return Ok(None) };
    let has_timer = catch(|| drop(tokio::time::sleep(Duration::ZERO))).is_ok();
    WITHOUT_TIMER.set(!has_timer);
    if has_timer { Ok(Some(current)) } else { Err(NoTimer) }
}
