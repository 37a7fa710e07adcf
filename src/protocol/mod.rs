//! How a host's HTTP speaks of sessions: the trait, and what a protocol or a handler says with it.

mod catch_panic;
#[cfg(feature = "cookie")]
mod cookie;
mod header;
mod header_value;
mod mcp;
mod update;

use std::any::Any;

use http::{Method, request, response};

use self::catch_panic::CatchPanicProtocol;
#[cfg(feature = "cookie")]
pub use self::cookie::CookieProtocol;
pub(crate) use self::update::SessionChange;
pub use self::{header::HeaderProtocol, mcp::McpProtocol, update::SessionUpdate};
use crate::session::{Session, SessionId};

/// Reads a host's heads: which session a request belongs to, and what a response says about sessions.
///
/// Only the response counts for births and ends: a client can never open, end or compact a session by itself.
///
/// A panic in any of these is contained: the exchange goes on as if nothing was said, and one warning says so.
///
/// # Examples
///
/// A host that answers `POST /sessions` with the id in `location`, and ends on `DELETE /sessions/{id}`:
///
/// ```
/// use http::{Method, StatusCode, header::LOCATION, request, response};
/// use tower_session_end::{
///     ActiveSessions, EndReason, RequestInfo, Session, SessionId, SessionProtocol, SessionUpdate,
/// };
///
/// #[derive(Debug)]
/// struct Rest;
///
/// impl SessionProtocol for Rest {
///     fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
///         request.uri.path().strip_prefix("/sessions/")?.parse().ok()
///     }
///
///     fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate {
///         match (request.method(), response.status, request.id()) {
///             (&Method::DELETE, status, Some(id)) if status.is_success() => {
///                 SessionUpdate::ended(id.clone(), EndReason::Deleted)
///             }
///             (&Method::POST, StatusCode::CREATED, None) => {
///                 let location = response.headers.get(LOCATION).and_then(|value| value.to_str().ok());
///                 match location.and_then(|path| path.strip_prefix("/sessions/")) {
///                     Some(id) => SessionUpdate::started(Session::from(id)),
///                     None => SessionUpdate::empty(),
///                 }
///             }
///             _ => SessionUpdate::empty(),
///         }
///     }
/// }
///
/// let sessions = ActiveSessions::builder().build()?;
/// let layer = sessions.layer_with(Rest);
/// # Ok::<(), tower_session_end::BuildError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not read a host's heads",
    label = "needs `impl SessionProtocol`",
    note = "`HeaderProtocol` is the preset for ids in headers, `McpProtocol` that for MCP"
)]
pub trait SessionProtocol: Send + Sync + 'static {
    /// The id that the request carries, if it carries one that is valid.
    fn request_id(&self, request: &request::Parts) -> Option<SessionId>;

    /// Whether the request may open a session; `tracked` is its id, if that is active.
    ///
    /// Only asked where [`refuse_new_sessions`](crate::ActiveSessionsBuilder::refuse_new_sessions) is on. By default:
    /// requests with an unsafe method (not `GET`, `HEAD`, `OPTIONS` or `TRACE`) and no active session, so that
    /// probes are answered to the end.
    fn may_start(&self, request: &request::Parts, tracked: Option<&SessionId>) -> bool {
        tracked.is_none() && !request.method.is_safe()
    }

    /// What the response says. Called once for each response head; an answer of
    /// [`SessionUpdate::empty`] costs nothing.
    ///
    /// A response that carries the id of a request whose session is [tracked](RequestInfo::is_tracked) says nothing
    /// new.
    fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate;
}

/// A protocol as a layer holds it. The default one reads heads where they are; any other is shown their parts, which
/// have to be taken out for that and put back.
pub(crate) enum ProtocolKind {
    Header(HeaderProtocol),
    Other(Box<dyn SessionProtocol>),
}

impl ProtocolKind {
    pub(crate) fn new(protocol: impl SessionProtocol) -> Self {
        match (&protocol as &dyn Any).downcast_ref::<HeaderProtocol>() {
            Some(preset) => Self::Header(preset.clone()),
            // Of user code, which may panic, every call is contained.
            None => Self::Other(Box::new(CatchPanicProtocol::new(protocol))),
        }
    }
}

/// What a protocol is told of the request when the response is there.
#[derive(Clone, Debug)]
pub struct RequestInfo {
    pub(crate) method: Method,
    pub(crate) id: Option<SessionId>,
    pub(crate) is_tracked: bool,
}

impl RequestInfo {
    /// For the unit test of a protocol.
    ///
    /// ```
    /// use http::{Method, Response};
    /// use tower_session_end::{McpProtocol, RequestInfo, SessionId, SessionProtocol};
    ///
    /// let request = RequestInfo::new(Method::DELETE, Some(SessionId::new("4711")?), true);
    /// let (mut response, ()) = Response::new(()).into_parts();
    /// assert!(!McpProtocol::new().response(&request, &mut response).is_empty()); // it ended
    /// # Ok::<(), tower_session_end::InvalidSessionId>(())
    /// ```
    #[must_use]
    pub const fn new(method: Method, id: Option<SessionId>, is_tracked: bool) -> Self {
        Self { method, id, is_tracked }
    }

    /// The request's method.
    #[must_use]
    pub const fn method(&self) -> &Method {
        &self.method
    }

    /// The id that the request carried.
    #[must_use]
    pub const fn id(&self) -> Option<&SessionId> {
        self.id.as_ref()
    }

    /// The id, if it was active when the request came.
    #[inline]
    pub(crate) fn tracked(&self) -> Option<&SessionId> {
        self.id().filter(|_| self.is_tracked)
    }

    /// Whether that id was active when the request came.
    #[must_use]
    pub const fn is_tracked(&self) -> bool {
        self.is_tracked
    }
}

/// A host has served the session that the request names: that is a birth, if it is not active.
///
/// Not where a handler has said something itself, which knows more, and not for a `DELETE`, which may well have been
/// the end of what it names.
fn adopted(request: &RequestInfo, response: &response::Parts) -> SessionUpdate {
    match &request.id {
        Some(id)
            if !request.is_tracked
                && request.method != Method::DELETE
                && response.extensions.get::<SessionUpdate>().is_none_or(SessionUpdate::is_empty) =>
        {
            SessionUpdate::started(Session::new(id.clone()))
        }
        _ => SessionUpdate::empty(),
    }
}
