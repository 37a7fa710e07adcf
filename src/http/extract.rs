//! The extractors for axum: the handle, and the id that a request carries.

use std::{convert::Infallible, fmt};

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, IntoResponseParts, Response, ResponseParts},
};
use http::{StatusCode, request::Parts};

use super::{StreamKind, context::RequestContext};
use crate::{handle::ActiveSessions, protocol::SessionUpdate, session::SessionId};

fn context_of(parts: &Parts) -> Result<RequestContext, MissingSessionLayer> {
    RequestContext::of(parts).ok_or(MissingSessionLayer(()))
}

/// The handle of the layer around this handler. Rejects with 500 if there is no layer, or if the handler runs in another
/// task than the layer; see [`extractors_in_other_tasks`](crate::SessionLayer::extractors_in_other_tasks).
///
/// ```
/// use axum::{Json, Router, routing::get};
/// use tower_session_end::ActiveSessions;
///
/// async fn count(sessions: ActiveSessions) -> Json<usize> {
///     Json(sessions.len())
/// }
///
/// let sessions = ActiveSessions::builder().build()?;
/// let app: Router = Router::new().route("/count", get(count)).layer(sessions.layer());
/// # Ok::<(), tower_session_end::BuildError>(())
/// ```
impl<S: Send + Sync> FromRequestParts<S> for ActiveSessions {
    type Rejection = MissingSessionLayer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(context_of(parts)?.sessions().clone())
    }
}

/// The id that this request carries. Rejects with 400 if it carries no valid id, and with 500 if there is no layer.
/// `Option<SessionId>` is `None` instead of the 400. In another task than the layer's it needs
/// [`extractors_in_other_tasks`](crate::SessionLayer::extractors_in_other_tasks).
///
/// ```
/// use axum::{Router, routing::post};
/// use tower_session_end::{ActiveSessions, SessionId};
///
/// async fn chat(id: SessionId) -> String {
///     format!("you are in {id}")
/// }
///
/// let sessions = ActiveSessions::builder().build()?;
/// let app: Router = Router::new().route("/chat", post(chat)).layer(sessions.layer());
/// # Ok::<(), tower_session_end::BuildError>(())
/// ```
impl<S: Send + Sync> FromRequestParts<S> for SessionId {
    type Rejection = SessionIdRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        context_of(parts)?.id().cloned().ok_or(SessionIdRejection::MissingSessionId)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for SessionId {
    type Rejection = MissingSessionLayer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(context_of(parts)?.id().cloned())
    }
}

/// As a part of a response.
///
/// ```
/// use axum::{Router, http::StatusCode, routing::delete};
/// use tower_session_end::{ActiveSessions, EndReason, SessionId, SessionUpdate};
///
/// async fn remove(id: SessionId) -> (StatusCode, SessionUpdate, &'static str) {
///     (StatusCode::ACCEPTED, SessionUpdate::ended(id, EndReason::Deleted), "deleted")
/// }
///
/// let sessions = ActiveSessions::builder().build()?;
/// let app: Router = Router::new().route("/chat", delete(remove)).layer(sessions.layer());
/// # Ok::<(), tower_session_end::BuildError>(())
/// ```
impl IntoResponseParts for SessionUpdate {
    type Error = Infallible;

    fn into_response_parts(self, mut response: ResponseParts) -> Result<ResponseParts, Self::Error> {
        self.insert_into_extensions(response.extensions_mut());
        Ok(response)
    }
}

impl IntoResponse for SessionUpdate {
    fn into_response(self) -> Response {
        (self, ()).into_response()
    }
}

/// As a part of a response.
///
/// ```
/// use axum::response::{IntoResponse, Response};
/// use tower_session_end::StreamKind;
///
/// let response: Response = (StreamKind::Answer, "the body would be a stream").into_response();
/// assert_eq!(response.extensions().get(), Some(&StreamKind::Answer));
/// ```
impl IntoResponseParts for StreamKind {
    type Error = Infallible;

    fn into_response_parts(self, mut response: ResponseParts) -> Result<ResponseParts, Self::Error> {
        response.extensions_mut().insert(self);
        Ok(response)
    }
}

/// Rejection with 500: there is no [`SessionLayer`](crate::SessionLayer) around the handler, or it is
/// [`without_extractors`](crate::SessionLayer::without_extractors). Or the handler runs in another task than the layer,
/// which is not made for [that](crate::SessionLayer::extractors_in_other_tasks).
#[derive(Debug)]
pub struct MissingSessionLayer(());

impl fmt::Display for MissingSessionLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "no session layer with extractors around this handler: add `.layer(sessions.layer())` to the router, \
             without `without_extractors`; a handler in another task than the layer needs \
             `extractors_in_other_tasks` too",
        )
    }
}

impl std::error::Error for MissingSessionLayer {}

impl IntoResponse for MissingSessionLayer {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

/// Rejection of the [`SessionId`] extractor.
#[derive(Debug)]
#[non_exhaustive]
pub enum SessionIdRejection {
    /// The request carries no valid id. Status 400.
    MissingSessionId,
    /// There is no layer. Status 500.
    MissingSessionLayer(MissingSessionLayer),
}

impl From<MissingSessionLayer> for SessionIdRejection {
    fn from(missing: MissingSessionLayer) -> Self {
        Self::MissingSessionLayer(missing)
    }
}

impl fmt::Display for SessionIdRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingSessionId => f.write_str("this request carries no valid session id"),
            Self::MissingSessionLayer(_) => f.write_str("the session id of this request is not available"),
        }
    }
}

impl std::error::Error for SessionIdRejection {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::MissingSessionId => None,
            Self::MissingSessionLayer(missing) => Some(missing),
        }
    }
}

impl IntoResponse for SessionIdRejection {
    fn into_response(self) -> Response {
        match self {
            Self::MissingSessionId => (StatusCode::BAD_REQUEST, self.to_string()).into_response(),
            Self::MissingSessionLayer(missing) => missing.into_response(),
        }
    }
}
