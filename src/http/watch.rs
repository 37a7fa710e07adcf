//! [`Watch`]: an exchange that is not over, and what may end it before the host does.

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

/// How long a stream may go on after the drain: a host that says goodbye from a task of its own needs a moment.
const GOODBYE_GRACE: Duration = Duration::from_millis(20);

/// From the request's head to the response body's end.
pub(super) struct Watch {
    pub(super) exchange: Exchange,
    /// Made once the host has made us wait, or for an event stream. Boxed, so that bodies and futures are `Unpin` where the
    /// host's are, and small where the host is quick.
    verdict: Option<Pin<Box<dyn Future<Output = Verdict> + Send + Sync>>>,
}

/// What ends an exchange before the host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The session of the stream is over: a clean end.
    Over,
    /// The time of the connections is over: an error.
    Cut,
}

impl Watch {
    #[inline]
    pub(super) fn new(exchange: Exchange) -> Self {
        Self { exchange, verdict: None }
    }

    /// The body is an event stream: from here on it ends with its session.
    pub(super) fn listen(&mut self) {
        let over = is_over(self.exchange.sessions().clone(), self.exchange.generation().cloned());
        let cut = self.exchange.sessions().inner.shutdown.closed.clone();
        self.verdict = Some(Box::pin(async move {
            let (mut over, mut cut) = (pin!(over), pin!(cut.cancelled()));
            // Not by `select!`, which looks at neither once the host has used up its task's budget: as one does that waits
            // for nothing else.
            poll_fn(|cx| match over.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Verdict::Over),
                Poll::Pending => cut.as_mut().poll(cx).map(|()| Verdict::Cut),
            })
            .await
        }));
    }

    /// To be polled whenever the host has made us wait. No more after a verdict, unless it is let pass.
    #[inline(never)]
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        let cut = &self.exchange.sessions().inner.shutdown.closed;
        let verdict = self.verdict.get_or_insert_with(|| {
            let cut = cut.clone();
            Box::pin(async move {
                cut.cancelled().await;
                Verdict::Cut
            })
        });
        let verdict = ready!(verdict.as_mut().poll(cx));
        self.verdict = None;
        Poll::Ready(verdict)
    }

    /// Whether the body is to end although it has not made us wait. Its last frame may still leave.
    pub(super) fn look(&mut self, cx: &mut Context<'_>, has_more: bool) -> Option<Verdict> {
        if self.verdict.is_some()
            && let Poll::Ready(Verdict::Over) = self.poll(cx)
        {
            return Some(Verdict::Over);
        }
        (has_more && self.exchange.is_closed()).then_some(Verdict::Cut)
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
            // Before we listened: whoever the successor is, the drain ends it.
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

/// As `sleep`, but a timer too has nothing to say while the task's budget is used up.
async fn pause(time: Duration) {
    let end = Instant::now() + time;
    let mut timer = pin!(sleep_until(end));
    poll_fn(|cx| match timer.as_mut().poll(cx) {
        Poll::Pending if Instant::now() < end => Poll::Pending,
        _ => Poll::Ready(()),
    })
    .await;
}
