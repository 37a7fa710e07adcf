//! [`SessionService`].

use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, request};
use http_body::Body;
use tower_service::Service;

use super::{ResponseFuture, SessionBody, exchange::Exchange, future::Host, layer::Shared, lend, watch::Watch};
use crate::{
    BoxError,
    protocol::{RequestInfo, Spoken},
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
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let shared = &self.shared;
        let version = request.version();
        if shared.sessions.is_closed() {
            return ResponseFuture::refused(version);
        }
        let (exchange, id, may_open);
        match &shared.protocol {
            Spoken::Header(protocol) => {
                let entry;
                if protocol.may_carry_id(request.headers()) {
                    (entry, id) = lend(request.headers_mut(), |headers| shared.take_up_from(protocol, headers));
                } else {
                    (entry, id) = (None, None);
                }
                may_open = shared.refuses() && entry.is_none() && !request.method().is_safe();
                exchange = Exchange::begin(shared, entry);
            }
            Spoken::Other(protocol) => {
                (exchange, id, may_open) = lend_head(&mut request, |parts| {
                    let (entry, id) = shared.take_up(protocol.request_id(parts));
                    // From here on the session is put down whatever happens, a panic of the protocol included.
                    let exchange = Exchange::begin(shared, entry);
                    let tracked = id.as_ref().filter(|_| exchange.entry().is_some());
                    let may_open = shared.refuses() && protocol.may_open(parts, tracked);
                    (exchange, id, may_open)
                });
            }
        }
        if may_open {
            return ResponseFuture::refused(version);
        }
        let info = RequestInfo { method: request.method().clone(), id, is_tracked: exchange.entry().is_some() };
        #[cfg(feature = "axum")]
        if self.extractors {
            lend(request.extensions_mut(), |extensions| {
                crate::extract::RequestContext::insert(extensions, &shared.sessions, info.id());
            });
        }
        // In one expression, so that the host's future is made where it stays.
        ResponseFuture {
            host: Host::Asked { inner: self.inner.call(request) },
            watch: Some(Watch::new(exchange)),
            request: info,
            version,
        }
    }
}

/// Shows the head of a request to a protocol. The body stays where it is.
#[inline(always)]
fn lend_head<B, T>(request: &mut Request<B>, look: impl FnOnce(&request::Parts) -> T) -> T {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = mem::take(request.method_mut());
    parts.uri = mem::take(request.uri_mut());
    parts.version = request.version();
    parts.headers = mem::take(request.headers_mut());
    parts.extensions = mem::take(request.extensions_mut());
    let seen = look(&parts);
    *request.method_mut() = parts.method;
    *request.uri_mut() = parts.uri;
    *request.headers_mut() = parts.headers;
    *request.extensions_mut() = parts.extensions;
    seen
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
