//! [`ActiveSessions::finish`]: the bounded connection drain, the sessions that are born in it, and the report.

use std::{
    future::{IntoFuture, poll_fn},
    io,
    pin::pin,
    sync::{PoisonError, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::drain::{grace, log_drain};
use crate::{
    lifecycle::ActiveSessions,
    observability::log_outcome,
    report::{ConnectionReport, ShutdownReport},
    session::Phase,
    stop::Drain,
    tracker::Tracker,
};

impl ActiveSessions {
    /// Runs the server to its end, bounds its connection drain, and returns the report of the stop.
    ///
    /// From the signal on it takes at most [`lame_duck`](crate::ActiveSessionsBuilder::lame_duck) +
    /// [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout) +
    /// [`connection_drain_timeout`](crate::ActiveSessionsBuilder::connection_drain_timeout), whatever the connections
    /// do. What is open then is cut: a request without an answer gets 503 and `connection: close`, an unfinished body
    /// ends with an error. Sessions that are born while the connections drain get their end too, and hooks that the
    /// drain left unfinished go on meanwhile; what still runs when this future is over is dropped.
    ///
    /// A server that ends without a signal is drained here. Any `IntoFuture` is a server; several on one handle work,
    /// each with its own `finish`, polled together: the handle closes with the last of them.
    ///
    /// Code inside `spawn_blocking` cannot be stopped, and a runtime that is dropped waits for it: end `main` with
    /// [`Runtime::shutdown_background`](tokio::runtime::Runtime::shutdown_background) or `std::process::exit` if your
    /// hooks use it.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// let server = async { std::io::Result::Ok(()) }; // ends at once, with no signal
    /// let report = sessions.finish(server).await.into_result()?;
    /// assert!(!report.signalled && report.is_clean());
    /// assert_eq!(report.sessions.ended, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn finish<S: IntoFuture>(&self, server: S) -> impl Future<Output = Finished<S::Output>> + use<S> {
        let place = ServerToken::take(self.clone());
        async move {
            let sessions = place.sessions.clone();
            sessions.with_lease(Self::finish_at(place, server)).await
        }
    }

    async fn finish_at<S: IntoFuture>(place: ServerToken, server: S) -> Finished<S::Output> {
        let sessions = &place.sessions;
        let begun = Instant::now();
        let output = {
            let mut server = pin!(server.into_future());
            tokio::select! {
                biased;
                output = &mut server => Some(output),
                () = sessions.connections_are_due(begun) => None,
            }
        };
        let run = sessions.drain_unless_done().await;
        let cut = output.is_none();
        let elapsed = sessions.connections_began(begun).map(|at| at.elapsed()).unwrap_or_default();
        let open_responses = sessions.inner.open_responses.load(Ordering::SeqCst);
        let is_last = place.leave();
        if is_last {
            sessions.close();
        }
        tokio::select! {
            biased;
            () = sessions.late_sessions(begun, cut) => {}
            () = sessions.until_cut() => {}
        }
        if is_last {
            // What is delivered by now is not to be delivered again by whoever comes after us.
            sessions.until_written(Some(Instant::now() + sessions.time_left(begun))).await;
            sessions.inner.pool.close(sessions.remaining_grace(begun)).await;
            sessions.leave_registry(sessions.time_left(begun)).await;
        }
        Finished {
            output,
            report: sessions.shutdown_report(
                &run,
                ConnectionReport {
                    elapsed,
                    budget: sessions.inner.config.connection_drain_timeout,
                    timed_out: cut,
                    open_responses,
                },
            ),
        }
    }

    /// When the connections have had their time, less the grace for what is cut.
    fn connection_deadline(&self, begun: Instant) -> Option<Instant> {
        let timeout = self.inner.config.connection_drain_timeout;
        self.connections_began(begun)?.checked_add(timeout.saturating_sub(grace(timeout)))
    }

    /// Since when the connections drain: since the drain was over, if this `finish` had begun by then.
    fn connections_began(&self, begun: Instant) -> Option<Instant> {
        Some(self.inner.stop.progress().drained_at?.max(begun))
    }

    async fn connections_are_due(&self, begun: Instant) {
        let deadline = async {
            self.inner.stop.wait_for(|progress| progress.drained_at.is_some() || progress.abandoned).await;
            if self.inner.stop.progress().drained_at.is_none() {
                let _ = self.drain(self.inner.pool.tracker.stop_reason()).await;
            }
            // Another signal may have moved it meanwhile.
            loop {
                match self.connection_deadline(begun) {
                    Some(deadline) if deadline <= Instant::now() => break,
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = deadline => {}
            () = self.until_cut() => {}
        }
    }

    /// Waits until everybody who got a signal got a second one.
    async fn until_cut(&self) {
        let mut change = Box::pin(self.inner.stop.changed());
        poll_fn(|cx| {
            loop {
                // What is not polled goes back; who finds nothing here is woken when the others are put back.
                let again = || self.inner.stop.again.lock().unwrap_or_else(PoisonError::into_inner);
                let mut waiting = std::mem::take(&mut *again());
                waiting.retain_mut(|signal| {
                    let has_come = signal.as_mut().poll(cx).is_ready();
                    if has_come {
                        self.cut();
                    }
                    !has_come
                });
                again().append(&mut waiting);
                if self.inner.stop.progress().is_cut() {
                    return Poll::Ready(());
                }
                if change.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                change = Box::pin(self.inner.stop.changed());
            }
        })
        .await;
    }

    /// Waits for the drain, or runs it, if the server has ended before it; not beyond a second signal.
    async fn drain_unless_done(&self) -> std::sync::Arc<Drain> {
        let progress = self.inner.stop.progress();
        // A second signal has dropped the future of the drain: the report is about that drain, not about one more.
        let is_cut = progress.is_cut() && self.inner.stop.first_run().is_some();
        if progress.drained_at.is_none() && !is_cut {
            tokio::select! {
                biased;
                _ = self.drain(self.inner.pool.tracker.stop_reason()) => {}
                () = self.until_cut() => {}
            }
        }
        // Cut in the lame duck: nothing was begun, and the sessions are owed their ends all the same.
        self.inner.stop.first_run().unwrap_or_else(|| self.begin_drain())
    }

    /// Waits for the ends of what was born in the connection drain, until the deadline.
    async fn late_sessions(&self, begun: Instant, cut: bool) {
        self.inner.pool.tracker.await_late();
        // Without a limit for the connections, that for a hook is left: those of the drain have no other.
        let hook_timeout = self.inner.config.hook_timeout;
        self.quiet(self.connection_deadline(begun).or_else(|| Instant::now().checked_add(hook_timeout))).await;
        // What was cut says so to its client.
        while cut && self.inner.open_responses.load(Ordering::SeqCst) > 0 {
            let Some(end) = self.final_deadline(begun).filter(|end| *end > Instant::now()) else { break };
            sleep_until(end.min(Instant::now() + std::time::Duration::from_millis(1))).await;
        }
    }

    /// What is left for the registry.
    fn time_left(&self, begun: Instant) -> Duration {
        let most = Duration::from_secs(1);
        let left = self.final_deadline(begun).map_or(most, |end| end.saturating_duration_since(Instant::now()));
        left.clamp(Duration::from_millis(10), most)
    }

    /// First the phase, then the sweep, then the cut: no head with a new id leaves after it.
    fn close(&self) {
        let tracker = &self.inner.pool.tracker;
        tracker.advance(Phase::Closed, tracker.stop_reason());
        for shard in 0..Tracker::shards() {
            self.drain_shard(shard, false);
        }
        self.inner.pool.wake();
        self.inner.closing.cancel();
        self.inner.drained.cancel();
        self.inner.cut.cancel();
    }

    /// When `finish` has to be over.
    fn final_deadline(&self, begun: Instant) -> Option<Instant> {
        if self.inner.stop.progress().is_cut() {
            return Some(Instant::now());
        }
        self.connections_began(begun)?.checked_add(self.inner.config.connection_drain_timeout)
    }

    fn remaining_grace(&self, begun: Instant) -> std::time::Duration {
        let least = std::time::Duration::from_millis(10);
        let most = std::time::Duration::from_millis(50);
        self.final_deadline(begun).map_or(most, |end| end.saturating_duration_since(Instant::now())).clamp(least, most)
    }

    fn shutdown_report(&self, run: &Drain, connections: ConnectionReport) -> ShutdownReport {
        let progress = self.inner.stop.progress();
        let sessions = self.account(run, false);
        let drain = run.report.get().cloned();
        self.inner.pool.tracker.meters.reported(sessions.unfinished.len());
        if drain.as_ref().is_none_or(|drain| drain.is_clean() && !sessions.is_clean()) {
            // Else it has been said.
            log_drain(&sessions);
        }
        let report = ShutdownReport {
            signalled: progress.signals > 0,
            forced: progress.cuts > 0,
            drain: drain.unwrap_or_else(|| sessions.clone()),
            sessions,
            connections,
        };
        log_outcome!(
            !report.connections.timed_out,
            name: "session-finish",
            signalled = report.signalled,
            forced = report.forced,
            ended = report.sessions.ended,
            failed = report.sessions.failed,
            unfinished = report.sessions.unfinished.len(),
            timed_out = report.connections.timed_out,
            open_responses = report.connections.open_responses,
            elapsed_ms = report.connections.elapsed.as_millis() as u64,
            "session-finish: {report}",
        );
        report
    }
}

/// A server among those that the handle waits for.
struct ServerToken {
    sessions: ActiveSessions,
    left: std::sync::atomic::AtomicBool,
}

impl ServerToken {
    fn take(sessions: ActiveSessions) -> Self {
        sessions.inner.stop.update(|progress| progress.servers += 1);
        Self { sessions, left: false.into() }
    }

    /// True if it was the last.
    fn leave(&self) -> bool {
        let mut is_last = false;
        if !self.left.swap(true, Ordering::SeqCst) {
            self.sessions.inner.stop.update(|progress| {
                progress.servers -= 1;
                is_last = progress.servers == 0;
            });
        }
        is_last
    }
}

impl Drop for ServerToken {
    fn drop(&mut self) {
        self.leave();
        // Second signals know the waker of whoever polled them last, and that may have been us.
        self.sessions.inner.stop.update(|_| {});
    }
}

/// What [`ActiveSessions::finish`] yields: the report, and what the server itself returned.
#[derive(Debug)]
#[must_use]
#[non_exhaustive]
pub struct Finished<T> {
    /// What the server returned; `None` if it was cut off.
    pub output: Option<T>,
    /// What the stop came to.
    pub report: ShutdownReport,
}

impl<T, E> Finished<Result<T, E>> {
    /// The report, or the server's error.
    ///
    /// # Errors
    ///
    /// That of the server. A server that was cut off has none: the report tells.
    pub fn into_result(self) -> Result<ShutdownReport, E> {
        match self.output {
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => Ok(self.report),
        }
    }
}

impl Finished<()> {
    /// The report, for a server that cannot fail.
    ///
    /// # Errors
    ///
    /// None; the type is that of a server which can fail, so that code need not change between the two.
    pub fn into_result(self) -> io::Result<ShutdownReport> {
        Ok(self.report)
    }
}
