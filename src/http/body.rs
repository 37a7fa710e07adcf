//! [`SessionBody`].

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{
    exchange::{Exchange, UntilCut},
    listening::Listening,
};
use crate::BoxError;

pin_project! {
    /// The host's body, frame by frame, until it ends, or its session does, or the connection drain.
    pub struct SessionBody<B> {
        #[pin]
        inner: Option<B>,
        exchange: Option<Exchange>,
        // An event stream that ends with its session.
        listening: Option<Listening>,
        cut: UntilCut,
    }
}

impl<B> SessionBody<B> {
    pub(super) fn new(inner: B, exchange: Option<Exchange>, listens: bool) -> Self {
        Self { inner: Some(inner), exchange, listening: listens.then(Listening::new), cut: UntilCut::default() }
    }

    pub(super) fn empty() -> Self {
        Self { inner: None, exchange: None, listening: None, cut: UntilCut::default() }
    }
}

impl<B> Default for SessionBody<B> {
    /// A body with no frame.
    fn default() -> Self {
        Self::empty()
    }
}

/// What becomes of a body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
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
        let frame = inner.poll_frame(cx).map_err(Into::into);
        let Some(exchange) = this.exchange.as_ref() else { return frame };
        let verdict = match &frame {
            Poll::Pending => {
                let is_over = this.listening.as_mut().is_some_and(|over| over.poll_over(exchange, cx).is_ready());
                let is_cut = this.cut.poll(exchange, cx).is_ready();
                Verdict::of(is_over, is_cut)
            }
            // A body that never makes us wait would outlive both; its last frame may still leave.
            Poll::Ready(Some(Ok(frame))) => {
                let is_over = this.listening.as_mut().is_some_and(|over| over.is_over_after_frame(exchange, cx));
                let has_more =
                    !frame.is_trailers() && !this.inner.as_ref().as_pin_ref().is_none_or(|inner| inner.is_end_stream());
                Verdict::of(is_over, has_more && exchange.sessions().is_closed())
            }
            Poll::Ready(Some(Err(_)) | None) => Verdict::GoOn,
        };
        if verdict != Verdict::GoOn || matches!(frame, Poll::Ready(None)) {
            *this.exchange = None;
        }
        if verdict != Verdict::GoOn {
            this.inner.set(None);
        }
        match (verdict, frame) {
            (Verdict::Cut, _) => Poll::Ready(Some(Err(Cut.into()))),
            (Verdict::Over, Poll::Pending) => Poll::Ready(None),
            // With the frame in hand as its last one.
            (Verdict::Over | Verdict::GoOn, frame) => frame,
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
