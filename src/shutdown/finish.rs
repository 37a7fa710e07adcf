//! [`ActiveSessions::finish`](crate::ActiveSessions::finish): the bounded connection drain, the late starts, and the
//! report.

use std::{
    convert::Infallible,
    future::{IntoFuture, poll_fn},
    io,
    panic::resume_unwind,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Shutdown,
    drain::{cut_grace, log_drain},
    lock,
    report::{ConnectionReport, ShutdownReport},
    state::Drain,
};
use crate::{observability::log_outcome, panic::catch_payload, session::Phase, tracker::Tracker};

/// A warning is logged if `finish` has run for this time and no `shutdown_on` was polled.
const UNDRIVEN_GRACE: Duration = Duration::from_secs(30);

/// A warning is logged if one poll of the server takes this long.
const LONG_POLL: Duration = Duration::from_secs(1);

/// So often `finish` lets other tasks run before it counts the open responses.
const YIELDS_FOR_STREAMS: usize = 16;

impl Shutdown {
    pub(crate) fn finish<S: IntoFuture>(
        self: &Arc<Self>,
        server: S,
    ) -> impl Future<Output = FinishOutput<S::Output>> + use<S> {
        // Counted before the first poll, so a drain that begins earlier counts this server too.
        let token = ServerToken::new(self);
        async move {
            let shutdown = Arc::clone(&token.shutdown);
            shutdown.with_heartbeat(Self::finish_with(token, server)).await
        }
    }

    async fn finish_with<S: IntoFuture>(token: ServerToken, server: S) -> FinishOutput<S::Output> {
        let shutdown = &token.shutdown;
        let started_at = Instant::now();
        let output = {
            let mut server = pin!(server.into_future());
            tokio::select! {
                biased;
                // A server that panics leaves sessions behind like one that returns: the panic goes on after the drain.
                result = poll_fn(|cx| {
                    let began = std::time::Instant::now();
                    let poll = catch_payload(|| server.as_mut().poll(cx));
                    shutdown.check_blocking(began.elapsed());
                    match poll {
                        Ok(poll) => poll.map(Ok),
                        Err(payload) => Poll::Ready(Err(payload)),
                    }
                }) => Some(result),
                () = shutdown.connection_deadline_reached(started_at) => None,
                never = shutdown.ask_rest(started_at) => match never {},
                never = shutdown.warn_if_undriven() => match never {},
            }
        };
        let (output, panic) = match output.transpose() {
            Ok(output) => (output, None),
            Err(payload) => (None, Some(payload)),
        };
        let drain = shutdown.drain_unless_done().await;
        let timed_out = output.is_none() && panic.is_none();
        let elapsed = shutdown.connections_since(started_at).map(|since| since.elapsed()).unwrap_or_default();
        let open_responses = shutdown.open_responses_at_the_end().await;
        tokio::select! {
            biased;
            () = shutdown.ask_within(started_at) => {}
            () = shutdown.forced() => {}
        }
        let is_last = token.leave();
        if is_last {
            shutdown.close(started_at);
        }
        tokio::select! {
            biased;
            () = shutdown.drain_late(started_at, timed_out) => {}
            () = shutdown.forced() => {}
        }
        if is_last {
            // An end that is delivered and not recorded as such would be delivered again by the next process.
            if let Some(persister) = &shutdown.persister {
                persister.replay_backlog();
            }
            shutdown.until_written(Some(Instant::now() + shutdown.registry_time_left(started_at))).await;
            shutdown.pool.close();
            if let Some(persister) = &shutdown.persister {
                persister.abort();
            }
            shutdown.tasks.wait(shutdown.remaining_grace(started_at)).await;
            if let Some(persister) = &shutdown.persister {
                persister.release_lease(shutdown.registry_time_left(started_at)).await;
            }
        }
        let budget = shutdown.config.connection_drain_timeout;
        let report = shutdown.shutdown_report(&drain, ConnectionReport { elapsed, budget, timed_out, open_responses });
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
        FinishOutput { output, report }
    }

    /// A server that has ended may leave tasks of HTTP/2 streams behind that have not run since: they end at once.
    async fn open_responses_at_the_end(&self) -> usize {
        for _ in 0..YIELDS_FOR_STREAMS {
            if self.open_responses.count() == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        self.open_responses.count()
    }

    /// Asks `keep_if` about the sessions that the drain had no time for, while the connections drain.
    async fn ask_rest(&self, started_at: Instant) -> Infallible {
        if self.housekeeper.asks_keep_if() {
            self.state.wait_for(|progress| progress.connections_since.is_some()).await;
            self.ask_within(started_at).await;
        }
        std::future::pending().await
    }

    /// Asks `keep_if` about every session that is active, until the deadline of the connections.
    async fn ask_within(&self, started_at: Instant) {
        if self.housekeeper.asks_keep_if() {
            self.ask_keep_if(false, || self.is_late(started_at)).await;
        }
    }

    /// Whether it is too late for another call of `keep_if`.
    fn is_late(&self, started_at: Instant) -> bool {
        let deadline = self.connection_deadline(started_at);
        self.state.progress().is_forced() || deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Warns, once, of a handle that waits for no signal.
    async fn warn_if_undriven(&self) -> Infallible {
        sleep(UNDRIVEN_GRACE).await;
        if !self.is_driven.load(Ordering::Relaxed) && !self.state.progress().has_drain() {
            self.undriven_finish.call_once(|| {
                tracing::warn!(
                    name: "session-finish-undriven",
                    "`finish` has run for 30 s, and no `shutdown_on` future of this handle was ever polled: no signal \
                     drains the sessions before the connections; hand one to `with_graceful_shutdown` (logged once)",
                );
            });
        }
        std::future::pending().await
    }

    #[inline]
    fn check_blocking(&self, blocked: Duration) {
        if blocked >= LONG_POLL {
            self.warn_of_blocking(blocked);
        }
    }

    #[cold]
    fn warn_of_blocking(&self, blocked: Duration) {
        self.blocked_server.call_once(|| {
            tracing::warn!(
                name: "session-server-blocked",
                blocked_ms = blocked.as_millis() as u64,
                "one poll of the server blocked its thread, and with it every deadline of the shutdown; if its listener \
                 comes from `from_std`, call `set_nonblocking(true)` on it before (logged once)",
            );
        });
    }

    /// The end of the connections' time, less [`cut_grace`].
    fn connection_deadline(&self, started_at: Instant) -> Option<Instant> {
        let timeout = self.config.connection_drain_timeout;
        self.connections_since(started_at)?.checked_add(timeout.saturating_sub(cut_grace(timeout)))
    }

    /// The beginning of the connection drain: the end of the session drain, or of this `finish` if that is later.
    fn connections_since(&self, started_at: Instant) -> Option<Instant> {
        Some(self.state.progress().connections_since?.max(started_at))
    }

    async fn connection_deadline_reached(&self, started_at: Instant) {
        let deadline = async {
            self.state.wait_for(|progress| progress.connections_since.is_some() || progress.is_abandoned).await;
            if self.state.progress().connections_since.is_none() {
                let _ = self.drain(self.tracker.shutdown_reason()).await;
            }
            // Another signal may move the deadline while this sleeps.
            loop {
                match self.connection_deadline(started_at) {
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

    /// Waits until every `shutdown_on` that got a signal got a second one.
    async fn forced(&self) {
        let mut change = Box::pin(self.state.changed());
        poll_fn(|cx| {
            loop {
                // The signals are taken out while they are polled, and put back afterwards.
                let second_signals = || lock(&self.state.second_signals);
                let mut pending = std::mem::take(&mut *second_signals());
                pending.retain_mut(|signal| {
                    let is_ready = signal.as_mut().poll(cx).is_ready();
                    if is_ready {
                        self.force();
                    }
                    !is_ready
                });
                second_signals().append(&mut pending);
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

    /// Waits for the drain, and runs it if the server has ended before it. Stops waiting at a second signal.
    async fn drain_unless_done(&self) -> Arc<Drain> {
        let progress = self.state.progress();
        // A second signal has dropped the future of a drain that had begun: the report is about that drain.
        let was_forced = progress.is_forced() && progress.has_drain();
        if progress.connections_since.is_none() && !was_forced {
            tokio::select! {
                biased;
                _ = self.drain(self.tracker.shutdown_reason()) => {}
                () = self.forced() => {}
            }
        }
        // A second signal in the lame duck comes before any drain: the sessions are ended without waiting for the
        // hooks.
        self.state.first_drain().unwrap_or_else(|| self.begin_drain())
    }

    /// Waits for the ends of sessions that started in the connection drain, until its deadline.
    async fn drain_late(&self, started_at: Instant, timed_out: bool) {
        self.tracker.await_late_starts();
        // With `Duration::MAX` for the connections, the hook timeout is the limit.
        let hook_deadline = || Instant::now().checked_add(self.config.hook_timeout);
        self.wait_for_hooks(self.connection_deadline(started_at).or_else(hook_deadline)).await;
        // Responses that timed out tell their clients.
        while timed_out && self.open_responses.count() > 0 {
            let Some(end) = self.final_deadline(started_at).filter(|end| *end > Instant::now()) else { break };
            sleep_until(end.min(Instant::now() + Duration::from_millis(1))).await;
        }
    }

    /// The time that is left for the registry: 10 ms to 1 s.
    fn registry_time_left(&self, started_at: Instant) -> Duration {
        self.time_left(started_at).unwrap_or(Duration::MAX).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    /// The phase changes before the sweep, so a note that the sweep misses sees the phase. Responses end after both, so
    /// no head with a new id leaves.
    fn close(&self, started_at: Instant) {
        let tracker = &self.tracker;
        tracker.advance(Phase::Closed, tracker.shutdown_reason());
        for shard in 0..Tracker::shard_count() {
            if !self.housekeeper.asks_keep_if() {
                self.housekeeper.drain_shard(shard, false);
                continue;
            }
            // `ask_within` has asked about all but the latest starts, or its time is over.
            for generation in tracker.active_in(shard) {
                if !self.is_late(started_at) {
                    self.housekeeper.drain_one(&generation, false);
                }
            }
        }
        self.pool.wake();
        self.closing.cancel();
        self.drained.cancel();
        self.closed.cancel();
        self.open_responses.close();
    }

    /// When `finish` has to return.
    fn final_deadline(&self, started_at: Instant) -> Option<Instant> {
        if self.state.progress().is_forced() {
            return Some(Instant::now());
        }
        self.connections_since(started_at)?.checked_add(self.config.connection_drain_timeout)
    }

    /// `None` if there is no deadline.
    fn time_left(&self, started_at: Instant) -> Option<Duration> {
        Some(self.final_deadline(started_at)?.saturating_duration_since(Instant::now()))
    }

    /// The time for tasks that the shutdown ends: 10 to 50 ms.
    fn remaining_grace(&self, started_at: Instant) -> Duration {
        self.time_left(started_at).unwrap_or(Duration::MAX).clamp(Duration::from_millis(10), Duration::from_millis(50))
    }

    fn shutdown_report(&self, drain: &Drain, connections: ConnectionReport) -> ShutdownReport {
        let progress = self.state.progress();
        let sessions = self.account(drain, false);
        let drain = drain.report.get().cloned();
        self.tracker.meters.set_unfinished(sessions.unfinished_count);
        if drain.as_ref().is_none_or(|drain| drain.is_clean() && !sessions.is_clean()) {
            // Otherwise the drain has logged the same already.
            log_drain(&sessions);
        }
        let report = ShutdownReport {
            signalled: progress.signalled > 0,
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
            unfinished = report.sessions.unfinished_count,
            timed_out = report.connections.timed_out,
            open_responses = report.connections.open_responses,
            elapsed_ms = report.connections.elapsed.as_millis() as u64,
            "session-finish: {report}",
        );
        report
    }
}

/// Counts one server of the handle, until it leaves.
struct ServerToken {
    shutdown: Arc<Shutdown>,
    has_left: AtomicBool,
}

impl ServerToken {
    fn new(shutdown: &Arc<Shutdown>) -> Self {
        shutdown.state.update(|progress| {
            progress.servers += 1;
            progress.finishing += 1;
        });
        Self { shutdown: Arc::clone(shutdown), has_left: false.into() }
    }

    /// Returns true if it was the last server.
    fn leave(&self) -> bool {
        let mut is_last = false;
        if !self.has_left.swap(true, Ordering::SeqCst) {
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
        // The second signals may hold the waker of this `finish`. The update wakes the others, which poll them again.
        self.shutdown.state.update(|progress| progress.finishing -= 1);
    }
}

/// The output of [`ActiveSessions::finish`](crate::ActiveSessions::finish): the server's own output, and the report.
///
/// ```
/// # use tower_session_end::ActiveSessions;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let sessions = ActiveSessions::builder().build().unwrap();
/// let finished = sessions.finish(async { 42 }).await;
/// assert_eq!(finished.output, Some(42));
/// assert!(finished.report.is_clean());
/// # }
/// ```
#[derive(Debug)]
#[must_use]
#[non_exhaustive]
pub struct FinishOutput<T> {
    /// What the server returned. `None` if the connection drain timed out, or was forced: then the server was dropped.
    pub output: Option<T>,
    /// The report of the shutdown.
    pub report: ShutdownReport,
}

impl<T, E> FinishOutput<Result<T, E>> {
    /// The report, or the server's error. With an error the report is dropped; it has been logged.
    ///
    /// # Errors
    ///
    /// The error of the server. A server that was dropped has none: see
    /// [`ConnectionReport::timed_out`](crate::ConnectionReport::timed_out).
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
    /// None. The type is the one of a server that can fail, so the same code fits both.
    pub fn into_result(self) -> io::Result<ShutdownReport> {
        Ok(self.report)
    }
}
