//! [`ActiveSessions::finish`]: the bounded connection drain, the sessions that are born in it, and the report.

use std::{
    future::{IntoFuture, poll_fn},
    io,
    pin::pin,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{
    Shutdown,
    drain::{cut_grace, log_drain},
    report::{ConnectionReport, ShutdownReport},
    state::Drain,
};
use crate::{observability::log_outcome, session::Phase, tracker::Tracker};

impl Shutdown {
    pub(crate) fn finish<S: IntoFuture>(
        self: &Arc<Self>,
        server: S,
    ) -> impl Future<Output = FinishOutput<S::Output>> + use<S> {
        // Counted before the first poll: a drain that begins earlier knows of this server.
        let token = ServerToken::new(self);
        async move {
            let shutdown = Arc::clone(&token.shutdown);
            shutdown.with_heartbeat(Self::finish_with(token, server)).await
        }
    }

    async fn finish_with<S: IntoFuture>(token: ServerToken, server: S) -> FinishOutput<S::Output> {
        let shutdown = &token.shutdown;
        let began = Instant::now();
        let output = {
            let mut server = pin!(server.into_future());
            tokio::select! {
                biased;
                output = &mut server => Some(output),
                () = shutdown.connection_deadline_reached(began) => None,
            }
        };
        let run = shutdown.drain_unless_done().await;
        let cut = output.is_none();
        let elapsed = shutdown.connections_began(began).map(|at| at.elapsed()).unwrap_or_default();
        let open_responses = shutdown.open_responses.load(Ordering::SeqCst);
        let is_last = token.leave();
        if is_last {
            shutdown.close();
        }
        tokio::select! {
            biased;
            () = shutdown.drain_late(began, cut) => {}
            () = shutdown.forced() => {}
        }
        if is_last {
            // What is delivered by now is not to be delivered again by whoever comes after us.
            shutdown.until_written(Some(Instant::now() + shutdown.time_left(began))).await;
            shutdown.pool.close();
            if let Some(persister) = &shutdown.persister {
                persister.abort_writer();
            }
            shutdown.tasks.wait(shutdown.remaining_grace(began)).await;
            if let Some(persister) = &shutdown.persister {
                persister.release_lease(shutdown.time_left(began)).await;
            }
        }
        FinishOutput {
            output,
            report: shutdown.shutdown_report(
                &run,
                ConnectionReport {
                    elapsed,
                    budget: shutdown.config.connection_drain_timeout,
                    timed_out: cut,
                    open_responses,
                },
            ),
        }
    }

    /// When the connections have had their time, less the grace for what is cut.
    fn connection_deadline(&self, began: Instant) -> Option<Instant> {
        let timeout = self.config.connection_drain_timeout;
        self.connections_began(began)?.checked_add(timeout.saturating_sub(cut_grace(timeout)))
    }

    /// Since when the connections drain: since the drain was over, if this `finish` had began by then.
    fn connections_began(&self, began: Instant) -> Option<Instant> {
        Some(self.state.progress().drained_at?.max(began))
    }

    async fn connection_deadline_reached(&self, began: Instant) {
        let deadline = async {
            self.state.wait_for(|progress| progress.drained_at.is_some() || progress.abandoned).await;
            if self.state.progress().drained_at.is_none() {
                let _ = self.drain(self.tracker.shutdown_reason()).await;
            }
            // Another signal may have moved it meanwhile.
            loop {
                match self.connection_deadline(began) {
                    Some(deadline) if deadline <= Instant::now() => break,
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = deadline => {}
            () = self.forced() => {}
        }
    }

    /// Waits until everybody who got a signal got a second one.
    async fn forced(&self) {
        let mut change = Box::pin(self.state.changed());
        poll_fn(|cx| {
            loop {
                // What is not polled goes back; who finds nothing here is woken when the others are put back.
                let again = || self.state.again.lock().unwrap_or_else(PoisonError::into_inner);
                let mut waiting = std::mem::take(&mut *again());
                waiting.retain_mut(|signal| {
                    let has_come = signal.as_mut().poll(cx).is_ready();
                    if has_come {
                        self.force();
                    }
                    !has_come
                });
                again().append(&mut waiting);
                if self.state.progress().is_forced() {
                    return Poll::Ready(());
                }
                if change.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                change = Box::pin(self.state.changed());
            }
        })
        .await;
    }

    /// Waits for the drain, or runs it, if the server has ended before it; not beyond a second signal.
    async fn drain_unless_done(&self) -> Arc<Drain> {
        let progress = self.state.progress();
        // A second signal has dropped the future of the drain: the report is about that drain, not about one more.
        let is_forced = progress.is_forced() && self.state.first_run().is_some();
        if progress.drained_at.is_none() && !is_forced {
            tokio::select! {
                biased;
                _ = self.drain(self.tracker.shutdown_reason()) => {}
                () = self.forced() => {}
            }
        }
        // Cut in the lame duck: nothing was began, and the sessions are owed their ends all the same.
        self.state.first_run().unwrap_or_else(|| self.begin_drain())
    }

    /// Waits for the ends of what was born in the connection drain, until the deadline.
    async fn drain_late(&self, began: Instant, cut: bool) {
        self.tracker.await_late_starts();
        // Without a limit for the connections, that for a hook is left: those of the drain have no other.
        let hook_timeout = self.config.hook_timeout;
        self.wait_for_hooks(self.connection_deadline(began).or_else(|| Instant::now().checked_add(hook_timeout))).await;
        // What was cut says so to its client.
        while cut && self.open_responses.load(Ordering::SeqCst) > 0 {
            let Some(end) = self.final_deadline(began).filter(|end| *end > Instant::now()) else { break };
            sleep_until(end.min(Instant::now() + Duration::from_millis(1))).await;
        }
    }

    /// What is left for the registry.
    fn time_left(&self, began: Instant) -> Duration {
        let most = Duration::from_secs(1);
        let left = self.final_deadline(began).map_or(most, |end| end.saturating_duration_since(Instant::now()));
        left.clamp(Duration::from_millis(10), most)
    }

    /// First the phase, then the sweep, then the cut: no head with a new id leaves after it.
    fn close(&self) {
        let tracker = &self.tracker;
        tracker.advance(Phase::Closed, tracker.shutdown_reason());
        for shard in 0..Tracker::shard_count() {
            self.housekeeper.drain_shard(shard, false);
        }
        self.pool.wake();
        self.closing.cancel();
        self.drained.cancel();
        self.closed.cancel();
    }

    /// When `finish` has to be over.
    fn final_deadline(&self, began: Instant) -> Option<Instant> {
        if self.state.progress().is_forced() {
            return Some(Instant::now());
        }
        self.connections_began(began)?.checked_add(self.config.connection_drain_timeout)
    }

    fn remaining_grace(&self, began: Instant) -> Duration {
        let least = Duration::from_millis(10);
        let most = Duration::from_millis(50);
        self.final_deadline(began).map_or(most, |end| end.saturating_duration_since(Instant::now())).clamp(least, most)
    }

    fn shutdown_report(&self, run: &Drain, connections: ConnectionReport) -> ShutdownReport {
        let progress = self.state.progress();
        let sessions = self.account(run, false);
        let drain = run.report.get().cloned();
        self.tracker.meters.reported(sessions.unfinished.len());
        if drain.as_ref().is_none_or(|drain| drain.is_clean() && !sessions.is_clean()) {
            // Else it has been said.
            log_drain(&sessions);
        }
        let report = ShutdownReport {
            signalled: progress.signals > 0,
            forced: progress.forced > 0,
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

/// One of the servers that the handle waits for.
struct ServerToken {
    shutdown: Arc<Shutdown>,
    left: AtomicBool,
}

impl ServerToken {
    fn new(shutdown: &Arc<Shutdown>) -> Self {
        shutdown.state.update(|progress| progress.servers += 1);
        Self { shutdown: Arc::clone(shutdown), left: false.into() }
    }

    /// True if it was the last.
    fn leave(&self) -> bool {
        let mut is_last = false;
        if !self.left.swap(true, Ordering::SeqCst) {
            self.shutdown.state.update(|progress| {
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
        // The second-signal futures may hold the waker of this `finish`: the others are woken to poll them again.
        self.shutdown.state.update(|_| {});
    }
}

/// The output of [`ActiveSessions::finish`](crate::ActiveSessions::finish): the report, and what the server returned.
#[derive(Debug)]
#[must_use]
#[non_exhaustive]
pub struct FinishOutput<T> {
    /// What the server returned; `None` if the connection drain timed out.
    pub output: Option<T>,
    /// The report of the shutdown.
    pub report: ShutdownReport,
}

impl<T, E> FinishOutput<Result<T, E>> {
    /// The report, or the server's error.
    ///
    /// # Errors
    ///
    /// That of the server. A server whose connection drain timed out has none; the report says so.
    pub fn into_result(self) -> Result<ShutdownReport, E> {
        match self.output {
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => Ok(self.report),
        }
    }
}

impl FinishOutput<()> {
    /// The report, for a server that cannot fail.
    ///
    /// # Errors
    ///
    /// None; the type is that of a server which can fail, so that code need not change between the two.
    pub fn into_result(self) -> io::Result<ShutdownReport> {
        Ok(self.report)
    }
}
