//! [`Termination`]: an exchange in progress, and what ends it before the host does.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::exchange::Exchange;
use crate::{handle::ActiveSessions, session::Phase, shutdown::Slot, tracker::Generation};

/// How long a stream may continue after the drain: the time for a last event that the host sends from another task.
const GOODBYE_GRACE: Duration = Duration::from_millis(20);

/// Lasts from the request's head to the response body's end.
pub(super) struct Termination {
    pub(super) exchange: Exchange,
    /// For an event stream. Boxed, so that bodies and futures are `Unpin` if the host's are, and small.
    terminated: Option<Pin<Box<dyn Future<Output = Terminated> + Send + Sync>>>,
    /// Taken when the host is first pending, otherwise.
    slot: Option<Slot>,
}

/// Why an exchange ended before the host ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terminated {
    /// The session of the stream has ended. The body ends without an error.
    SessionEnded,
    /// The handle is closed: the connection drain has timed out or was forced. The body ends with an error.
    Forced,
}

impl Termination {
    #[inline]
    pub(super) fn new(exchange: Exchange) -> Self {
        Self { exchange, terminated: None, slot: None }
    }

    /// For an event stream: it ends with its session.
    pub(super) fn end_with_session(&mut self) {
        let session_ended = until_session_ended(self.exchange.sessions().clone(), self.exchange.generation().cloned());
        let closed = self.exchange.sessions().inner.shutdown.closed.clone();
        self.terminated = Some(Box::pin(async move {
            let (mut session_ended, mut closed) = (pin!(session_ended), pin!(closed.cancelled()));
            // `select!` polls neither once the host has used up its task's cooperative budget.
            poll_fn(|cx| match session_ended.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Terminated::SessionEnded),
                Poll::Pending => closed.as_mut().poll(cx).map(|()| Terminated::Forced),
            })
            .await
        }));
    }

    /// Polled each time that the host is pending.
    #[inline(never)]
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Terminated> {
        let Some(stream) = &mut self.terminated else {
            return match self.exchange.open_responses().poll_closed(&mut self.slot, cx) {
                true => Poll::Ready(Terminated::Forced),
                false => Poll::Pending,
            };
        };
        let terminated = ready!(stream.as_mut().poll(cx));
        self.terminated = None;
        Poll::Ready(terminated)
    }

    /// Whether a body that was not pending has to end.
    pub(super) fn check(&mut self, cx: &mut Context<'_>, has_more: bool) -> Option<Terminated> {
        if self.terminated.is_some()
            && let Poll::Ready(Terminated::SessionEnded) = self.poll(cx)
        {
            return Some(Terminated::SessionEnded);
        }
        (has_more && self.exchange.is_closed()).then_some(Terminated::Forced)
    }
}

impl Drop for Termination {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = &self.slot {
            self.exchange.open_responses().cancel(slot);
        }
    }
}

/// Waits for the end of the stream's session, or for the drain if it belongs to none. In a shutdown it waits for the
/// drain and the grace too.
async fn until_session_ended(sessions: ActiveSessions, generation: Option<Arc<Generation>>) {
    let drained = sessions.inner.shutdown.drained.clone();
    if generation.is_none() {
        drained.cancelled().await;
    }
    let mut next = generation;
    while let Some(generation) = next {
        let ended = generation.listen();
        // Compacted before this stream began to listen: it ends with the successor.
        next = if generation.is_compacted() { generation.successor() } else { None };
        if generation.is_active() {
            ended.cancelled().await;
        }
    }
    if sessions.phase() >= Phase::Closing {
        drained.cancelled().await;
        sleep_ignoring_budget(GOODBYE_GRACE.min(sessions.inner.shutdown.config.connection_drain_timeout / 4)).await;
    }
}

/// Like tokio's `sleep`, which stays pending while the task's cooperative budget is used up; this one does not.
async fn sleep_ignoring_budget(time: Duration) {
    let end = Instant::now() + time;
    let mut timer = pin!(sleep_until(end));
    poll_fn(|cx| match timer.as_mut().poll(cx) {
        Poll::Pending if Instant::now() < end => Poll::Pending,
        _ => Poll::Ready(()),
    })
    .await;
}
