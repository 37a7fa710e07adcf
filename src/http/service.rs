//! [`SessionService`].

use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, Method, Request, Response, request};
use http_body::Body;
use tower_service::Service;

use super::{ResponseFuture, SessionBody, context::Extractors, exchange::Exchange, future::State, layer::Shared};
use crate::{
    error::BoxError,
    protocol::{HeaderProtocol, ProtocolKind, SessionProtocol},
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
    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let (method, version) = (request.method().clone(), request.version());
        let Some(exchange) = begin(&self.shared, &mut request) else { return ResponseFuture::refused(version) };
        let context = self.extractors.map(|extractors| extractors.context(&exchange, &mut request));
        ResponseFuture {
            state: State::Calling { inner: self.inner.call(request) },
            exchange: Some(exchange),
            context,
            method,
            version,
        }
    }
}

/// Begins the exchange of a request; `None` if it is refused. The request is large, so it is not moved.
#[inline]
fn begin<B>(shared: &Arc<Shared>, request: &mut Request<B>) -> Option<Exchange> {
    let phase = shared.phase();
    if phase == Phase::Closed {
        return None;
    }
    match &shared.protocol {
        ProtocolKind::Header(protocol) => match protocol.index_of_id(request.headers()) {
            None if phase < Phase::Closing => Some(Exchange::begin(shared, None, None)),
            index => begin_with(shared, protocol, request.method(), request.headers(), index),
        },
        ProtocolKind::Other(protocol) => {
            let mut head = take_head(request);
            let exchange = begin_by(shared, &**protocol, &head);
            put_head(request, &mut head);
            exchange
        }
    }
}

/// For a request that has the header of the id at this index, or that may be refused.
#[inline(never)]
fn begin_with(
    shared: &Arc<Shared>,
    protocol: &HeaderProtocol,
    method: &Method,
    headers: &HeaderMap,
    index_of_id: Option<usize>,
) -> Option<Exchange> {
    let value = index_of_id.and_then(|index| protocol.id_at(headers, index));
    let generation = value.and_then(|value| shared.begin_request(value));
    let is_tracked = generation.is_some();
    // The value of an active session is a valid id; any other is checked.
    let untracked = value.filter(|_| !is_tracked).and_then(untracked_id);
    // The exchange ends the activity when it is dropped.
    let exchange = Exchange::begin(shared, generation, untracked);
    let may_start = shared.refuses() && !is_tracked && !method.is_safe();
    (!may_start).then_some(exchange)
}

/// As [`begin_with`], for a protocol of the user's.
#[inline(never)]
fn begin_by(shared: &Arc<Shared>, protocol: &dyn SessionProtocol, head: &request::Parts) -> Option<Exchange> {
    let id = protocol.request_id_among(head, &|id| shared.is_tracked(id));
    let generation = id.as_ref().and_then(|id| shared.begin_request(id.as_bytes()));
    let is_tracked = generation.is_some();
    // The exchange ends the activity when it is dropped, also by a panic.
    let mut exchange = Exchange::begin(shared, generation, None);
    let may_start = shared.refuses() && protocol.may_start(head, id.as_ref().filter(|_| is_tracked));
    exchange.untracked = id.filter(|_| !is_tracked).map(Arc::new);
    (!may_start).then_some(exchange)
}

/// The id of a request that is not active; `None` if it is not valid.
#[cold]
fn untracked_id(id: &[u8]) -> Option<Arc<SessionId>> {
    SessionId::from_bytes(id, usize::MAX).ok().map(Arc::new)
}

/// The head of a request as [`request::Parts`], without its body. Until [`put_head`] the request has none.
fn take_head<B>(request: &mut Request<B>) -> request::Parts {
    let mut head = Request::new(()).into_parts().0;
    head.version = request.version();
    put_head(request, &mut head);
    head
}

/// Swaps the head of a request and this one.
fn put_head<B>(request: &mut Request<B>, head: &mut request::Parts) {
    mem::swap(request.method_mut(), &mut head.method);
    mem::swap(request.uri_mut(), &mut head.uri);
    mem::swap(request.headers_mut(), &mut head.headers);
    mem::swap(request.extensions_mut(), &mut head.extensions);
}

impl<S: fmt::Debug> fmt::Debug for SessionService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner, shared, .. } = self;
        f.debug_struct("SessionService")
            .field("inner", inner)
            .field("sessions", &shared.sessions)
            .finish_non_exhaustive()
    }
}
