//! [`ResponseFuture`].

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Response, Version, response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    SessionBody,
    exchange::{Recording, Refused},
    unavailable,
    watch::Watch,
};
use crate::protocol::RequestInfo;

pin_project! {
    /// The response of a [`SessionService`](super::SessionService).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, B> {
        #[pin]
        pub(super) host: Host<F, B>,
        // Until there is a response.
        pub(super) watch: Option<Watch>,
        // What the protocol is to be told about the request, unless the preset was told by the watch.
        pub(super) request: Option<RequestInfo>,
        pub(super) is_get: bool,
        pub(super) version: Version,
    }
}

pin_project! {
    #[project = HostProj]
    pub(super) enum Host<F, B> {
        Asked { #[pin] inner: F },
        // The host is through, and the head of a new session waits for its record. With none: refused, or cut.
        Through { held: Option<Box<Held<B>>> },
    }
}

pub(super) struct Held<B> {
    recording: Recording,
    response: Response<SessionBody<B>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<F, B> ResponseFuture<F, B> {
    #[cold]
    pub(super) fn refused(version: Version) -> Self {
        Self { host: Host::Through { held: None }, watch: None, request: None, is_get: false, version }
    }
}

impl<F, B, E> Future for ResponseFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<SessionBody<B>>, E>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.as_mut().project();
        let HostProj::Asked { inner } = this.host.project() else { return self.without_host(cx) };
        let Some(watch) = this.watch else {
            return Poll::Pending; // polled after it was ready
        };
        match inner.poll(cx) {
            Poll::Ready(Ok(response)) => {
                let (mut parts, body) = response.into_parts();
                if watch.exchange.may_say(this.request.as_ref(), &parts) {
                    match watch.exchange.obey(this.request.as_ref(), &mut parts) {
                        Ok(None) => {}
                        Ok(Some(recording)) => return self.hold(parts, body, recording, cx),
                        Err(Refused) => {
                            *this.watch = None;
                            return Poll::Ready(Ok(unavailable(*this.version)));
                        }
                    }
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

impl<F, B> ResponseFuture<F, B> {
    /// For a body that is a stream, maybe, or over.
    #[inline(never)]
    fn wrap(self: Pin<&mut Self>, parts: response::Parts, body: B) -> Response<SessionBody<B>>
    where
        B: Body,
    {
        let this = self.project();
        if body.is_end_stream() {
            // Nobody waits for the end of a body that has none to come.
            *this.watch = None;
        } else if let Some(watch) = this.watch
            && *this.is_get
            && watch.exchange.listens(&parts.headers)
        {
            watch.listen();
        }
        Response::from_parts(parts, SessionBody::new(body, this.watch.take()))
    }

    /// The head has opened a session, and waits for its record.
    #[cold]
    fn hold<E>(
        mut self: Pin<&mut Self>,
        parts: response::Parts,
        body: B,
        recording: Recording,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<SessionBody<B>>, E>>
    where
        B: Body,
    {
        let this = self.as_mut().project();
        let cut = this
            .watch
            .as_ref()
            .map(|watch| watch.exchange.sessions().inner.shutdown.closed.clone())
            .unwrap_or_default();
        // Its session is at work until the head has left, though nothing may come after it.
        let response = if body.is_end_stream() || is_plain(&body) {
            Response::from_parts(parts, SessionBody::new(body, this.watch.take()))
        } else {
            self.as_mut().wrap(parts, body)
        };
        let held = Box::new(Held { recording, response, cut: Box::pin(cut.cancelled_owned()) });
        // The host's future is dropped here, not when somebody drops this one.
        self.as_mut().project().host.set(Host::Through { held: Some(held) });
        self.without_host(cx)
    }

    /// The host has made us wait.
    #[inline(never)]
    fn wait<E>(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Response<SessionBody<B>>, E>> {
        let mut this = self.project();
        let Some(watch) = this.watch else { return Poll::Pending };
        let _cut = ready!(watch.poll(cx));
        *this.watch = None;
        // The host's future is dropped here, not when somebody drops this one.
        this.host.set(Host::Through { held: None });
        Poll::Ready(Ok(unavailable(*this.version)))
    }

    #[cold]
    fn without_host<E>(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Response<SessionBody<B>>, E>> {
        let this = self.project();
        match this.host.project() {
            HostProj::Asked { .. } => Poll::Pending,
            HostProj::Through { held: None } => Poll::Ready(Ok(unavailable(*this.version))),
            HostProj::Through { held } => poll_recording(held, cx, *this.version).map(Ok),
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
