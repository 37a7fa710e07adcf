//! The shutdown of a handle: first the sessions drain, then the connections. Each has a deadline.

mod drain;
mod finish;
mod listener;
mod open_responses;
pub(crate) mod progress;
pub(crate) mod report;
pub mod signal;
mod state;

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::open_responses::{OpenResponses, Slot};
pub use self::{finish::FinishOutput, listener::AcceptUntilSignal};
use self::{signal::ShutdownRequest, state::ShutdownState};
use crate::{
    hooks::Pool,
    housekeeper::Housekeeper,
    observability::escape_controls,
    panic::{CatchPanic, catch},
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

/// The shutdown of one handle.
pub(crate) struct Shutdown {
    tracker: Arc<Tracker>,
    tasks: Arc<Tasks>,
    pool: Arc<Pool>,
    housekeeper: Arc<Housekeeper>,
    persister: Option<Arc<Persister>>,
    pub(crate) config: ShutdownConfig,
    state: ShutdownState,
    /// A `shutdown_on` future of the handle has been polled.
    is_driven: AtomicBool,
    undriven_finish: Once,
    blocked_server: Once,
    /// Cancelled at the first signal, and when a drain begins.
    pub(crate) signalled: CancellationToken,
    /// Cancelled when the phase becomes `Closing`.
    pub(crate) closing: CancellationToken,
    /// Cancelled when the drain is over: then event streams without a session end.
    pub(crate) drained: CancellationToken,
    /// Cancelled when the phase becomes `Closed`: then open requests and bodies end.
    pub(crate) closed: CancellationToken,
    /// Closed after `closed` is cancelled.
    pub(crate) open_responses: OpenResponses,
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
            is_driven: AtomicBool::new(false),
            undriven_finish: Once::new(),
            blocked_server: Once::new(),
            signalled: CancellationToken::new(),
            closing: CancellationToken::new(),
            drained: CancellationToken::new(),
            closed: CancellationToken::new(),
            open_responses: OpenResponses::default(),
        })
    }

    /// Waits for the signal, then runs the drain. Until then it drives idle expiry and the lease.
    pub(crate) fn shutdown_on<F>(self: Arc<Self>, signal: F) -> ShutdownFuture
    where
        F: Future<Output: Into<ShutdownRequest>> + Send + 'static,
    {
        ShutdownFuture { inner: Box::pin(self.drain_on(signal)) }
    }

    async fn drain_on<F: Future<Output: Into<ShutdownRequest>> + Send>(self: Arc<Self>, signal: F) {
        self.is_driven.store(true, Ordering::Relaxed);
        self.tasks.remember_runtime();
        // Hooks that have waited for a runtime.
        self.pool.wake();
        self.pool.wake_batches();
        let ShutdownRequest { reason, second_signal } = tokio::select! {
            biased;
            request = request_of(signal) => request,
            never = self.housekeeper.drive() => match never {},
            never = self.drive_persister() => match never {},
        };
        let mut second_signal = second_signal.unwrap_or_else(|| Box::pin(std::future::pending()));
        self.state.update(|progress| progress.signalled += 1);
        // The reason has to be known even if this future is dropped now.
        self.tracker.advance(Phase::Open, reason);
        self.signalled.cancel();
        let mut abandoned = AbandonOnDrop(Some(&self));
        tracing::info!(name: "session-shutdown", %reason, sessions = self.tracker.len(), "shutdown requested");
        tokio::select! {
            biased;
            () = self.with_heartbeat(self.lame_duck_and_drain(reason)) => {
                // `finish` polls it while the connections drain.
                lock(&self.state.second_signals).push(second_signal);
                // Wakes a `finish` that waits already.
                self.state.update(|_| {});
            }
            () = &mut second_signal => self.force(),
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
        // axum drops the output of this future, so the report comes from `finish`.
        let _ = self.drain(reason).await;
    }

    /// Notes that a second signal came.
    fn force(&self) {
        tracing::warn!(
            name: "session-shutdown-forced",
            "a second signal came: the shutdown no longer waits for hooks and connections",
        );
        self.state.update(|progress| progress.forced += 1);
    }

    /// Sends heartbeats and recovers orphans, for as long as it is polled.
    async fn drive_persister(&self) -> Infallible {
        match &self.persister {
            Some(persister) => persister.drive(&self.pool).await,
            None => std::future::pending().await,
        }
    }

    /// Runs `work`, and renews the lease meanwhile.
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

impl Drop for Shutdown {
    fn drop(&mut self) {
        let sessions = self.tracker.len();
        if sessions > 0 && !self.state.progress().has_drain() {
            // A subscriber is user code, and this drop may be part of an unwinding.
            let _ = catch(|| {
                tracing::warn!(
                    name: "session-handle-dropped",
                    sessions,
                    "the last handle was dropped while sessions were active, and no drain has begun: they get no \
                     `session_end` in this process; call `drain`, or `finish`",
                );
            });
        }
    }
}

/// Dropped with a value, it notes that a `shutdown_on` was dropped between its signal and the end of its drain.
struct AbandonOnDrop<'a>(Option<&'a Shutdown>);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(shutdown) = self.0 {
            shutdown.state.update(|progress| progress.is_abandoned = true);
        }
    }
}

/// A signal that panics requests a shutdown, as one that fails does. Otherwise the server would begin a connection
/// drain without a limit.
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
    tracing::error!(
        name: "session-signal-failed",
        error = %escape_controls(error),
        "the future given to `shutdown_on` failed; the shutdown begins",
    );
}

fn cannot_listen(signal: &str, error: &dyn fmt::Display) {
    tracing::error!(
        name: "session-signal-unavailable",
        signal,
        error = %escape_controls(error),
        "`signal::terminate` cannot listen for this signal, which is left out",
    );
}

/// Resolves when the session drain is over, which a signal begins. Made by
/// [`ActiveSessions::shutdown_on`](crate::ActiveSessions::shutdown_on).
///
/// # Cancel safety
///
/// Dropping it before the signal changes nothing, except that idle expiry and the lease lose their driver. Dropping it
/// after the signal loses no session: [`finish`](crate::ActiveSessions::finish) or the next
/// [`drain`](crate::ActiveSessions::drain) runs the rest of the drain.
#[must_use = "futures do nothing unless polled: hand it to `with_graceful_shutdown`"]
pub struct ShutdownFuture {
    inner: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Future for ShutdownFuture {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.as_mut().poll(cx)
    }
}

impl fmt::Debug for ShutdownFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShutdownFuture").finish_non_exhaustive()
    }
}
