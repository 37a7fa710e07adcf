//! [`SessionBody`].

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::termination::{Terminated, Termination};
use crate::error::BoxError;

/// After this many frames that were ready at once, the body checks whether it has to end: one that is never pending
/// would not notice otherwise.
const FRAMES_PER_CHECK: u8 = 96;

pin_project! {
    /// The host's body inside the layer, frame by frame.
    ///
    /// It ends with the host's body. A [listening](crate::StreamKind::Listening) stream also ends with its session, if
    /// [`end_streams`](crate::ActiveSessionsBuilder::end_streams) is on. Any body that is unfinished when the
    /// connection drain times out or is forced ends with an error. In both cases a gRPC stream over HTTP/2 (content
    /// type `application/grpc` or `application/grpc+..`) ends with the trailers `grpc-status: 14` (unavailable) and
    /// `grpc-message` instead.
    ///
    /// The request counts as in flight until the body has ended or is dropped.
    ///
    /// ```
    /// use http::{Request, Response};
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_session_end::ActiveSessions;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let sessions = ActiveSessions::builder().build()?;
    /// let host = service_fn(async |_: Request<()>| Ok::<_, std::io::Error>(Response::new("hello".to_owned())));
    ///
    /// let response = sessions.layer().layer(host).oneshot(Request::new(())).await?;
    /// assert_eq!(response.body().get_ref().map(String::as_str), Some("hello"));
    /// assert_eq!(response.into_body().into_inner(), Some("hello".to_owned()));
    /// # Ok(())
    /// # }
    /// ```
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
            // Whether it ends with trailers, if the layer ends it.
            is_grpc: bool,
        },
        Over {
            // The layer has ended a gRPC stream, and its trailers tell why.
            trailers: Option<Terminated>,
        },
    }
}

impl<B> SessionBody<B> {
    #[inline]
    pub(super) fn new(inner: B, termination: Option<Termination>) -> Self {
        Self { state: State::Host { inner, termination, frames: FRAMES_PER_CHECK, is_grpc: false } }
    }

    /// As [`new`](Self::new), for a gRPC stream: it ends with trailers if the layer ends it.
    pub(super) const fn grpc(inner: B, termination: Option<Termination>) -> Self {
        Self { state: State::Host { inner, termination, frames: FRAMES_PER_CHECK, is_grpc: true } }
    }

    /// The host's body; `None` if the layer has ended it, or has answered in the host's place.
    #[must_use]
    pub const fn get_ref(&self) -> Option<&B> {
        match &self.state {
            State::Host { inner, .. } => Some(inner),
            State::Over { .. } => None,
        }
    }

    /// The host's body, mutably; `None` as in [`get_ref`](Self::get_ref).
    #[must_use]
    pub const fn get_mut(&mut self) -> Option<&mut B> {
        match &mut self.state {
            State::Host { inner, .. } => Some(inner),
            State::Over { .. } => None,
        }
    }

    /// The host's body without the layer; `None` as in [`get_ref`](Self::get_ref).
    ///
    /// The request no longer counts as in flight, and a shutdown does not end the body.
    #[must_use]
    pub fn into_inner(self) -> Option<B> {
        match self.state {
            State::Host { inner, .. } => Some(inner),
            State::Over { .. } => None,
        }
    }

    pub(super) const fn empty() -> Self {
        Self { state: State::Over { trailers: None } }
    }

    /// The next frame; if it was ready at once, also a check whether more may follow.
    #[inline(never)]
    fn check_termination(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled<B::Data>
    where
        B: Body<Error: Into<BoxError>>,
    {
        let StateProj::Host { mut inner, termination, frames, is_grpc } = self.as_mut().project().state.project()
        else {
            return self.poll_trailers();
        };
        *frames = FRAMES_PER_CHECK;
        let polled = inner.as_mut().poll_frame(cx).map_err(Into::into);
        let (Poll::Ready(Some(Ok(frame))), Some(termination)) = (&polled, termination) else {
            return self.on_poll(polled, cx);
        };
        let has_more = !frame.is_trailers() && !inner.is_end_stream();
        // The host's own trailers are the last ones.
        *is_grpc &= has_more;
        let Some(terminated) = termination.check(cx, has_more) else { return polled };
        let is_cut = terminated == Terminated::Forced && !*is_grpc;
        self.end(terminated);
        // Unless an error takes its place, this frame is the last one before the trailers.
        if is_cut { Poll::Ready(Some(Err(ForcedEnd.into()))) } else { polled }
    }

    /// Handles the polls that did not yield data.
    #[inline(never)]
    fn on_poll<T>(mut self: Pin<&mut Self>, polled: Polled<T>, cx: &mut Context<'_>) -> Polled<T> {
        let StateProj::Host { termination: slot, frames, is_grpc, .. } = self.as_mut().project().state.project() else {
            return polled;
        };
        *frames = FRAMES_PER_CHECK;
        let Some(termination) = slot else { return polled };
        match &polled {
            Poll::Ready(Some(frame)) => {
                *is_grpc &= frame.as_ref().is_ok_and(Frame::is_data);
                polled
            }
            Poll::Ready(None) => {
                *slot = None;
                polled
            }
            Poll::Pending => {
                let terminated = ready!(termination.poll(cx));
                let is_cut = terminated == Terminated::Forced && !*is_grpc;
                self.as_mut().end(terminated);
                if is_cut { Poll::Ready(Some(Err(ForcedEnd.into()))) } else { self.poll_trailers() }
            }
        }
    }

    /// The host's body is dropped here, not with this one.
    fn end(self: Pin<&mut Self>, terminated: Terminated) {
        let is_grpc = matches!(self.state, State::Host { is_grpc: true, .. });
        self.project().state.set(State::Over { trailers: is_grpc.then_some(terminated) });
    }

    /// The trailers of a gRPC stream that the layer has ended; otherwise the body is over.
    #[cold]
    fn poll_trailers<T>(self: Pin<&mut Self>) -> Polled<T> {
        let trailers = match &self.state {
            State::Over { trailers: Some(terminated) } => Some(grpc_trailers(*terminated)),
            State::Host { .. } | State::Over { trailers: None } => None,
        };
        self.project().state.set(State::Over { trailers: None });
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

/// Why the layer has ended a gRPC stream, for its client.
fn grpc_trailers(terminated: Terminated) -> HeaderMap {
    // Neither text has a character that gRPC's percent-encoding would change.
    let message = match terminated {
        Terminated::SessionEnded => "the session of this stream has ended, or the server shuts down",
        Terminated::Forced => "the server has shut down",
    };
    HeaderMap::from_iter([
        // 14 is UNAVAILABLE.
        (HeaderName::from_static("grpc-status"), HeaderValue::from_static("14")),
        (HeaderName::from_static("grpc-message"), HeaderValue::from_static(message)),
    ])
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
            return self.poll_trailers();
        };
        *frames = frames.wrapping_sub(1);
        if *frames == 0 {
            return self.check_termination(cx);
        }
        // The host is polled first, so that its last event is not lost.
        match inner.poll_frame(cx) {
            // Moving data is cheaper than moving a frame, which has the size of trailers.
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
            State::Over { trailers } => trailers.is_none(),
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Host { inner, .. } => inner.size_hint(),
            State::Over { .. } => SizeHint::with_exact(0),
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for SessionBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = match &self.state {
            State::Host { inner, .. } => Some(inner),
            State::Over { .. } => None,
        };
        f.debug_struct("SessionBody").field("inner", &inner).finish_non_exhaustive()
    }
}

/// The handle was closed before the body ended.
#[derive(Debug)]
struct ForcedEnd;

impl fmt::Display for ForcedEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the server shut down before this body ended: `connection_drain_timeout` is over, or a second signal came",
        )
    }
}

impl std::error::Error for ForcedEnd {}
