//! [`SessionService`].

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Method, Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{
    ResponseFuture, SessionBody,
    context::{Extractors, RequestContext},
    exchange::Exchange,
    future::State,
    layer::Shared,
    termination::Termination,
};
use crate::{
    error::BoxError,
    protocol::{ProtocolKind, RequestInfo},
    session::{Phase, SessionId},
};

/// The host inside the layer; made by [`SessionLayer`](super::SessionLayer).
///
/// It reads the head of each request and of each response. Readiness and errors are the host's. In
/// [`Phase::Closed`](crate::Phase::Closed), and where
/// [`refuse_new_sessions`](crate::ActiveSessionsBuilder::refuse_new_sessions) applies, it answers with 503 itself.
///
/// ```
/// use tower::Layer;
/// use tower_session_end::ActiveSessions;
///
/// let sessions = ActiveSessions::builder().build()?;
/// let mut service = sessions.layer().layer("host");
/// *service.get_mut() = "another host";
/// assert_eq!(service.get_ref(), &"another host");
/// assert_eq!(service.into_inner(), "another host");
/// # Ok::<(), tower_session_end::BuildError>(())
/// ```
#[derive(Clone)]
pub struct SessionService<S> {
    inner: S,
    shared: Arc<Shared>,
    /// `None` if they are switched off.
    extractors: Option<Extractors>,
}

impl<S> SessionService<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>, extractors: Option<Extractors>) -> Self {
        Self { inner, shared, extractors }
    }

    /// The host.
    #[must_use]
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The host, mutably.
    #[must_use]
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The host, without the layer.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for SessionService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body<Error: Into<BoxError>>,
{
    type Response = Response<SessionBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let shared = &self.shared;
        let index_of_id = match &shared.protocol {
            ProtocolKind::Header(protocol) => protocol.index_of_id(request.headers()),
            ProtocolKind::Other(_) => Some(0),
        };
        // The fast path does not touch the request: a request is large, and is not moved here.
        let in_other_tasks = self.extractors.is_some_and(|extractors| extractors.in_other_tasks);
        if index_of_id.is_none() && !in_other_tasks && !shared.is_closing() {
            let (is_get, version) = (request.method() == Method::GET, request.version());
            let exchange = Exchange::begin(shared, None);
            let context = self.extractors.map(|_| RequestContext::new(&exchange, None));
            let termination = Some(Termination::new(exchange));
            let state = State::Calling { inner: self.inner.call(request) };
            return ResponseFuture { state, termination, request: None, context, is_get, version };
        }
        self.call_slow_path(request, index_of_id)
    }
}

impl<S> SessionService<S> {
    /// For a request that may carry an id, that may be refused, or whose extensions the extractors need.
    #[inline(never)]
    fn call_slow_path<ReqBody, ResBody>(
        &mut self,
        mut request: Request<ReqBody>,
        index_of_id: Option<usize>,
    ) -> ResponseFuture<S::Future, ResBody>
    where
        S: Service<Request<ReqBody>>,
    {
        let shared = &self.shared;
        let version = request.version();
        if shared.phase() == Phase::Closed {
            return ResponseFuture::refused(version);
        }
        let (exchange, info, may_start);
        match &shared.protocol {
            ProtocolKind::Header(protocol) => {
                let value = index_of_id.and_then(|index| protocol.id_at(request.headers(), index));
                let generation = value.and_then(|value| shared.begin_request(value));
                // The value of an active session is a valid id; any other is checked.
                info = match value {
                    Some(value) if generation.is_none() => untracked_request(request.method(), value),
                    _ => None,
                };
                may_start = shared.refuses() && generation.is_none() && !request.method().is_safe();
                exchange = Exchange::begin(shared, generation);
            }
            ProtocolKind::Other(protocol) => {
                let (parts, body) = request.into_parts();
                let id = protocol.request_id_among(&parts, &|id| shared.is_tracked(id));
                // The exchange ends the activity when it is dropped, also by a panic.
                exchange = Exchange::begin(shared, id.as_ref().and_then(|id| shared.begin_request(id.as_bytes())));
                let request_info =
                    RequestInfo { method: parts.method.clone(), id, is_tracked: exchange.generation().is_some() };
                may_start = shared.refuses() && protocol.may_start(&parts, request_info.tracked());
                info = Some(request_info);
                request = Request::from_parts(parts, body);
            }
        }
        if may_start {
            return ResponseFuture::refused(version);
        }
        let context = self.extractors.map(|extractors| {
            let context = RequestContext::new(&exchange, info.as_ref());
            if extractors.in_other_tasks {
                request.extensions_mut().insert(context.clone());
            }
            context
        });
        let is_get = request.method() == Method::GET;
        let state = State::Calling { inner: self.inner.call(request) };
        ResponseFuture { state, termination: Some(Termination::new(exchange)), request: info, context, is_get, version }
    }
}

/// A request whose id is not active; `None` if the id is not valid.
#[cold]
fn untracked_request(method: &Method, id: &[u8]) -> Option<RequestInfo> {
    let id = SessionId::from_bytes(id, usize::MAX).ok()?;
    Some(RequestInfo { method: method.clone(), id: Some(id), is_tracked: false })
}

impl<S: fmt::Debug> fmt::Debug for SessionService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner, shared, extractors: _ } = self;
        f.debug_struct("SessionService")
            .field("inner", inner)
            .field("sessions", &shared.sessions)
            .finish_non_exhaustive()
    }
}
