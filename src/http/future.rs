//! [`ResponseFuture`].

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Method, Response, Version, response};
use http_body::Body;
use pin_project_lite::pin_project;

use super::{SessionBody, exchange::Refused, unavailable, watch::Watch};
use crate::protocol::RequestInfo;

pin_project! {
    /// The response of a [`SessionService`](super::SessionService).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        pub(super) host: Host<F>,
        // Until there is a response.
        pub(super) watch: Option<Watch>,
        // What the protocol is to be told about the request, unless the preset was told by the watch.
        pub(super) request: Option<RequestInfo>,
        pub(super) method: Method,
        pub(super) version: Version,
    }
}

pin_project! {
    #[project = HostProj]
    pub(super) enum Host<F> {
        Asked { #[pin] inner: F },
        // Refused, or cut.
        Silenced,
    }
}

impl<F> ResponseFuture<F> {
    #[cold]
    pub(super) fn refused(version: Version) -> Self {
        Self { host: Host::Silenced, watch: None, request: None, method: Method::GET, version }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<SessionBody<B>>, E>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.as_mut().project();
        let (HostProj::Asked { inner }, Some(watch)) = (this.host.project(), this.watch.as_mut()) else {
            return self.without_host();
        };
        match inner.poll(cx) {
            Poll::Ready(Ok(response)) => {
                let (mut parts, body) = response.into_parts();
                if watch.exchange.may_say(&parts)
                    && let Err(Refused) = watch.exchange.obey(this.request.as_ref(), &mut parts)
                {
                    *this.watch = None;
                    return Poll::Ready(Ok(unavailable(*this.version)));
                }
                if !is_plain(&body) {
                    return Poll::Ready(Ok(self.wrap(parts, body)));
                }
                let watch = this.watch.take();
                Poll::Ready(Ok(Response::from_parts(parts, SessionBody::new(body, watch))))
            }
            Poll::Ready(Err(error)) => {
                *this.watch = None;
                Poll::Ready(Err(error))
            }
            Poll::Pending => self.wait(cx),
        }
    }
}

/// Whether a body has a length, so that it is no stream, and is not over: as most are.
#[inline]
fn is_plain<B: Body>(body: &B) -> bool {
    !body.is_end_stream() && body.size_hint().exact().is_some()
}

impl<F> ResponseFuture<F> {
    /// For a body that is a stream, maybe, or over.
    #[inline(never)]
    fn wrap<B: Body>(self: Pin<&mut Self>, parts: response::Parts, body: B) -> Response<SessionBody<B>> {
        let this = self.project();
        if body.is_end_stream() {
            // Nobody waits for the end of a body that has none to come.
            *this.watch = None;
        } else if let Some(watch) = this.watch
            && *this.method == Method::GET
            && watch.exchange.listens(&parts.headers)
        {
            watch.listen();
        }
        Response::from_parts(parts, SessionBody::new(body, this.watch.take()))
    }

    /// The host has made us wait.
    #[inline(never)]
    fn wait<B, E>(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Response<SessionBody<B>>, E>> {
        let mut this = self.project();
        let Some(watch) = this.watch else { return Poll::Pending };
        let _cut = ready!(watch.poll(cx));
        *this.watch = None;
        // The host's future is dropped here, not when somebody drops this one.
        this.host.set(Host::Silenced);
        Poll::Ready(Ok(unavailable(*this.version)))
    }

    #[cold]
    fn without_host<B, E>(self: Pin<&mut Self>) -> Poll<Result<Response<SessionBody<B>>, E>> {
        let this = self.project();
        match this.host.project() {
            HostProj::Asked { .. } => Poll::Pending, // polled after it was ready
            HostProj::Silenced => Poll::Ready(Ok(unavailable(*this.version))),
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
