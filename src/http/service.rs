//! [`SessionService`].

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

#[cfg(feature = "axum")]
use http::Extensions;
use http::{HeaderMap, Method, Request, Response, request};
use http_body::Body;
use tower_service::Service;

#[cfg(feature = "axum")]
use super::extract::RequestContext;
use super::{ResponseFuture, SessionBody, exchange::Exchange, future::State, layer::Shared, termination::Termination};
use crate::{
    error::BoxError,
    protocol::{HeaderProtocol, ProtocolKind, RequestInfo},
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
    #[cfg_attr(not(feature = "axum"), allow(dead_code, reason = "there are none"))]
    extractors: bool,
}

impl<S> SessionService<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>, extractors: bool) -> Self {
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

    // A request is large. The usual path moves it once, into the host: it is passed to no other function here.
    #[inline]
    #[cfg_attr(not(feature = "axum"), expect(unused_mut, reason = "the extractors change it"))]
    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let protocol = match &self.shared.protocol {
            ProtocolKind::Header(protocol) => protocol,
            ProtocolKind::Other(_) => return self.call_with_other_protocol(request),
        };
        let begun = match protocol.index_of_id(request.headers()) {
            None if !self.shared.is_closing() => {
                Some(Begun { exchange: Exchange::begin(&self.shared, None), info: None })
            }
            index => begin_with_header(&self.shared, protocol, request.method(), request.headers(), index),
        };
        let (is_get, version) = (request.method() == Method::GET, request.version());
        let Some(begun) = begun else { return ResponseFuture::refused(version) };
        #[cfg(feature = "axum")]
        if self.extractors {
            begun.insert_context(&self.shared, request.extensions_mut());
        }
        let (termination, info) = (Some(Termination::new(begun.exchange)), begun.info);
        // Written in place: the future is larger than the request.
        ResponseFuture {
            state: State::Calling { inner: self.inner.call(request) },
            termination,
            request: info,
            is_get,
            version,
        }
    }
}

impl<S> SessionService<S> {
    #[inline(never)]
    fn call_with_other_protocol<ReqBody, ResBody>(
        &mut self,
        request: Request<ReqBody>,
    ) -> ResponseFuture<S::Future, ResBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[cfg_attr(not(feature = "axum"), expect(unused_mut, reason = "the extractors change it"))]
        let (mut parts, body) = request.into_parts();
        let (is_get, version) = (parts.method == Method::GET, parts.version);
        let begun = begin_with_parts(&self.shared, &parts);
        let Some(begun) = begun else { return ResponseFuture::refused(version) };
        #[cfg(feature = "axum")]
        if self.extractors {
            begun.insert_context(&self.shared, &mut parts.extensions);
        }
        let state = State::Calling { inner: self.inner.call(Request::from_parts(parts, body)) };
        let termination = Some(Termination::new(begun.exchange));
        ResponseFuture { state, termination, request: begun.info, is_get, version }
    }
}

/// A request that is not refused.
struct Begun {
    exchange: Exchange,
    /// With the preset, `None` if the id is active: the exchange has it.
    info: Option<RequestInfo>,
}

#[cfg(feature = "axum")]
impl Begun {
    fn insert_context(&self, shared: &Arc<Shared>, extensions: &mut Extensions) {
        RequestContext::insert(extensions, shared, self.exchange.generation(), self.info.as_ref());
    }
}

/// A request that may carry an id in a header, or may be refused.
#[inline(never)]
fn begin_with_header(
    shared: &Arc<Shared>,
    protocol: &HeaderProtocol,
    method: &Method,
    headers: &HeaderMap,
    index_of_id: Option<usize>,
) -> Option<Begun> {
    if shared.phase() == Phase::Closed {
        return None;
    }
    let value = index_of_id.and_then(|index| protocol.id_at(headers, index));
    let generation = value.and_then(|value| shared.begin_request(value));
    // The value of an active session is a valid id; any other is checked.
    let info = match value {
        Some(value) if generation.is_none() => untracked_request(method, value),
        _ => None,
    };
    let may_start = generation.is_none() && shared.refuses() && !method.is_safe();
    let exchange = Exchange::begin(shared, generation);
    (!may_start).then_some(Begun { exchange, info })
}

/// A request of a protocol that may read every part of its head.
#[inline(never)]
fn begin_with_parts(shared: &Arc<Shared>, request: &request::Parts) -> Option<Begun> {
    let (ProtocolKind::Other(protocol), true) = (&shared.protocol, shared.phase() != Phase::Closed) else {
        return None;
    };
    let id = protocol.request_id_among(request, &|id| shared.is_tracked(id));
    // The exchange ends the activity when it is dropped, also by a panic.
    let exchange = Exchange::begin(shared, id.as_ref().and_then(|id| shared.begin_request(id.as_bytes())));
    let info = RequestInfo { method: request.method.clone(), id, is_tracked: exchange.generation().is_some() };
    let may_start = shared.refuses() && protocol.may_start(request, info.tracked());
    (!may_start).then_some(Begun { exchange, info: Some(info) })
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
