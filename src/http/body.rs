//! [`SessionBody`].

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::termination::{Terminated, Termination};
use crate::error::BoxError;

/// After this many frames in a row that were ready at once, the body checks whether it has to end: a body that is never pending
/// would not notice otherwise.
const FRAMES_PER_CHECK: u8 = 96;

pin_project! {
    /// The host's body, frame by frame, until it ends, or its session does, or the connection drain times out.
    pub struct SessionBody<B> {
        #[pin]
        state: State<B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<B> {
        Host {
            #[pin]
            inner: B,
            // Until the body ends.
            termination: Option<Termination>,
            // Frames until the next check.
            frames: u8,
        },
        Over,
    }
}

impl<B> SessionBody<B> {
    #[inline]
    pub(super) fn new(inner: B, termination: Option<Termination>) -> Self {
        Self { state: State::Host { inner, termination, frames: FRAMES_PER_CHECK } }
    }

    /// The host's body; `None` once this body has ended.
    #[must_use]
    pub const fn get_ref(&self) -> Option<&B> {
        match &self.state {
            State::Host { inner, .. } => Some(inner),
            State::Over => None,
        }
    }

    /// The host's body, to change it; `None` once this body has ended.
    #[must_use]
    pub const fn get_mut(&mut self) -> Option<&mut B> {
        match &mut self.state {
            State::Host { inner, .. } => Some(inner),
            State::Over => None,
        }
    }

    /// The host's body, which is then no longer watched; `None` once this body has ended.
    #[must_use]
    pub fn into_inner(self) -> Option<B> {
        match self.state {
            State::Host { inner, .. } => Some(inner),
            State::Over => None,
        }
    }

    pub(super) const fn empty() -> Self {
        Self { state: State::Over }
    }

    /// The next frame; if it was ready at once, also a check whether more may follow.
    #[inline(never)]
    fn check_termination(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled<B::Data>
    where
        B: Body<Error: Into<BoxError>>,
    {
        let StateProj::Host { mut inner, termination, frames } = self.as_mut().project().state.project() else {
            return Poll::Ready(None);
        };
        *frames = FRAMES_PER_CHECK;
        let polled = inner.as_mut().poll_frame(cx).map_err(Into::into);
        let (Poll::Ready(Some(Ok(frame))), Some(termination)) = (&polled, termination) else {
            return self.on_poll(polled, cx);
        };
        match termination.check(cx, !frame.is_trailers() && !inner.is_end_stream()) {
            None => polled,
            Some(Terminated::SessionEnded) => {
                self.end();
                // This frame is the last one.
                polled
            }
            Some(Terminated::Forced) => {
                self.end();
                Poll::Ready(Some(Err(ForcedEnd.into())))
            }
        }
    }

    /// Handles everything but data.
    #[inline(never)]
    fn on_poll<T>(mut self: Pin<&mut Self>, polled: Polled<T>, cx: &mut Context<'_>) -> Polled<T> {
        let StateProj::Host { termination: place, frames, .. } = self.as_mut().project().state.project() else {
            return polled;
        };
        *frames = FRAMES_PER_CHECK;
        let Some(termination) = place else { return polled };
        match &polled {
            Poll::Ready(Some(_)) => polled,
            Poll::Ready(None) => {
                *place = None;
                polled
            }
            Poll::Pending => {
                let terminated = ready!(termination.poll(cx));
                self.end();
                Poll::Ready(match terminated {
                    Terminated::SessionEnded => None,
                    Terminated::Forced => Some(Err(ForcedEnd.into())),
                })
            }
        }
    }

    /// The host's body is dropped here, not with this one.
    fn end(self: Pin<&mut Self>) {
        self.project().state.set(State::Over);
    }
}

type Polled<T> = Poll<Option<Result<Frame<T>, BoxError>>>;

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
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled<B::Data> {
        let StateProj::Host { inner, frames, .. } = self.as_mut().project().state.project() else {
            return Poll::Ready(None);
        };
        *frames = frames.wrapping_sub(1);
        if *frames == 0 {
            return self.check_termination(cx);
        }
        // The host's frame comes first, so that a last event is not lost.
        match inner.poll_frame(cx) {
            // A frame is as large as trailers; moving data alone is cheaper.
            Poll::Ready(Some(Ok(frame))) if frame.is_data() => {
                Poll::Ready(Some(frame.into_data().map(Frame::data).or_else(Ok)))
            }
            polled => self.on_poll(polled.map_err(Into::into), cx),
        }
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Host { inner, .. } => inner.is_end_stream(),
            State::Over => true,
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Host { inner, .. } => inner.size_hint(),
            State::Over => SizeHint::with_exact(0),
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for SessionBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = match &self.state {
            State::Host { inner, .. } => Some(inner),
            State::Over => None,
        };
        f.debug_struct("SessionBody").field("inner", &inner).finish_non_exhaustive()
    }
}

/// The connection drain timed out before the body ended.
#[derive(Debug)]
struct ForcedEnd;

impl fmt::Display for ForcedEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server shuts down, and the end of this body did not come within `connection_drain_timeout`")
    }
}

impl std::error::Error for ForcedEnd {}
