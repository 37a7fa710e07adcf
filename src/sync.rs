//! Synchronisation primitives: `std`, or `shuttle` under `cfg(shuttle)`.

#[cfg(not(shuttle))]
pub(crate) use std::sync::{
    Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{
    Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};

use std::sync::PoisonError;

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// Locks a mutex and ignores poisoning: no user code runs under these locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `condition` holds, at most until `deadline`. A step that makes it true must notify afterwards.
pub(crate) async fn wait_for(notify: &Notify, deadline: Option<Instant>, mut condition: impl FnMut() -> bool) {
    let holds = async {
        loop {
            let notified = notify.notified();
            tokio::pin!(notified);
            // Register before reading, so no notification is lost in between.
            notified.as_mut().enable();
            if condition() {
                break;
            }
            notified.await;
        }
    };
    match deadline {
        Some(deadline) => drop(timeout_at(deadline, holds).await),
        None => holds.await,
    }
}
