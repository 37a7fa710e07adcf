//! What a handle remembers of its stop: the drain that runs, the servers, the signals.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::{sync::watch, time::Instant};

use super::report::DrainReport;
use crate::{session::EndReason, tracker::Counts};

/// A signal that has yet to come.
pub(crate) type SecondSignal = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) struct ShutdownState {
    progress: watch::Sender<ShutdownProgress>,
    /// Second signals whose future has ended before they came; `finish` listens to them.
    pub(crate) again: Mutex<Vec<SecondSignal>>,
}

#[derive(Clone, Default)]
pub(crate) struct ShutdownProgress {
    /// The drain that was began last.
    run: Option<Arc<Drain>>,
    /// The drain that was began first: the final report counts from there.
    first: Option<Arc<Drain>>,
    /// When the connections began to drain: with several servers, those of the last.
    pub(crate) drained_at: Option<Instant>,
    /// `finish` futures that are not over.
    pub(crate) servers: usize,
    /// Futures that got their signal, and those of them that got a second one.
    pub(crate) signals: usize,
    pub(crate) forced: usize,
    /// A future was dropped between its signal and the end of the drain: `finish` sees to that itself.
    pub(crate) abandoned: bool,
}

impl ShutdownProgress {
    /// Whether everybody who got a signal got a second one: then nobody wants to wait.
    pub(crate) const fn is_forced(&self) -> bool {
        self.signals > 0 && self.forced >= self.signals
    }
}

/// One drain, which every future that asks for a drain meanwhile shares.
pub(crate) struct Drain {
    pub(crate) reason: EndReason,
    pub(crate) began: Instant,
    pub(crate) deadline: Option<Instant>,
    /// The counts when it began.
    pub(crate) before: Counts,
    pub(crate) report: OnceLock<DrainReport>,
    /// Futures that wait for it, under the lock of [`ShutdownProgress`]. Where all were dropped, the next one begins anew.
    waiting: Mutex<usize>,
}

impl Drain {
    pub(crate) fn new(reason: EndReason, began: Instant, deadline: Option<Instant>, before: Counts) -> Arc<Self> {
        Arc::new(Self { reason, began, deadline, before, report: OnceLock::new(), waiting: Mutex::new(0) })
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, usize> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those who wait for a drain.
pub(crate) struct DrainWaiter(pub(crate) Arc<Drain>);

impl Drop for DrainWaiter {
    fn drop(&mut self) {
        *self.0.waiting() -= 1;
    }
}

impl Default for ShutdownState {
    fn default() -> Self {
        Self { progress: watch::Sender::new(ShutdownProgress::default()), again: Mutex::default() }
    }
}

impl ShutdownState {
    /// Joins the drain that runs, or begins the one that `begin` makes, told how many servers there are.
    pub(crate) fn join(&self, begin: impl FnOnce(usize) -> Arc<Drain>) -> DrainWaiter {
        let mut joined = None;
        self.progress.send_modify(|progress| {
            let running = progress.run.take().filter(|run| run.report.get().is_none() && *run.waiting() > 0);
            let servers = progress.servers;
            let run = running.unwrap_or_else(|| begin(servers));
            *run.waiting() += 1;
            progress.first.get_or_insert_with(|| Arc::clone(&run));
            progress.run = Some(Arc::clone(&run));
            joined = Some(DrainWaiter(run));
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

    /// The drain that was began first.
    pub(crate) fn first_run(&self) -> Option<Arc<Drain>> {
        self.progress.borrow().first.clone()
    }

    /// Resolves at the next change after this call.
    pub(crate) fn changed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut changes = self.progress.subscribe();
        async move { drop(changes.changed().await) }
    }

    pub(crate) async fn wait_for(&self, condition: impl FnMut(&ShutdownProgress) -> bool) {
        // It fails only if the sender is gone, and we hold it.
        let _ = self.progress.subscribe().wait_for(condition).await;
    }
}
