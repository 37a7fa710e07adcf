//! [`Watch`]: an exchange that is not over, and what may end it before the host does.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::exchange::Exchange;
use crate::{lifecycle::ActiveSessions, session::Phase, tracker::Entry};

/// How long a stream may go on after the drain: a host that says goodbye from a task of its own needs a moment.
const GOODBYE: Duration = Duration::from_millis(20);

/// After so many frames that were there at once we look whether the stream is over. Else it would never hear of it.
const FRAMES_IN_A_ROW: u8 = 128;

/// From the request's head to the response body's end.
pub(super) struct Watch {
    pub(super) exchange: Exchange,
    /// Zero, unless the body is an event stream, which ends with its session: then one more than the frames that may be there
    /// at once before we look.
    listens: u8,
    /// Made once the host has made us wait. Boxed, so that bodies and futures are `Unpin` where the host's are, and small
    /// where the host is quick.
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
        Self { exchange, listens: 0, verdict: None }
    }

    /// From here on the end of the session is a verdict too.
    #[cold]
    pub(super) fn listen(&mut self) {
        self.listens = FRAMES_IN_A_ROW;
        self.verdict = None;
    }

    /// To be polled whenever the host has made us wait.
    #[inline(never)]
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        let listens = self.listens != 0;
        if listens {
            self.listens = FRAMES_IN_A_ROW;
        }
        let exchange = &self.exchange;
        let verdict = self.verdict.get_or_insert_with(|| {
            let cut = exchange.sessions().inner.cut.clone();
            if !listens {
                return Box::pin(async move {
                    cut.cancelled().await;
                    Verdict::Cut
                });
            }
            let over = is_over(exchange.sessions().clone(), exchange.entry().cloned());
            Box::pin(async move {
                tokio::select! {
                    biased;
                    () = over => Verdict::Over,
                    () = cut.cancelled() => Verdict::Cut,
                }
            })
        });
        let verdict = ready!(verdict.as_mut().poll(cx));
        // Whoever lets the last frame pass nevertheless may ask again.
        self.verdict = None;
        Poll::Ready(verdict)
    }

    /// Whether a frame that was there at once calls for a [`look`](Self::look): most do not.
    #[inline]
    pub(super) fn has_to_look(&mut self) -> bool {
        if self.listens > 1 {
            self.listens -= 1;
        }
        self.listens == 1 || self.exchange.is_closed()
    }

    /// A body that never makes us wait would outlive its session, and the cut. Its last frame may still leave.
    #[inline(never)]
    pub(super) fn look(&mut self, cx: &mut Context<'_>, has_more: bool) -> Option<Verdict> {
        if self.listens == 1
            && let Poll::Ready(Verdict::Over) = self.poll(cx)
        {
            return Some(Verdict::Over);
        }
        (has_more && self.exchange.is_closed()).then_some(Verdict::Cut)
    }
}

/// Waits for the end of the session, or of the drain for a stream that belongs to none.
async fn is_over(sessions: ActiveSessions, entry: Option<Arc<Entry>>) {
    let drained = sessions.inner.drained.clone();
    if let Some(entry) = entry {
        let ended = entry.listen();
        if entry.is_active() {
            ended.cancelled().await;
        } else if entry.is_compacted() {
            // Before we listened: whoever the successor is, the drain ends it.
            drained.cancelled().await;
        }
    } else {
        drained.cancelled().await;
    }
    if sessions.phase() >= Phase::Closing {
        drained.cancelled().await;
        tokio::time::sleep(GOODBYE.min(sessions.inner.config.connection_drain_timeout / 4)).await;
    }
}
