//! [`SessionBody`].

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::exchange::Exchange;
use crate::BoxError;

pin_project! {
    /// The host's body, frame by frame, until it ends, or its session does, or the connection drain.
    pub struct SessionBody<B> {
        #[pin]
        inner: Option<B>,
        exchange: Option<Exchange>,
        // An event stream that ends with its session.
        listens: bool,
        // Both are registered only once the host has made us wait.
        #[pin]
        cut: Option<WaitForCancellationFutureOwned>,
        #[pin]
        over: Option<WaitForCancellationFutureOwned>,
    }
}

impl<B> SessionBody<B> {
    pub(super) fn new(inner: B, exchange: Option<Exchange>, listens: bool) -> Self {
        Self { inner: Some(inner), exchange, listens, cut: None, over: None }
    }

    pub(super) fn empty() -> Self {
        Self { inner: None, exchange: None, listens: false, cut: None, over: None }
    }
}

impl<B> Default for SessionBody<B> {
    /// A body with no frame.
    fn default() -> Self {
        Self::empty()
    }
}

/// What tells a stream that it is over; `None` if it is.
fn end_of_stream(exchange: &Exchange) -> Option<CancellationToken> {
    let sessions = exchange.sessions();
    let Some(entry) = exchange.entry() else { return Some(sessions.inner.drained.clone()) };
    let end = entry.listen();
    if entry.is_active() {
        return Some(end);
    }
    // Compacted before we listened: whoever is the successor, the drain ends it.
    entry.is_compacted().then(|| sessions.inner.drained.clone())
}

impl<B> Body for SessionBody<B>
where
    B: Body<Error: Into<BoxError>>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        // What the host has to say comes first: a last event is not lost.
        match inner.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                // A body that never makes us wait would outlive the stop; its last frame may still leave.
                let is_closed = this.exchange.as_ref().is_some_and(|exchange| exchange.sessions().is_closed());
                if is_closed && !this.inner.as_ref().as_pin_ref().is_none_or(|inner| inner.is_end_stream()) {
                    *this.exchange = None;
                    this.inner.set(None);
                    return Poll::Ready(Some(Err(Cut.into())));
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                *this.exchange = None;
                return Poll::Ready(None);
            }
            Poll::Pending => {}
        }
        let Some(exchange) = this.exchange.as_ref() else { return Poll::Pending };
        if this.cut.is_none() {
            this.cut.set(Some(exchange.sessions().inner.cut.clone().cancelled_owned()));
        }
        let mut is_over = false;
        if *this.listens {
            if this.over.is_none() {
                match end_of_stream(exchange) {
                    Some(end) => this.over.set(Some(end.cancelled_owned())),
                    None => is_over = true,
                }
            }
            is_over |= this.over.as_mut().as_pin_mut().is_some_and(|over| over.poll(cx).is_ready());
        }
        let is_cut = this.cut.as_mut().as_pin_mut().is_some_and(|cut| cut.poll(cx).is_ready());
        if !is_over && !is_cut {
            return Poll::Pending;
        }
        *this.exchange = None;
        this.inner.set(None);
        Poll::Ready((!is_over).then(|| Err(Cut.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: fmt::Debug> fmt::Debug for SessionBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// The time of the connection drain was over before the body was.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server is shutting down and could not wait for the end of this body")
    }
}

impl std::error::Error for Cut {}
