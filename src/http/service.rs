//! [`SessionService`].

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Method, Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{ResponseFuture, SessionBody, exchange::Exchange, future::Host, layer::Shared, watch::Watch};
use crate::{
    error::BoxError,
    protocol::{ProtocolKind, RequestInfo},
    session::{Phase, SessionId},
};

/// A host whose responses are watched; made by [`SessionLayer`](super::SessionLayer).
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
        let place_of_id = match &shared.protocol {
            ProtocolKind::Header(protocol) => protocol.place_of_id(request.headers()),
            ProtocolKind::Other(_) => Some(0),
        };
        // Kept apart from the rest, because nothing here touches the request, which is large: so it is not moved about.
        if place_of_id.is_none() && !self.extractors && !shared.is_stopping() {
            let (is_get, version) = (request.method() == Method::GET, request.version());
            let watch = Watch::new(Exchange::begin(shared, None));
            let host = Host::Asked { inner: self.inner.call(request) };
            return ResponseFuture { host, watch: Some(watch), request: None, is_get, version };
        }
        self.call_with_care(request, place_of_id)
    }
}

impl<S> SessionService<S> {
    /// A request that may carry an id, or may be refused, or is to tell the extractors.
    #[inline(never)]
    fn call_with_care<ReqBody, ResBody>(
        &mut self,
        mut request: Request<ReqBody>,
        place_of_id: Option<usize>,
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
                let value = place_of_id.and_then(|place| protocol.id_at(request.headers(), place));
                let generation = value.and_then(|value| shared.begin_activity(value));
                // What is tracked is known to be an id.
                info = match value {
                    Some(value) if generation.is_none() => stranger(request.method(), value),
                    _ => None,
                };
                may_start = shared.refuses() && generation.is_none() && !request.method().is_safe();
                exchange = Exchange::begin(shared, generation);
            }
            ProtocolKind::Other(protocol) => {
                let (parts, body) = request.into_parts();
                let id = protocol.request_id(&parts);
                // From here on the session is put down whatever happens, a panic of the protocol included.
                exchange = Exchange::begin(shared, id.as_ref().and_then(|id| shared.begin_activity(id.as_bytes())));
                let told =
                    RequestInfo { method: parts.method.clone(), id, is_tracked: exchange.generation().is_some() };
                may_start = shared.refuses() && protocol.may_start(&parts, told.tracked());
                info = Some(told);
                request = Request::from_parts(parts, body);
            }
        }
        if may_start {
            return ResponseFuture::refused(version);
        }
        #[cfg(feature = "axum")]
        if self.extractors {
            let id = exchange.generation().map(|generation| &generation.id).or(info.as_ref().and_then(RequestInfo::id));
            crate::extract::RequestContext::insert(request.extensions_mut(), &shared.sessions, id);
        }
        let is_get = request.method() == Method::GET;
        let host = Host::Asked { inner: self.inner.call(request) };
        ResponseFuture { host, watch: Some(Watch::new(exchange)), request: info, is_get, version }
    }
}

/// Of a request that carries an id which is not active, if it is one.
#[cold]
fn stranger(method: &Method, id: &[u8]) -> Option<RequestInfo> {
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
