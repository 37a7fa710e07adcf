//! [`Watch`]: an exchange that is not over, and what may end it before the host does.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::exchange::Exchange;
use crate::{lifecycle::ActiveSessions, session::Phase, tracker::Entry};

/// How long a stream may go on after the drain: a host that says goodbye from a task of its own needs a moment.
const GOODBYE: Duration = Duration::from_millis(20);

/// After so many frames that were there at once we look whether the stream is over. Else it would never hear of it.
const FRAMES_IN_A_ROW: u8 = 128;

/// From the request's head to the response body's end.
pub(super) struct Watch {
    pub(super) exchange: Exchange,
    /// The body is an event stream, which ends with its session.
    pub(super) listens: bool,
    /// Frames since the host has made us wait.
    in_a_row: u8,
    /// Boxed, so that bodies and futures are `Unpin` where the host's are, and small where the host is quick.
    waiting: Option<Pin<Box<Waiting>>>,
}

pin_project! {
    // From when the host has made us wait.
    struct Waiting {
        #[pin]
        cut: WaitForCancellationFutureOwned,
        over: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    }
}

/// What becomes of a body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    GoOn,
    /// Its session is over: a clean end.
    Over,
    /// The time is over: an error.
    Cut,
}

impl Verdict {
    const fn of(is_over: bool, is_cut: bool) -> Self {
        match (is_over, is_cut) {
            (true, _) => Self::Over,
            (false, true) => Self::Cut,
            (false, false) => Self::GoOn,
        }
    }
}

impl Watch {
    #[inline]
    pub(super) fn new(exchange: Exchange) -> Self {
        Self { exchange, listens: false, in_a_row: 0, waiting: None }
    }

    /// Waits for the cut of the connections.
    #[inline(never)]
    pub(super) fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.waiting().project().cut.poll(cx)
    }

    /// The host's body has made us wait.
    #[inline(never)]
    pub(super) fn wait(&mut self, cx: &mut Context<'_>) -> Verdict {
        let is_over = self.listens && self.poll_over(cx).is_ready();
        let is_cut = self.poll_cut(cx).is_ready();
        Verdict::of(is_over, is_cut)
    }

    /// Whether a frame that was there at once calls for a [`look`](Self::look): most do not.
    #[inline]
    pub(super) fn has_to_look(&mut self) -> bool {
        self.listens || self.exchange.sessions().is_closed()
    }

    /// A body that never makes us wait would outlive its session, and the cut. Its last frame may still leave.
    #[inline(never)]
    pub(super) fn look(&mut self, cx: &mut Context<'_>, has_more: bool) -> Verdict {
        let mut is_over = false;
        if self.listens {
            self.in_a_row += 1;
            is_over = self.in_a_row == FRAMES_IN_A_ROW && self.poll_over(cx).is_ready();
        }
        Verdict::of(is_over, has_more && self.exchange.sessions().is_closed())
    }

    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.in_a_row = 0;
        let (sessions, entry) = (self.exchange.sessions().clone(), self.exchange.entry().cloned());
        let over = self.waiting().project().over;
        over.get_or_insert_with(|| Box::pin(is_over(sessions, entry))).as_mut().poll(cx)
    }

    fn waiting(&mut self) -> Pin<&mut Waiting> {
        let cut = &self.exchange.sessions().inner.cut;
        let waiting = || Box::pin(Waiting { cut: cut.clone().cancelled_owned(), over: None });
        self.waiting.get_or_insert_with(waiting).as_mut()
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
