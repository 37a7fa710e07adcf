//! [`SessionBody`].

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::watch::{Verdict, Watch};
use crate::BoxError;

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
        },
        Over,
    }
}

impl<B> SessionBody<B> {
    #[inline]
    pub(super) fn new(inner: B, watch: Option<Watch>) -> Self {
        Self { state: State::Host { inner, watch } }
    }

    pub(super) const fn empty() -> Self {
        Self { state: State::Over }
    }

    /// The host's body is dropped here, and not when somebody drops this one.
    #[cold]
    fn end(self: Pin<&mut Self>) {
        self.project().state.set(State::Over);
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
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let StateProj::Host { mut inner, watch } = self.as_mut().project().state.project() else {
            return Poll::Ready(None);
        };
        // What the host has to say comes first: a last event is not lost.
        match inner.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(watch) = watch
                    && watch.has_to_look()
                {
                    let has_more = !frame.is_trailers() && !inner.is_end_stream();
                    match watch.look(cx, has_more) {
                        None => {}
                        // With the frame in hand as its last one.
                        Some(Verdict::Over) => self.end(),
                        Some(Verdict::Cut) => {
                            self.end();
                            return Poll::Ready(Some(Err(Cut.into())));
                        }
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                *watch = None;
                Poll::Ready(None)
            }
            Poll::Pending => {
                let Some(watch) = watch else { return Poll::Pending };
                let verdict = ready!(watch.poll(cx));
                self.end();
                Poll::Ready(match verdict {
                    Verdict::Over => None,
                    Verdict::Cut => Some(Err(Cut.into())),
                })
            }
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
