//! The state of a handle's shutdown: its drains, its servers, its signals.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use tokio::{sync::watch, time::Instant};

use super::report::DrainReport;
use crate::{session::EndReason, tracker::Counts};

/// Resolves at the second signal, which forces the shutdown.
pub(crate) type SecondSignal = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) struct ShutdownState {
    progress: watch::Sender<ShutdownProgress>,
    /// The second signals of `shutdown_on` futures that have completed. `finish` goes on polling them.
    pub(crate) second_signals: Mutex<Vec<SecondSignal>>,
}

#[derive(Clone, Default)]
pub(crate) struct ShutdownProgress {
    last_drain: Option<Arc<Drain>>,
    /// The final report counts from its beginning.
    first_drain: Option<Arc<Drain>>,
    /// When the connection drain began: with several servers, that of the last signal.
    pub(crate) connections_since: Option<Instant>,
    /// `finish` futures that have not left yet.
    pub(crate) servers: usize,
    /// `finish` futures that have not returned, and were not dropped.
    pub(crate) finishing: usize,
    /// `shutdown_on` futures that got their signal.
    pub(crate) signalled: usize,
    /// `shutdown_on` futures that got their second signal.
    pub(crate) forced: usize,
    /// A `shutdown_on` future was dropped between its signal and the end of its drain. `finish` runs that drain.
    pub(crate) is_abandoned: bool,
}

impl ShutdownProgress {
    /// Whether a drain has begun.
    pub(crate) const fn has_drain(&self) -> bool {
        self.first_drain.is_some()
    }

    /// Whether no drain runs, and the last one has its report.
    pub(crate) fn is_drained(&self) -> bool {
        self.last_drain.as_ref().is_some_and(|drain| drain.report.get().is_some())
    }

    /// Whether every future that got a signal got a second one.
    pub(crate) const fn is_forced(&self) -> bool {
        self.signalled > 0 && self.forced >= self.signalled
    }
}

/// One drain. All futures that ask for a drain while it runs share it.
pub(crate) struct Drain {
    pub(crate) reason: EndReason,
    pub(crate) started_at: Instant,
    pub(crate) deadline: Option<Instant>,
    /// The counts at its beginning.
    pub(crate) baseline: Counts,
    pub(crate) report: OnceLock<DrainReport>,
    /// Futures that wait for it, changed under the lock of [`ShutdownProgress`]. Once all of them were dropped, the
    /// next one begins a new drain.
    waiters: Mutex<usize>,
}

impl Drain {
    pub(crate) fn new(
        reason: EndReason,
        started_at: Instant,
        deadline: Option<Instant>,
        baseline: Counts,
    ) -> Arc<Self> {
        Arc::new(Self { reason, started_at, deadline, baseline, report: OnceLock::new(), waiters: Mutex::new(0) })
    }

    fn waiters(&self) -> std::sync::MutexGuard<'_, usize> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one waiter of a drain, until it is dropped.
pub(crate) struct DrainWaiter(pub(crate) Arc<Drain>);

impl Drop for DrainWaiter {
    fn drop(&mut self) {
        *self.0.waiters() -= 1;
    }
}

impl Default for ShutdownState {
    fn default() -> Self {
        Self { progress: watch::Sender::new(ShutdownProgress::default()), second_signals: Mutex::default() }
    }
}

impl ShutdownState {
    /// Joins the drain that runs. If none runs, `begin` makes one; its argument is the number of servers.
    pub(crate) fn join_drain(&self, begin: impl FnOnce(usize) -> Arc<Drain>) -> DrainWaiter {
        let mut joined = None;
        self.progress.send_modify(|progress| {
            let running =
                progress.last_drain.take().filter(|drain| drain.report.get().is_none() && *drain.waiters() > 0);
            let servers = progress.servers;
            let drain = running.unwrap_or_else(|| begin(servers));
            *drain.waiters() += 1;
            progress.first_drain.get_or_insert_with(|| Arc::clone(&drain));
            progress.last_drain = Some(Arc::clone(&drain));
            joined = Some(DrainWaiter(drain));
        });
        // `send_modify` has called the closure.
        joined.unwrap_or_else(|| unreachable!("a watch channel calls its closure"))
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut ShutdownProgress)) {
        self.progress.send_modify(change);
    }

    pub(crate) fn progress(&self) -> ShutdownProgress {
        self.progress.borrow().clone()
    }

    pub(crate) fn first_drain(&self) -> Option<Arc<Drain>> {
        self.progress.borrow().first_drain.clone()
    }

    /// The first drain, and the deadline of the last one.
    pub(crate) fn first_drain_and_deadline(&self) -> Option<(Arc<Drain>, Option<Instant>)> {
        let progress = self.progress.borrow();
        let first = progress.first_drain.as_ref()?;
        Some((Arc::clone(first), progress.last_drain.as_ref().unwrap_or(first).deadline))
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<ShutdownProgress> {
        self.progress.subscribe()
    }

    /// Resolves at the next change after this call.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut changes = self.progress.subscribe();
        async move { drop(changes.changed().await) }
    }

    pub(crate) async fn wait_for(&self, condition: impl FnMut(&ShutdownProgress) -> bool) {
        // It fails only once the sender is dropped, and `self` owns the sender.
        let _ = self.progress.subscribe().wait_for(condition).await;
    }
}
