//! [`SessionService`].

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{ResponseFuture, SessionBody, exchange::Exchange, layer::Shared};
use crate::{BoxError, protocol::RequestInfo, session::Phase};

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

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let shared = &self.shared;
        let tracker = &shared.sessions.inner.pool.tracker;
        if tracker.phase() == Phase::Closed {
            return ResponseFuture::refused(request.version());
        }
        #[cfg_attr(not(feature = "axum"), allow(unused_mut, reason = "only the extractors write"))]
        let (mut parts, body) = request.into_parts();
        let id = shared.protocol.request_id(&parts);
        let exchange = Exchange::begin(shared, id.as_ref());
        let inner = &shared.sessions.inner;
        if inner.config.refuse_new_sessions
            && tracker.phase() >= Phase::Closing
            && shared.protocol.may_open(&parts, id.as_ref().filter(|_| exchange.is_tracked()))
        {
            return ResponseFuture::refused(parts.version);
        }
        #[cfg(feature = "axum")]
        if self.extractors {
            crate::extract::RequestContext::insert(&mut parts, &shared.sessions, id.as_ref());
        }
        let info = RequestInfo { method: parts.method.clone(), id, is_tracked: exchange.is_tracked() };
        let version = parts.version;
        ResponseFuture::new(self.inner.call(Request::from_parts(parts, body)), exchange, info, version)
    }
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
