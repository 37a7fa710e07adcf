//! The stop: [`ActiveSessions::shutdown_on`], [`ActiveSessions::drain`] and [`ActiveSessions::finish`].

mod drain;
mod finish;
pub mod signal;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

pub use self::finish::Finished;
use self::signal::ShutdownRequest;
use crate::{
    lifecycle::ActiveSessions,
    observability::escape_controls,
    session::{EndReason, Phase},
};

impl ActiveSessions {
    /// The future for axum's `with_graceful_shutdown`: waits for `signal`, then runs the session drain, and resolves
    /// when that is over, so that the connections drain after the sessions.
    ///
    /// The phases: at the signal [`Phase::LameDuck`], for as long as the
    /// [builder](crate::ActiveSessionsBuilder::lame_duck) says (not at all by default); then [`Phase::Closing`] and the
    /// [drain](Self::drain), which takes at most [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout). A
    /// session that is born meanwhile gets its end at once. A second signal, where the [`ShutdownRequest`] has one, ends the waiting.
    ///
    /// It is also the driver of idle expiry, for as long as it is polled. For that alone, without a server, spawn
    /// `sessions.shutdown_on(std::future::pending::<()>())`.
    ///
    /// ShardPair servers on one handle work: give each its own future. The first signal drains for all, and the time of the
    /// connections counts from the last signal: a server that has had none by then is stopped with the others.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use tower_session_end::{ActiveSessions, signal};
    ///
    /// # async fn run(app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
    /// let sessions = ActiveSessions::builder().build()?;
    /// let app = app.layer(sessions.layer());
    ///
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signal::terminate()));
    /// let report = sessions.finish(server).await.into_result()?;
    /// println!("{report}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown_on<F>(&self, signal: F) -> Shutdown
    where
        F: Future<Output: Into<ShutdownRequest>> + Send + 'static,
    {
        Shutdown { stopping: Box::pin(self.clone().stop_on(signal)) }
    }

    async fn stop_on<F: Future<Output: Into<ShutdownRequest>>>(self, signal: F) {
        self.inner.pool.remember_runtime();
        let ShutdownRequest { reason, again } = tokio::select! {
            biased;
            stop = contained(signal) => stop,
            never = self.drive() => match never {},
        };
        let mut again = again.unwrap_or_else(|| Box::pin(std::future::pending()));
        self.inner.stop.update(|progress| progress.signals += 1);
        // The reason is known from here on, whatever becomes of this future.
        self.inner.pool.tracker.advance(Phase::Open, reason);
        let mut abandoned = AbandonOnDrop(Some(&self));
        tracing::info!(name: "session-shutdown", %reason, sessions = self.len(), "told to stop");
        tokio::select! {
            biased;
            () = self.with_lease(self.lame_duck_and_drain(reason)) => {
                // `finish` goes on listening while the connections drain.
                self.inner.stop.again.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(again);
                // It may be waiting already, and has to see the newcomer.
                self.inner.stop.update(|_| {});
            }
            () = &mut again => self.cut(),
        }
        abandoned.0 = None;
    }

    async fn lame_duck_and_drain(&self, reason: EndReason) {
        let lame_duck = self.inner.config.lame_duck;
        if !lame_duck.is_zero() {
            self.inner.pool.tracker.advance(Phase::LameDuck, reason);
            tokio::select! {
                () = tokio::time::sleep(lame_duck) => {}
                never = self.drive_expiry() => match never {},
            }
        }
        // The report leaves through the handle: axum's hook for this future has no place for it.
        let _ = self.drain(reason).await;
    }

    /// A second signal.
    fn cut(&self) {
        tracing::warn!(name: "session-shutdown-forced", "told to stop a second time: no longer waiting");
        self.inner.stop.update(|progress| progress.cuts += 1);
    }
}

/// Says on its drop that nobody drives the stop any more, unless it was told otherwise.
struct AbandonOnDrop<'a>(Option<&'a ActiveSessions>);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(sessions) = self.0 {
            sessions.inner.stop.update(|progress| progress.abandoned = true);
        }
    }
}

/// A signal that panics stops, as one that fails does: else the server would drain its connections with no limit.
async fn contained<F: Future<Output: Into<ShutdownRequest>>>(signal: F) -> ShutdownRequest {
    let mut signal = Box::pin(signal);
    let catch = |f: &mut dyn FnMut() -> Poll<ShutdownRequest>| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or_else(|_| {
            signal_failed(&"it panicked");
            Poll::Ready(ShutdownRequest::new(EndReason::Shutdown))
        })
    };
    let stop = std::future::poll_fn(|cx| catch(&mut || signal.as_mut().poll(cx).map(Into::into))).await;
    let mut signal = Some(signal);
    let _ = catch(&mut || {
        drop(signal.take());
        Poll::Pending
    });
    stop
}

fn signal_failed(error: &dyn fmt::Display) {
    tracing::error!(name: "session-signal-failed", error = %escape_controls(error), "the shutdown signal failed; stopping");
}

fn cannot_listen(signal: &str, error: &dyn fmt::Display) {
    tracing::error!(name: "session-signal-unavailable", signal, error = %escape_controls(error), "cannot listen for a signal");
}

/// Resolves when the sessions have been drained, after a signal; made by [`ActiveSessions::shutdown_on`].
#[must_use = "futures do nothing unless polled: hand it to `with_graceful_shutdown`"]
pub struct Shutdown {
    stopping: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Future for Shutdown {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.stopping.as_mut().poll(cx)
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").finish_non_exhaustive()
    }
}
