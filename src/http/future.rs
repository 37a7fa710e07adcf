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
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    SessionBody, StreamKind, close_connection,
    context::RequestContext,
    exchange::{Exchange, HandleClosed, RecordWait},
    in_flight::InFlight,
    stream_kind::is_grpc,
    unavailable,
};
use crate::{handle::ActiveSessions, session::Phase};

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
        pub(super) exchange: Option<Exchange>,
        // `None` without extractors.
        pub(super) context: Option<RequestContext>,
        pub(super) method: Method,
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
        Self { state, exchange: None, context: None, method: Method::GET, version }
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
        let Some(exchange) = this.exchange else {
            return Poll::Pending; // polled again after it was ready
        };
        match RequestContext::enter(this.context, || inner.poll(cx)) {
            Poll::Ready(Ok(response)) => {
                let is_usual = exchange.phase() == Phase::Open && has_known_length(response.body());
                if !is_usual || exchange.may_update(&response) {
                    return self.respond(response, cx);
                }
                let in_flight = this.exchange.take().map(|exchange| exchange.in_flight);
                Poll::Ready(Ok(response.map(|body| SessionBody::new(body, in_flight))))
            }
            Poll::Ready(Err(error)) => {
                *this.exchange = None;
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

impl<F, B: Body> ResponseFuture<F, B> {
    /// For a response that may change a session, or that the phase changes, or whose body may be a stream or is over.
    #[inline(never)]
    fn respond<E>(
        mut self: Pin<&mut Self>,
        response: Response<B>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<SessionBody<B>>, E>> {
        let this = self.as_mut().project();
        let Some(exchange) = this.exchange else { return Poll::Pending };
        let may_update = exchange.may_update(&response);
        let (mut parts, body) = response.into_parts();
        if exchange.phase() != Phase::Open {
            close_connection(exchange.sessions(), *this.version, &mut parts);
        }
        let record_wait = match may_update {
            true => exchange.apply_response(this.method, &mut parts),
            false => Ok(None),
        };
        let in_flight = this.exchange.take().map(|exchange| exchange.in_flight);
        match (record_wait, in_flight) {
            (Ok(None), in_flight) => {
                // A server does not poll a body that is over, so the exchange ends here.
                let in_flight = in_flight.filter(|_| !body.is_end_stream());
                Poll::Ready(Ok(wrap(this.method, *this.version, parts, body, in_flight)))
            }
            (Ok(Some(record_wait)), Some(in_flight)) => {
                // The session has an activity until the head has left, also if the body is over.
                let sessions = in_flight.sessions().clone();
                let closed = Box::pin(sessions.inner.shutdown.closed.clone().cancelled_owned());
                let response = wrap(this.method, *this.version, parts, body, Some(in_flight));
                let pending = Box::new(PendingHead { sessions, record_wait, response, closed });
                // The host's future is dropped here, not with this one.
                self.as_mut().project().state.set(State::Responding { pending: Some(pending) });
                self.poll_response(cx)
            }
            (Err(HandleClosed), _) | (Ok(Some(_)), None) => Poll::Ready(Ok(unavailable(*this.version))),
        }
    }

    /// The host is pending.
    #[inline(never)]
    fn wait<E>(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Response<SessionBody<B>>, E>> {
        let mut this = self.project();
        let Some(exchange) = this.exchange else { return Poll::Pending };
        let _forced = ready!(exchange.in_flight.poll(cx));
        *this.exchange = None;
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

/// The body in flight. With `in_flight` it may be a stream.
fn wrap<B: Body>(
    method: &Method,
    version: Version,
    parts: response::Parts,
    body: B,
    mut in_flight: Option<InFlight>,
) -> Response<SessionBody<B>> {
    let may_be_stream = !body.is_end_stream() && body.size_hint().exact().is_none();
    if may_be_stream
        && let Some(in_flight) = &mut in_flight
        && StreamKind::of(in_flight.sessions(), method, &parts) == StreamKind::Listening
    {
        in_flight.begin_stream();
    }
    let body = match may_be_stream && is_grpc(version, &parts.headers) {
        true => SessionBody::grpc(body, in_flight),
        false => SessionBody::new(body, in_flight),
    };
    Response::from_parts(parts, body)
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
