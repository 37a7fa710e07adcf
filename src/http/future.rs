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
    SessionBody, StreamKind, close_connection,
    context::RequestContext,
    exchange::{HandleClosed, RecordWait},
    stream_kind::is_grpc,
    termination::Termination,
    unavailable,
};
use crate::{handle::ActiveSessions, protocol::RequestInfo, session::Phase};

pin_project! {
    /// The response future of a [`SessionService`](super::SessionService).
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the host's future, and the request no longer counts as in flight. A session that a response
    /// head would have started is not noted, unless the head is already there and only waits for its record: then the
    /// session is active, although the client does not get its id.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, B> {
        #[pin]
        pub(super) state: State<F, B>,
        // Until there is a response.
        pub(super) termination: Option<Termination>,
        // With the preset, `None` if the id is active: the exchange has it.
        pub(super) request: Option<RequestInfo>,
        // `None` without extractors.
        pub(super) context: Option<RequestContext>,
        pub(super) is_get: bool,
        pub(super) version: Version,
    }
}

pin_project! {
    #[project = StateProj]
    pub(super) enum State<F, B> {
        Calling { #[pin] inner: F },
        // The head of a new session waits for its record. `None`: the request is refused, or forced to end.
        Responding { pending: Option<Box<PendingHead<B>>> },
    }
}

pub(super) struct PendingHead<B> {
    sessions: ActiveSessions,
    record_wait: RecordWait,
    response: Response<SessionBody<B>>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<F, B> ResponseFuture<F, B> {
    #[cold]
    pub(super) fn refused(version: Version) -> Self {
        let state = State::Responding { pending: None };
        Self { state, termination: None, request: None, context: None, is_get: false, version }
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
        let StateProj::Calling { inner } = this.state.project() else { return self.poll_response(cx) };
        let Some(termination) = this.termination else {
            return Poll::Pending; // polled again after it was ready
        };
        match RequestContext::enter(this.context, || inner.poll(cx)) {
            Poll::Ready(Ok(response)) => {
                let (mut parts, body) = response.into_parts();
                if !termination.exchange.is_open() {
                    close_connection(termination.exchange.sessions(), *this.version, &mut parts);
                }
                if termination.exchange.may_update(this.request.as_ref(), &parts) {
                    match termination.exchange.apply_response(this.request.as_ref(), &mut parts) {
                        Ok(None) => {}
                        Ok(Some(record_wait)) => return self.wait_for_record(parts, body, record_wait, cx),
                        Err(HandleClosed) => {
                            *this.termination = None;
                            return Poll::Ready(Ok(unavailable(*this.version)));
                        }
                    }
                }
                if !has_known_length(&body) {
                    return Poll::Ready(Ok(self.wrap(parts, body)));
                }
                let termination = this.termination.take();
                Poll::Ready(Ok(Response::from_parts(parts, SessionBody::new(body, termination))))
            }
            Poll::Ready(Err(error)) => {
                *this.termination = None;
                Poll::Ready(Err(error))
            }
            Poll::Pending => self.wait(cx),
        }
    }
}

/// Whether a body has an exact length, so that it is no stream, and is not over: the usual case.
#[inline]
fn has_known_length<B: Body>(body: &B) -> bool {
    !body.is_end_stream() && body.size_hint().exact().is_some()
}

impl<F, B> ResponseFuture<F, B> {
    /// For a body that may be a stream, or is over.
    #[inline(never)]
    fn wrap(self: Pin<&mut Self>, parts: response::Parts, body: B) -> Response<SessionBody<B>>
    where
        B: Body,
    {
        let this = self.project();
        if body.is_end_stream() {
            // A server does not poll a body that is over, so the exchange ends here.
            *this.termination = None;
        } else if let Some(termination) = this.termination
            && StreamKind::of(termination.exchange.sessions(), *this.is_get, &parts) == StreamKind::Listening
            && termination.exchange.begin_stream()
        {
            termination.end_with_session();
        }
        let body = match is_grpc(*this.version, &parts.headers) {
            true => SessionBody::grpc(body, this.termination.take()),
            false => SessionBody::new(body, this.termination.take()),
        };
        Response::from_parts(parts, body)
    }

    /// The head starts a session, and waits for its record.
    #[cold]
    fn wait_for_record<E>(
        mut self: Pin<&mut Self>,
        parts: response::Parts,
        body: B,
        record_wait: RecordWait,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<SessionBody<B>>, E>>
    where
        B: Body,
    {
        let this = self.as_mut().project();
        let Some(termination) = this.termination.as_ref() else { return Poll::Pending };
        let sessions = termination.exchange.sessions().clone();
        // The session has an activity until the head has left, also if the body is over.
        let response = if body.is_end_stream() || has_known_length(&body) {
            Response::from_parts(parts, SessionBody::new(body, this.termination.take()))
        } else {
            self.as_mut().wrap(parts, body)
        };
        let closed = Box::pin(sessions.inner.shutdown.closed.clone().cancelled_owned());
        let pending = Box::new(PendingHead { sessions, record_wait, response, closed });
        // The host's future is dropped here, not with this one.
        self.as_mut().project().state.set(State::Responding { pending: Some(pending) });
        self.poll_response(cx)
    }

    /// The host is pending.
    #[inline(never)]
    fn wait<E>(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Response<SessionBody<B>>, E>> {
        let mut this = self.project();
        let Some(termination) = this.termination else { return Poll::Pending };
        let _forced = ready!(termination.poll(cx));
        *this.termination = None;
        // The host's future is dropped here, not with this one.
        this.state.set(State::Responding { pending: None });
        Poll::Ready(Ok(unavailable(*this.version)))
    }

    #[cold]
    fn poll_response<E>(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Response<SessionBody<B>>, E>> {
        let this = self.project();
        match this.state.project() {
            StateProj::Calling { .. } => Poll::Pending,
            StateProj::Responding { pending: None } => Poll::Ready(Ok(unavailable(*this.version))),
            StateProj::Responding { pending } => poll_pending_head(pending, cx, *this.version).map(Ok),
        }
    }
}

/// Returns the head once its session is recorded. In `Closed` no head with a new id leaves.
fn poll_pending_head<B>(
    slot: &mut Option<Box<PendingHead<B>>>,
    cx: &mut Context<'_>,
    version: Version,
) -> Poll<Response<SessionBody<B>>> {
    let Some(pending) = slot else { return Poll::Pending };
    let is_recorded = pending.record_wait.as_mut().poll(cx).is_ready();
    let is_closed = !is_recorded && pending.closed.as_mut().poll(cx).is_ready();
    match slot.take_if(|_| is_recorded || is_closed) {
        None => Poll::Pending,
        Some(pending) if is_recorded => {
            let PendingHead { sessions, response, .. } = *pending;
            let (mut parts, body) = response.into_parts();
            if sessions.phase() != Phase::Open {
                // The shutdown may have begun during the wait.
                close_connection(&sessions, version, &mut parts);
            }
            Poll::Ready(Response::from_parts(parts, body))
        }
        Some(_) => Poll::Ready(unavailable(version)),
    }
}

impl<F, B> fmt::Debug for ResponseFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
