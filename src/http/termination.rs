//! [`Termination`]: an exchange that is not over, and what can end it before the host does.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::exchange::Exchange;
use crate::{handle::ActiveSessions, session::Phase, tracker::Generation};

/// How long a stream may go on after the drain: a host that sends its last event from a task of its own needs a moment.
const GOODBYE_GRACE: Duration = Duration::from_millis(20);

/// From the request's head to the response body's end.
pub(super) struct Termination {
    pub(super) exchange: Exchange,
    /// Made when the host is first pending, or for an event stream. Boxed, so that bodies and futures are `Unpin` where the host's
    /// are, and small where the host is quick.
    terminated: Option<Pin<Box<dyn Future<Output = Terminated> + Send + Sync>>>,
}

/// What has ended an exchange before the host did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terminated {
    /// The session of the stream has ended: a clean end.
    SessionEnded,
    /// The connection drain is over: an error.
    Forced,
}

impl Termination {
    #[inline]
    pub(super) fn new(exchange: Exchange) -> Self {
        Self { exchange, terminated: None }
    }

    /// The body is an event stream: from here on it ends with its session.
    pub(super) fn listen(&mut self) {
        let over = is_over(self.exchange.sessions().clone(), self.exchange.generation().cloned());
        let cut = self.exchange.sessions().inner.shutdown.closed.clone();
        self.terminated = Some(Box::pin(async move {
            let (mut over, mut cut) = (pin!(over), pin!(cut.cancelled()));
            // Not by `select!`, which polls neither once the host has used up its task's budget.
            poll_fn(|cx| match over.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Terminated::SessionEnded),
                Poll::Pending => cut.as_mut().poll(cx).map(|()| Terminated::Forced),
            })
            .await
        }));
    }

    /// To be polled whenever the host is pending, until it is ready.
    #[inline(never)]
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Terminated> {
        let cut = &self.exchange.sessions().inner.shutdown.closed;
        let terminated = self.terminated.get_or_insert_with(|| {
            let cut = cut.clone();
            Box::pin(async move {
                cut.cancelled().await;
                Terminated::Forced
            })
        });
        let terminated = ready!(terminated.as_mut().poll(cx));
        self.terminated = None;
        Poll::Ready(terminated)
    }

    /// Whether the body has to end although it was not pending. Its last frame may still leave.
    pub(super) fn check(&mut self, cx: &mut Context<'_>, has_more: bool) -> Option<Terminated> {
        if self.terminated.is_some()
            && let Poll::Ready(Terminated::SessionEnded) = self.poll(cx)
        {
            return Some(Terminated::SessionEnded);
        }
        (has_more && self.exchange.is_closed()).then_some(Terminated::Forced)
    }
}

/// Waits for the end of the session, or of the drain for a stream that belongs to none.
async fn is_over(sessions: ActiveSessions, generation: Option<Arc<Generation>>) {
    let drained = sessions.inner.shutdown.drained.clone();
    if let Some(generation) = generation {
        let ended = generation.listen();
        if generation.is_active() {
            ended.cancelled().await;
        } else if generation.is_compacted() {
            // It was compacted before this stream listened. The drain ends the successor.
            drained.cancelled().await;
        }
    } else {
        drained.cancelled().await;
    }
    if sessions.phase() >= Phase::Closing {
        drained.cancelled().await;
        pause(GOODBYE_GRACE.min(sessions.inner.shutdown.config.connection_drain_timeout / 4)).await;
    }
}

/// As `sleep`, which is pending while the task's budget is used up.
async fn pause(time: Duration) {
    let end = Instant::now() + time;
    let mut timer = pin!(sleep_until(end));
    poll_fn(|cx| match timer.as_mut().poll(cx) {
        Poll::Pending if Instant::now() < end => Poll::Pending,
        _ => Poll::Ready(()),
    })
    .await;
}
