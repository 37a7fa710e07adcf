//! Streams that only listen: when such a one is over.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use super::exchange::Exchange;
use crate::{lifecycle::ActiveSessions, session::Phase, tracker::Entry};

/// How long a stream may go on after the drain: a host that says goodbye from a task of its own needs a moment.
const GOODBYE: Duration = Duration::from_millis(20);

/// After so many frames that were there at once we look whether the stream is over. Else it would never hear of it.
const FRAMES_IN_A_ROW: u8 = 128;

pub(super) struct Listening {
    /// Made once the host has made us wait.
    over: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    /// Frames since then.
    in_a_row: u8,
}

impl Listening {
    pub(super) fn new() -> Self {
        Self { over: None, in_a_row: 0 }
    }

    /// To be called for every frame. Looks only now and then.
    pub(super) fn is_over_after_frame(&mut self, exchange: &Exchange, cx: &mut Context<'_>) -> bool {
        self.in_a_row += 1;
        self.in_a_row == FRAMES_IN_A_ROW && self.poll_over(exchange, cx).is_ready()
    }

    pub(super) fn poll_over(&mut self, exchange: &Exchange, cx: &mut Context<'_>) -> Poll<()> {
        self.in_a_row = 0;
        let over =
            self.over.get_or_insert_with(|| Box::pin(is_over(exchange.sessions().clone(), exchange.entry().cloned())));
        over.as_mut().poll(cx)
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
