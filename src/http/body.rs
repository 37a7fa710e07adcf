//! [`SessionBody`].

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::exchange::Exchange;
use crate::BoxError;

pin_project! {
    /// The host's body, frame by frame, until it ends or the connection drain does.
    pub struct SessionBody<B> {
        #[pin]
        inner: Option<B>,
        exchange: Option<Exchange>,
        // Registered only once the host has made us wait.
        #[pin]
        cut: Option<WaitForCancellationFutureOwned>,
    }
}

impl<B> SessionBody<B> {
    pub(super) fn new(inner: B, exchange: Option<Exchange>) -> Self {
        Self { inner: Some(inner), exchange, cut: None }
    }

    pub(super) fn empty() -> Self {
        Self { inner: None, exchange: None, cut: None }
    }
}

impl<B> Default for SessionBody<B> {
    /// A body with no frame.
    fn default() -> Self {
        Self::empty()
    }
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
        match inner.poll_frame(cx) {
            Poll::Ready(Some(frame)) => Poll::Ready(Some(frame.map_err(Into::into))),
            Poll::Ready(None) => {
                *this.exchange = None;
                Poll::Ready(None)
            }
            Poll::Pending => {
                let Some(exchange) = this.exchange.as_ref() else { return Poll::Pending };
                if this.cut.is_none() {
                    this.cut.set(Some(exchange.cut().clone().cancelled_owned()));
                }
                // Just set.
                if let Some(cut) = this.cut.as_mut().as_pin_mut() {
                    ready!(cut.poll(cx));
                }
                *this.exchange = None;
                this.inner.set(None);
                Poll::Ready(Some(Err(Cut.into())))
            }
        }
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
