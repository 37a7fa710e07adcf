//! The Tower layer, its service, future and body; axum's extractors.

mod body;
mod context;
mod exchange;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod layer;
mod misuse;
mod service;
mod stream_kind;
mod termination;

#[cfg(feature = "axum")]
pub use self::extract::{MissingSessionLayer, SessionIdRejection};
pub use self::{
    body::SessionBody, future::ResponseFuture, layer::SessionLayer, service::SessionService, stream_kind::StreamKind,
};

use http::{
    HeaderValue, Response, StatusCode, Version,
    header::{CONNECTION, RETRY_AFTER},
    response,
};

use crate::handle::ActiveSessions;

/// The response to a request that is refused, or forced to end.
fn unavailable<B>(version: Version) -> Response<SessionBody<B>> {
    let mut response = Response::new(SessionBody::empty());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    // HTTP/2 has no such header.
    if version <= Version::HTTP_11 {
        // To a response of a later version, hyper would add `keep-alive` for an HTTP/1.0 client.
        *response.version_mut() = version;
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// In a shutdown: tells an HTTP/1 client that this response is the last one on its connection. Repeating it changes
/// nothing.
#[cold]
fn close_connection(sessions: &ActiveSessions, version: Version, response: &mut response::Parts) {
    let is_upgrade = response.status == StatusCode::SWITCHING_PROTOCOLS;
    if !sessions.inner.close_connections || version > Version::HTTP_11 || is_upgrade {
        return;
    }
    if version == Version::HTTP_10 {
        // To a response of a later version, hyper would add `keep-alive` for such a client.
        response.version = version;
    }
    let mut options = Vec::new();
    let values = response.headers.get_all(CONNECTION).into_iter();
    for option in values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii) {
        // The host's others, such as the names of hop-by-hop headers, stay.
        if !(option.is_empty() || option.eq_ignore_ascii_case(b"keep-alive") || option.eq_ignore_ascii_case(b"close")) {
            options.extend_from_slice(option);
            options.extend_from_slice(b", ");
        }
    }
    options.extend_from_slice(b"close");
    let value = HeaderValue::from_maybe_shared(options).unwrap_or(HeaderValue::from_static("close"));
    response.headers.insert(CONNECTION, value);
}
