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
    exchange::{Exchange, Refused},
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
            // Registered only once the host has made us wait.
            #[pin]
            cut: Option<WaitForCancellationFutureOwned>,
        },
        Refused,
    }
}

impl<F> ResponseFuture<F> {
    pub(super) fn new(inner: F, exchange: Exchange, request: RequestInfo, version: Version) -> Self {
        Self { state: State::Host { inner, exchange: Some(exchange), request, cut: None }, version }
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
        let this = self.project();
        let StateProj::Host { inner, exchange: place, request, mut cut } = this.state.project() else {
            return Poll::Ready(Ok(unavailable(*this.version)));
        };
        let Some(exchange) = place.as_ref() else {
            return Poll::Pending; // polled after it was ready
        };
        match inner.poll(cx) {
            Poll::Pending => {
                if cut.is_none() {
                    cut.set(Some(exchange.cut().clone().cancelled_owned()));
                }
                // Just set.
                if let Some(cut) = cut.as_pin_mut() {
                    ready!(cut.poll(cx));
                }
                *place = None;
                Poll::Ready(Ok(unavailable(*this.version)))
            }
            Poll::Ready(Err(error)) => {
                *place = None;
                Poll::Ready(Err(error))
            }
            Poll::Ready(Ok(response)) => {
                let (mut parts, body) = response.into_parts();
                let said = exchange.apply(request, &mut parts);
                let exchange = place.take();
                Poll::Ready(Ok(match said {
                    Ok(()) => Response::from_parts(parts, SessionBody::new(body, exchange)),
                    Err(Refused) => unavailable(*this.version),
                }))
            }
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
