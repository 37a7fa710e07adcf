//! [`StreamKind`]: what a response body without a known length is.

use http::{HeaderMap, HeaderValue, Version, header::CONTENT_TYPE, response};

use crate::handle::ActiveSessions;

/// What a streamed response is: a handler puts it into the extensions of its response.
///
/// Without it, the body of a `GET` with one of the
/// [`listening_media_types`](crate::ActiveSessionsBuilder::listening_media_types) is `Listening`, and any other body is
/// an `Answer`. With it, neither the method nor the media type matters. A body with a known length is always an answer.
///
/// A model's tokens on a `GET` are an answer that looks like a listening stream: **such a handler has to return
/// `Answer`**. Otherwise a shutdown ends the stream cleanly in the middle, and the client takes it for whole.
///
/// It stays in the extensions, which are never sent, so that another session layer outside of this one sees it too.
///
/// # Examples
///
/// With feature `axum` it is a part of a response:
///
/// ```
/// use std::convert::Infallible;
/// use axum::{Router, response::{IntoResponse, sse::{Event, Sse}}, routing::get};
/// use futures_util::stream;
/// use tower_session_end::{ActiveSessions, StreamKind};
///
/// async fn tokens() -> impl IntoResponse {
///     let tokens = ["a", "b", "c"].map(|token| Ok::<_, Infallible>(Event::default().data(token)));
///     (StreamKind::Answer, Sse::new(stream::iter(tokens)))
/// }
///
/// let sessions = ActiveSessions::builder().build()?;
/// let app: Router = Router::new().route("/tokens", get(tokens)).layer(sessions.layer());
/// # Ok::<(), tower_session_end::BuildError>(())
/// ```
///
/// Without axum:
///
/// ```
/// use tower_session_end::StreamKind;
///
/// let mut response = http::Response::new("a stream of changes");
/// response.extensions_mut().insert(StreamKind::Listening);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StreamKind {
    /// The response is an answer: it counts as work until its body ends, and a shutdown lets it finish within the
    /// [`connection_drain_timeout`](crate::ActiveSessionsBuilder::connection_drain_timeout).
    Answer,
    /// The client listens, and that is no work. The body ends cleanly once its session has ended, unless
    /// [`end_streams`](crate::ActiveSessionsBuilder::end_streams) is off.
    Listening,
}

impl StreamKind {
    pub(super) fn of(sessions: &ActiveSessions, is_get: bool, response: &response::Parts) -> Self {
        if let Some(kind) = response.extensions.get() {
            return *kind;
        }
        let essence = essence(&response.headers);
        let is_listed = |listed: &String| listed.as_bytes().eq_ignore_ascii_case(essence);
        match is_get && sessions.inner.listening_media_types.iter().any(is_listed) {
            true => Self::Listening,
            false => Self::Answer,
        }
    }
}

/// The media type of a response without its parameters.
fn essence(headers: &HeaderMap) -> &[u8] {
    let value = headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

/// Whether the body is one of gRPC, which tells its outcome in trailers. HTTP/1 may drop them, and gRPC-Web has none.
pub(super) fn is_grpc(version: Version, headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    version > Version::HTTP_11
        && essence(headers)
            .split_at_checked(GRPC.len())
            .is_some_and(|(start, rest)| start.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+')))
}
