//! The background tasks of a handle, and the runtime that they are spawned on.
//!
//! A session may end on a thread without a runtime, or while a runtime shuts down. So a runtime is remembered: the
//! one in which the handle was built, or that of a later caller. Without a runtime, work stays queued until a caller has
//! one.

use std::time::Duration;

use tokio::{runtime::Handle, task::AbortHandle};
use tokio_util::task::TaskTracker;

use crate::sync::{Mutex, lock};

#[derive(Debug)]
pub(crate) struct Tasks {
    runtime: Mutex<Option<Handle>>,
    running: TaskTracker,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        Self { runtime: Mutex::new(Handle::try_current().ok()), running: TaskTracker::new() }
    }

    /// Remembers the runtime of the caller, if it has one.
    pub(crate) fn remember_runtime(&self) {
        if let Ok(current) = Handle::try_current() {
            // The old handle is dropped after the lock.
            let _old = lock(&self.runtime).replace(current);
        }
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
        let runtime = remembered.or_else(|| Handle::try_current().ok())?;
        Some(self.running.spawn_on(task, &runtime).abort_handle())
    }

    /// Waits until every task has exited, at most for `limit`: a task that blocks its thread cannot be aborted.
    pub(crate) async fn wait(&self, limit: Duration) {
        self.running.close();
        let _ = tokio::time::timeout(limit, self.running.wait()).await;
    }
}
