//! The Tower layer, its service, future and body; axum's extractors.

mod body;
mod exchange;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod layer;
mod service;
mod termination;

#[cfg(feature = "axum")]
pub use self::extract::{MissingSessionLayer, SessionIdRejection};
pub use self::{body::SessionBody, future::ResponseFuture, layer::SessionLayer, service::SessionService};

use http::{
    HeaderValue, Response, StatusCode, Version,
    header::{CONNECTION, RETRY_AFTER},
};

/// The response to a request that is refused, or forced to end.
fn unavailable<B>(version: Version) -> Response<SessionBody<B>> {
    let mut response = Response::new(SessionBody::empty());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    // HTTP/2 has no such header.
    if version <= Version::HTTP_11 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
