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

use super::{
    SessionBody,
    exchange::{Exchange, Refused, UntilCut},
    unavailable,
};
use crate::protocol::RequestInfo;

pin_project! {
    /// The response of a [`SessionService`](super::SessionService).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
        version: Version,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Host {
            #[pin]
            inner: F,
            exchange: Option<Exchange>,
            request: RequestInfo,
            cut: UntilCut,
        },
        Refused,
    }
}

impl<F> ResponseFuture<F> {
    pub(super) fn new(inner: F, exchange: Exchange, request: RequestInfo, version: Version) -> Self {
        Self { state: State::Host { inner, exchange: Some(exchange), request, cut: UntilCut::default() }, version }
    }

    pub(super) fn refused(version: Version) -> Self {
        Self { state: State::Refused, version }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<SessionBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let StateProj::Host { inner, exchange: place, request, cut } = this.state.as_mut().project() else {
            return Poll::Ready(Ok(unavailable(*this.version)));
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
                Poll::Ready(Ok(Response::from_parts(parts, SessionBody::new(body, place.take(), listens))))
            }
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
