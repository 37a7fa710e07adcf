//! The shutdown of a handle: the drain of the sessions, then that of the connections, each with a deadline.

mod drain;
mod finish;
pub(crate) mod report;
pub mod signal;
mod state;

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::finish::FinishOutput;
use self::{signal::ShutdownRequest, state::ShutdownState};
use crate::{
    hooks::Pool,
    housekeeper::Housekeeper,
    observability::escape_controls,
    panic::CatchPanic,
    persist::Persister,
    session::{EndReason, Phase},
    tasks::Tasks,
    tracker::Tracker,
};

#[derive(Clone, Copy, Debug)]
pub(crate) struct ShutdownConfig {
    pub(crate) lame_duck_timeout: Duration,
    pub(crate) settle_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) connection_drain_timeout: Duration,
    pub(crate) hook_timeout: Duration,
}

/// Everything that the shutdown of one handle needs.
pub(crate) struct Shutdown {
    tracker: Arc<Tracker>,
    tasks: Arc<Tasks>,
    pool: Arc<Pool>,
    housekeeper: Arc<Housekeeper>,
    persister: Option<Arc<Persister>>,
    pub(crate) config: ShutdownConfig,
    state: ShutdownState,
    /// Cancelled in `Closing`.
    pub(crate) closing: CancellationToken,
    /// Cancelled when the drain is over: event streams that belong to no session end.
    pub(crate) drained: CancellationToken,
    /// Cancelled in `Closed`: requests and bodies that are still open are ended.
    pub(crate) closed: CancellationToken,
    /// Requests without a response, and bodies without an end.
    pub(crate) open_responses: AtomicUsize,
}

impl Shutdown {
    pub(crate) fn new(
        tracker: Arc<Tracker>,
        tasks: Arc<Tasks>,
        pool: Arc<Pool>,
        housekeeper: Arc<Housekeeper>,
        persister: Option<Arc<Persister>>,
        config: ShutdownConfig,
    ) -> Arc<Self> {
        Arc::new(Self {
            tracker,
            tasks,
            pool,
            housekeeper,
            persister,
            config,
            state: ShutdownState::default(),
            closing: CancellationToken::new(),
            drained: CancellationToken::new(),
            closed: CancellationToken::new(),
            open_responses: AtomicUsize::new(0),
        })
    }

    /// Waits for the signal, then runs the drain. Until then it drives idle expiry and the lease.
    pub(crate) fn on<F>(self: Arc<Self>, signal: F) -> ShutdownFuture
    where
        F: Future<Output: Into<ShutdownRequest>> + Send + 'static,
    {
        ShutdownFuture { running: Box::pin(self.run(signal)) }
    }

    async fn run<F: Future<Output: Into<ShutdownRequest>> + Send>(self: Arc<Self>, signal: F) {
        self.tasks.remember_runtime();
        let ShutdownRequest { reason, again } = tokio::select! {
            biased;
            request = request_of(signal) => request,
            never = self.housekeeper.drive() => match never {},
            never = self.drive_persister() => match never {},
        };
        let mut again = again.unwrap_or_else(|| Box::pin(std::future::pending()));
        self.state.update(|progress| progress.signals += 1);
        // The reason is known from here on, whatever becomes of this future.
        self.tracker.advance(Phase::Open, reason);
        let mut abandoned = AbandonOnDrop(Some(&self));
        tracing::info!(name: "session-shutdown", %reason, sessions = self.tracker.len(), "shutdown requested");
        tokio::select! {
            biased;
            () = self.with_heartbeat(self.lame_duck_and_drain(reason)) => {
                // `finish` goes on listening while the connections drain.
                lock(&self.state.again).push(again);
                // It may be waiting already, and has to see the new one.
                self.state.update(|_| {});
            }
            () = &mut again => self.force(),
        }
        abandoned.0 = None;
    }

    async fn lame_duck_and_drain(&self, reason: EndReason) {
        let lame_duck = self.config.lame_duck_timeout;
        if !lame_duck.is_zero() {
            self.tracker.advance(Phase::LameDuck, reason);
            tokio::select! {
                () = tokio::time::sleep(lame_duck) => {}
                never = self.housekeeper.drive() => match never {},
            }
        }
        // `finish` returns the report: axum drops the output of this future.
        let _ = self.drain(reason).await;
    }

    /// A second signal came.
    fn force(&self) {
        tracing::warn!(name: "session-shutdown-forced", "a second signal came: no longer waiting");
        self.state.update(|progress| progress.forced += 1);
    }

    /// Sends heartbeats and recovers orphans, for as long as it is polled.
    async fn drive_persister(&self) -> Infallible {
        match &self.persister {
            Some(persister) => persister.drive(&self.pool).await,
            None => std::future::pending().await,
        }
    }

    /// Runs `work`, and keeps the lease meanwhile.
    async fn with_heartbeat<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            output = work => output,
            never = self.drive_persister() => match never {},
        }
    }

    async fn until_written(&self, deadline: Option<Instant>) {
        if let Some(persister) = &self.persister {
            persister.until_written(&self.pool, deadline).await;
        }
    }
}

/// Records on its drop that the future was dropped between its signal and the end of the drain, unless it was disarmed.
struct AbandonOnDrop<'a>(Option<&'a Shutdown>);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(shutdown) = self.0 {
            shutdown.state.update(|progress| progress.abandoned = true);
        }
    }
}

/// A signal that panics requests a shutdown, as one that fails does: else the server would drain its connections with no limit.
async fn request_of<F: Future<Output: Into<ShutdownRequest>>>(signal: F) -> ShutdownRequest {
    let request = Box::pin(async { signal.await.into() });
    CatchPanic::new(request).await.unwrap_or_else(|panic| {
        signal_failed(&panic);
        ShutdownRequest::new(EndReason::Shutdown)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signal_failed(error: &dyn fmt::Display) {
    tracing::error!(name: "session-signal-failed", error = %escape_controls(error), "the shutdown signal failed; the shutdown begins");
}

fn cannot_listen(signal: &str, error: &dyn fmt::Display) {
    tracing::error!(name: "session-signal-unavailable", signal, error = %escape_controls(error), "cannot listen for a signal");
}

/// Resolves when the sessions have been drained, after a signal; made by
/// [`ActiveSessions::shutdown_on`](crate::ActiveSessions::shutdown_on).
///
/// # Cancel safety
///
/// Dropped before the signal, it changes nothing. Dropped later, `finish` runs the rest of the drain.
#[must_use = "futures do nothing unless polled: hand it to `with_graceful_shutdown`"]
pub struct ShutdownFuture {
    running: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Future for ShutdownFuture {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.running.as_mut().poll(cx)
    }
}

impl fmt::Debug for ShutdownFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShutdownFuture").finish_non_exhaustive()
    }
}
