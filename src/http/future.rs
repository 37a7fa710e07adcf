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

use super::{SessionBody, unavailable, watch::Watch};
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
                let (parts, body) = response.into_parts();
                let may_say = watch.exchange.may_say(&parts);
                if may_say || !is_plain(&body) {
                    return Poll::Ready(Ok(self.read(may_say, parts, body)));
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

/// Whether nothing is to be seen to for a body: it has a length, so it is no stream, and it is not over.
#[inline]
fn is_plain<B: Body>(body: &B) -> bool {
    !body.is_end_stream() && body.size_hint().exact().is_some()
}

impl<F> ResponseFuture<F> {
    /// The host has answered with something to look at.
    #[inline(never)]
    fn read<B: Body>(
        self: Pin<&mut Self>,
        may_say: bool,
        mut parts: response::Parts,
        body: B,
    ) -> Response<SessionBody<B>> {
        let this = self.project();
        let Some(watch) = this.watch else { return unavailable(*this.version) };
        if may_say && watch.exchange.obey(this.request.as_ref(), &mut parts).is_err() {
            *this.watch = None;
            return unavailable(*this.version);
        }
        // Nobody waits for the end of a body that has none to come.
        if body.is_end_stream() {
            *this.watch = None;
        } else if *this.method == Method::GET
            && body.size_hint().exact().is_none()
            && watch.exchange.listens(&parts.headers)
        {
            // A stream has no length; most bodies have one, and need no look at the headers.
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
