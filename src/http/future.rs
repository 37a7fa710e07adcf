//! [`ResponseFuture`].

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Response, Version};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    SessionBody,
    exchange::{Exchange, Recording, Refused, UntilCut},
    unavailable,
};
use crate::protocol::RequestInfo;

pin_project! {
    /// The response of a [`SessionService`](super::SessionService).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, B> {
        #[pin]
        state: State<F, B>,
        version: Version,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, B> {
        Host {
            #[pin]
            inner: F,
            exchange: Option<Exchange>,
            request: RequestInfo,
            cut: UntilCut,
        },
        // The head of a new session, which waits for its record.
        Recording { held: Option<Box<Held<B>>> },
        Refused,
    }
}

struct Held<B> {
    recording: Recording,
    response: Response<SessionBody<B>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<F, B> ResponseFuture<F, B> {
    pub(super) fn new(inner: F, exchange: Exchange, request: RequestInfo, version: Version) -> Self {
        Self { state: State::Host { inner, exchange: Some(exchange), request, cut: UntilCut::default() }, version }
    }

    pub(super) fn refused(version: Version) -> Self {
        Self { state: State::Refused, version }
    }
}

impl<F, B, E> Future for ResponseFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<SessionBody<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.as_mut().project();
        let (inner, place, request, cut) = match this.state.as_mut().project() {
            StateProj::Host { inner, exchange, request, cut } => (inner, exchange, request, cut),
            StateProj::Recording { held } => return poll_recording(held, cx, *this.version).map(Ok),
            StateProj::Refused => return Poll::Ready(Ok(unavailable(*this.version))),
        };
        let Some(exchange) = place.as_mut() else {
            return Poll::Pending; // polled after it was ready
        };
        match inner.poll(cx) {
            Poll::Pending => {
                ready!(cut.poll(exchange, cx));
                // The host's future is dropped here, not when somebody drops this one.
                this.state.set(State::Refused);
                Poll::Ready(Ok(unavailable(*this.version)))
            }
            Poll::Ready(Err(error)) => {
                *place = None;
                Poll::Ready(Err(error))
            }
            Poll::Ready(Ok(response)) => {
                let (mut parts, body) = response.into_parts();
                if let Err(Refused) = exchange.apply(request, &mut parts) {
                    *place = None;
                    return Poll::Ready(Ok(unavailable(*this.version)));
                }
                // A stream has no length; most bodies have one, and need no look at the headers.
                let may_listen = !body.is_end_stream() && body.size_hint().exact().is_none();
                let listens = may_listen
                    && exchange.listens(&request.method, &parts.headers)
                    && exchange.sessions().inner.config.end_streams;
                let recording = exchange.until_recorded();
                let closed = recording.is_some().then(|| exchange.sessions().inner.cut.clone());
                let response = Response::from_parts(parts, SessionBody::new(body, place.take(), listens));
                let (Some(recording), Some(closed)) = (recording, closed) else {
                    return Poll::Ready(Ok(response));
                };
                let cut = Box::pin(closed.cancelled_owned());
                this.state.set(State::Recording { held: Some(Box::new(Held { recording, response, cut })) });
                self.poll(cx)
            }
        }
    }
}

/// Lets the head go once its session is recorded; after the cut no head with a new id leaves.
fn poll_recording<B>(
    place: &mut Option<Box<Held<B>>>,
    cx: &mut Context<'_>,
    version: Version,
) -> Poll<Response<SessionBody<B>>> {
    let Some(held) = place else { return Poll::Pending };
    let is_recorded = held.recording.as_mut().poll(cx).is_ready();
    let is_cut = !is_recorded && held.cut.as_mut().poll(cx).is_ready();
    match place.take_if(|_| is_recorded || is_cut) {
        None => Poll::Pending,
        Some(held) if is_recorded => Poll::Ready(held.response),
        Some(_) => Poll::Ready(unavailable(version)),
    }
}

impl<F, B> fmt::Debug for ResponseFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
