//! How a host's HTTP speaks of sessions: the trait, its presets, and the updates that it returns.

#[cfg(feature = "cookie")]
mod cookie;
mod header;
mod header_value;
mod mcp;
mod update;

use std::{any::Any, sync::Once};

use http::{Method, request, response};

#[cfg(feature = "cookie")]
pub use self::cookie::CookieProtocol;
pub(crate) use self::update::SessionChange;
pub use self::{
    header::{HeaderProtocol, OnNewId},
    mcp::McpProtocol,
    update::SessionUpdate,
};
use crate::{
    panic::catch,
    session::{Session, SessionId},
};

/// Reads the heads of a host's requests and responses: the session of a request, and the changes that a response
/// declares.
///
/// Only a response starts, ends or compacts sessions. A request alone never does.
///
/// A panic in one of these methods is caught. The call then counts as one that returned `None`, `false` or
/// [`SessionUpdate::empty`], and the first panic is logged.
///
/// # Examples
///
/// A host that answers `POST /sessions` with the id in `location`, and ends sessions on `DELETE /sessions/{id}`:
///
/// ```
/// use http::{Method, StatusCode, header::LOCATION, request, response};
/// use tower_session_end::{ActiveSessions, EndReason, RequestInfo, SessionId, SessionProtocol, SessionUpdate};
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
///                 SessionUpdate::ended(id, EndReason::Deleted)
///             }
///             (&Method::POST, StatusCode::CREATED, None) => {
///                 let location = response.headers.get(LOCATION).and_then(|value| value.to_str().ok());
///                 match location.and_then(|path| path.strip_prefix("/sessions/")) {
///                     Some(id) => SessionUpdate::started(id),
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
///
/// [`RequestInfo::new`] shows the unit test of a protocol.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not read a host's heads",
    label = "needs `impl SessionProtocol`",
    note = "`HeaderProtocol` is the preset for ids in headers, `McpProtocol` that for MCP"
)]
pub trait SessionProtocol: Send + Sync + 'static {
    /// The id that the request carries; `None` if it carries none, or one that is not valid.
    fn request_id(&self, request: &request::Parts) -> Option<SessionId>;

    /// As [`request_id`](Self::request_id), for a protocol in which a request may carry several ids: `is_tracked` says which of them
    /// are active. The layer calls this one; by default it calls `request_id`.
    fn request_id_among(&self, request: &request::Parts, is_tracked: &dyn Fn(&SessionId) -> bool) -> Option<SessionId> {
        let _ = is_tracked;
        self.request_id(request)
    }

    /// Whether the request may start a session. `tracked` is its id, if that is active.
    ///
    /// Called only while [`refuse_new_sessions`](crate::ActiveSessionsBuilder::refuse_new_sessions) refuses: a request
    /// that may start a session is then answered with 503. By default, requests with an unsafe method (any but `GET`,
    /// `HEAD`, `OPTIONS` and `TRACE`) and no active session may start one; health probes are answered as usual.
    fn may_start(&self, request: &request::Parts, tracked: Option<&SessionId>) -> bool {
        tracked.is_none() && !request.method.is_safe()
    }

    /// The changes that the response declares. Called once for each response head;
    /// [`SessionUpdate::empty`] does not allocate.
    ///
    /// A response that only repeats the [tracked](RequestInfo::is_tracked) id of its request declares no change.
    fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate;
}

/// A layer's protocol. The default one reads heads in place. Any other needs the `Parts`, which have to be taken out of
/// the request and put back.
pub(crate) enum ProtocolKind {
    Header(HeaderProtocol),
    Other(Box<dyn SessionProtocol>),
}

impl ProtocolKind {
    pub(crate) fn new(protocol: impl SessionProtocol) -> Self {
        match (&protocol as &dyn Any).downcast_ref::<HeaderProtocol>() {
            Some(preset) => Self::Header(preset.clone()),
            None => Self::Other(Box::new(CatchPanicProtocol { protocol, warned: Once::new() })),
        }
    }
}

/// A protocol is user code: a panic in it must not become one of the request.
struct CatchPanicProtocol<P> {
    protocol: P,
    warned: Once,
}

impl<P> CatchPanicProtocol<P> {
    fn call<T: Default>(&self, method: impl FnOnce(&P) -> T) -> T {
        catch(|| method(&self.protocol)).unwrap_or_else(|panic| {
            self.warned.call_once(|| {
                tracing::warn!(
                    name: "session-protocol-panicked",
                    message = panic.into_message(),
                    "a session protocol panicked; the call counts as one that found no session (logged once for each \
                     layer: fix the `SessionProtocol` that `layer_with` got)",
                );
            });
            T::default()
        })
    }
}

impl<P: SessionProtocol> SessionProtocol for CatchPanicProtocol<P> {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        self.call(|protocol| protocol.request_id(request))
    }

    fn request_id_among(&self, request: &request::Parts, is_tracked: &dyn Fn(&SessionId) -> bool) -> Option<SessionId> {
        self.call(|protocol| protocol.request_id_among(request, is_tracked))
    }

    fn may_start(&self, request: &request::Parts, tracked: Option<&SessionId>) -> bool {
        self.call(|protocol| protocol.may_start(request, tracked))
    }

    fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate {
        self.call(|protocol| protocol.response(request, response))
    }
}

/// The request that a response belongs to, as [`SessionProtocol::response`] gets it.
#[derive(Clone, Debug)]
pub struct RequestInfo {
    pub(crate) method: Method,
    pub(crate) id: Option<SessionId>,
    pub(crate) is_tracked: bool,
}

impl RequestInfo {
    /// A request with this method and id, for unit tests of a [`SessionProtocol`]; the layer makes its own.
    ///
    /// `is_tracked` says whether the id was active when the request came. Without an id it counts as `false`.
    ///
    /// ```
    /// use http::{Method, Response, request, response};
    /// use tower_session_end::{EndReason, RequestInfo, SessionId, SessionProtocol, SessionUpdate};
    ///
    /// /// `DELETE` with the id in `x-chat` ends the chat.
    /// struct Chats;
    ///
    /// impl SessionProtocol for Chats {
    ///     fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
    ///         request.headers.get("x-chat")?.to_str().ok()?.parse().ok()
    ///     }
    ///
    ///     fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate {
    ///         match request.id() {
    ///             Some(id) if request.is_tracked() && request.method() == Method::DELETE => {
    ///                 SessionUpdate::ended(id, EndReason::Deleted)
    ///             }
    ///             _ => SessionUpdate::empty(),
    ///         }
    ///     }
    /// }
    ///
    /// let (mut head, ()) = Response::new(()).into_parts();
    /// let id = SessionId::new("4711")?;
    ///
    /// let deletes = RequestInfo::new(Method::DELETE, Some(id.clone()), true);
    /// assert!(!Chats.response(&deletes, &mut head).is_empty());
    ///
    /// let deletes_unknown = RequestInfo::new(Method::DELETE, Some(id), false);
    /// assert!(Chats.response(&deletes_unknown, &mut head).is_empty());
    /// # Ok::<(), tower_session_end::InvalidSessionId>(())
    /// ```
    #[must_use]
    pub const fn new(method: Method, id: Option<SessionId>, is_tracked: bool) -> Self {
        let is_tracked = is_tracked && id.is_some();
        Self { method, id, is_tracked }
    }

    /// The request's method.
    #[must_use]
    pub const fn method(&self) -> &Method {
        &self.method
    }

    /// The id that the request carried, if it was valid.
    #[must_use]
    pub const fn id(&self) -> Option<&SessionId> {
        self.id.as_ref()
    }

    /// The id, if it was active when the request came.
    #[inline]
    pub(crate) fn tracked(&self) -> Option<&SessionId> {
        self.id().filter(|_| self.is_tracked)
    }

    /// Whether the id was active when the request came.
    #[must_use]
    pub const fn is_tracked(&self) -> bool {
        self.is_tracked
    }
}

/// The start of the session that the request names and the host has served, if that is not active.
///
/// An update of the handler takes precedence. A `DELETE` starts nothing: it may have ended the session that it names.
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
