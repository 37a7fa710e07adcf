//! [`SessionBody`].

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::watch::{Verdict, Watch};
use crate::BoxError;

pin_project! {
    /// The host's body, frame by frame, until it ends, or its session does, or the connection drain.
    pub struct SessionBody<B> {
        #[pin]
        inner: Option<B>,
        // Until it ends.
        watch: Option<Watch>,
    }
}

impl<B> SessionBody<B> {
    #[inline]
    pub(super) fn new(inner: B, watch: Option<Watch>) -> Self {
        Self { inner: Some(inner), watch }
    }

    pub(super) fn empty() -> Self {
        Self { inner: None, watch: None }
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

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        // What the host has to say comes first: a last event is not lost.
        let frame = inner.poll_frame(cx);
        let Some(watch) = this.watch else { return frame.map_err(Into::into) };
        let verdict = match &frame {
            Poll::Pending => watch.after_pending(cx),
            Poll::Ready(Some(Ok(frame))) => {
                let inner = this.inner.as_ref().as_pin_ref();
                watch.after_frame(cx, || !frame.is_trailers() && !inner.is_none_or(|inner| inner.is_end_stream()))
            }
            Poll::Ready(Some(Err(_))) => Verdict::GoOn,
            Poll::Ready(None) => {
                *this.watch = None;
                Verdict::GoOn
            }
        };
        if verdict == Verdict::GoOn {
            return frame.map_err(Into::into);
        }
        *this.watch = None;
        this.inner.set(None);
        match (verdict, frame) {
            (Verdict::Cut, _) => Poll::Ready(Some(Err(Cut.into()))),
            (_, Poll::Pending) => Poll::Ready(None),
            // With the frame in hand as its last one.
            (_, frame) => frame.map_err(Into::into),
        }
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    #[inline]
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
