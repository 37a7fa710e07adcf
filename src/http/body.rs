//! [`SessionBody`].

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::watch::{Verdict, Watch};
use crate::error::BoxError;

/// After so many frames that were there at once we look whether the body is to end. Else one that never makes us wait would
/// never hear of it.
const FRAMES_IN_A_ROW: u8 = 96;

pin_project! {
    /// The host's body, frame by frame, until it ends, or its session does, or the connection drain.
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
            // Until it ends.
            watch: Option<Watch>,
            // Frames until the next look.
            frames: u8,
        },
        Over,
    }
}

impl<B> SessionBody<B> {
    #[inline]
    pub(super) fn new(inner: B, watch: Option<Watch>) -> Self {
        Self { state: State::Host { inner, watch, frames: FRAMES_IN_A_ROW } }
    }

    pub(super) const fn empty() -> Self {
        Self { state: State::Over }
    }

    /// The next frame, and then, if it was there at once, a look at whether there may be more.
    #[inline(never)]
    fn look(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled<B::Data>
    where
        B: Body<Error: Into<BoxError>>,
    {
        let StateProj::Host { mut inner, watch, frames } = self.as_mut().project().state.project() else {
            return Poll::Ready(None);
        };
        *frames = FRAMES_IN_A_ROW;
        let polled = inner.as_mut().poll_frame(cx).map_err(Into::into);
        let (Poll::Ready(Some(Ok(frame))), Some(watch)) = (&polled, watch) else { return self.judge(polled, cx) };
        match watch.look(cx, !frame.is_trailers() && !inner.is_end_stream()) {
            None => polled,
            Some(Verdict::Over) => {
                self.end();
                // With the frame in hand as its last one.
                polled
            }
            Some(Verdict::Cut) => {
                self.end();
                Poll::Ready(Some(Err(Cut.into())))
            }
        }
    }

    /// What becomes of the body after anything but data.
    #[inline(never)]
    fn judge<T>(mut self: Pin<&mut Self>, polled: Polled<T>, cx: &mut Context<'_>) -> Polled<T> {
        let StateProj::Host { watch: place, frames, .. } = self.as_mut().project().state.project() else {
            return polled;
        };
        *frames = FRAMES_IN_A_ROW;
        let Some(watch) = place else { return polled };
        match &polled {
            Poll::Ready(Some(_)) => polled,
            Poll::Ready(None) => {
                *place = None;
                polled
            }
            Poll::Pending => {
                let verdict = ready!(watch.poll(cx));
                self.end();
                Poll::Ready(match verdict {
                    Verdict::Over => None,
                    Verdict::Cut => Some(Err(Cut.into())),
                })
            }
        }
    }

    /// The host's body is dropped here, and not when somebody drops this one.
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
            return self.look(cx);
        }
        // What the host has to say comes first: a last event is not lost.
        match inner.poll_frame(cx) {
            // A frame has room for trailers; data need not be moved with all of that.
            Poll::Ready(Some(Ok(frame))) if frame.is_data() => {
                Poll::Ready(Some(frame.into_data().map(Frame::data).or_else(Ok)))
            }
            polled => self.judge(polled.map_err(Into::into), cx),
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

/// The time of the connection drain was over before the body was.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server is shutting down and could not wait for the end of this body")
    }
}

impl std::error::Error for Cut {}
