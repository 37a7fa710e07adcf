//! [`HeaderProtocol`]: ids and ends in headers. [`OnNewId`]: what a new id means for the old one.

mod scan;

use http::{HeaderName, StatusCode, request, response};

use self::scan::SessionHeaders;
use super::{RequestInfo, SessionProtocol, SessionUpdate, header_value::UniqueHeader};
use crate::session::{EndReason, SessionId};

// Constants beside the fields of `HeaderProtocol`: comparing with a constant name is faster.
const ID: HeaderName = HeaderName::from_static("x-session-id");
const END: HeaderName = HeaderName::from_static("x-session-end");
const COMPACTED_FROM: HeaderName = HeaderName::from_static("x-session-compacted-from");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Sessions in headers, the default protocol.
///
/// | response header | meaning |
/// |---|---|
/// | `x-session-id: <id>` | the session of this exchange; it starts if it is not active |
/// | `x-session-end: <reason>` | the request's session ended; if the request carried no id, the response's session |
/// | `x-session-compacted-from: <old id>` | the old id was compacted into the `x-session-id` beside it |
///
/// A request carries its id in `x-session-id`. The other two are control headers: they count in responses and are
/// ignored in requests. A response with status 101, 2xx or 3xx may start a session, one with 4xx or 5xx never does.
/// An end counts with any status; an unknown reason counts as [`Unknown`](EndReason::Unknown). A header that comes
/// twice with different values is ambiguous, and ignored. An invalid or ambiguous id in a response is counted in
/// [`ignored_ids`](crate::ActiveSessions::ignored_ids).
///
/// In gRPC the headers are metadata of the same names: the request metadata, and the initial metadata of the
/// response. A trailers-only response (HTTP 200 with `grpc-status` in the headers) starts a session only if that
/// status is 0; an end in its metadata counts. Trailing metadata are not read: a stream that fails after its head has
/// started the session of that head.
///
/// # Examples
///
/// ```
/// use http::HeaderName;
/// use tower_session_end::{ActiveSessions, HeaderProtocol};
///
/// let sessions = ActiveSessions::builder().build()?;
/// let protocol = HeaderProtocol::new()
///     .id_header(HeaderName::from_static("x-conversation"))
///     .strip_control_headers(true);
/// let layer = sessions.layer_with(protocol);
/// # Ok::<(), tower_session_end::BuildError>(())
/// ```
#[derive(Clone, Debug)]
pub struct HeaderProtocol {
    /// All header names are the defaults.
    has_default_names: bool,
    id: HeaderName,
    end: HeaderName,
    compacted_from: HeaderName,
    max_id_len: usize,
    strip: bool,
    adopt: bool,
    on_new_id: OnNewId,
}

/// What happens to the session of a request whose response carries another id; see [`HeaderProtocol::on_new_id`].
///
/// ```
/// use tower_session_end::{EndReason, HeaderProtocol, OnNewId};
///
/// let protocol = HeaderProtocol::new().on_new_id(OnNewId::End(EndReason::Reset));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnNewId {
    /// It goes on, and both are active. The default: a request in one session may start another one.
    #[default]
    Keep,
    /// It ends with this reason, then the new one starts.
    End(EndReason),
    /// It is compacted into the new one, as by `x-session-compacted-from`.
    Compact,
}

impl Default for HeaderProtocol {
    fn default() -> Self {
        Self::new()
    }
}

impl HeaderProtocol {
    /// The protocol with the header names above, ids of up to 1024 bytes, and neither stripping nor adoption.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            has_default_names: true,
            id: ID,
            end: END,
            compacted_from: COMPACTED_FROM,
            max_id_len: 1024,
            strip: false,
            adopt: false,
            on_new_id: OnNewId::Keep,
        }
    }

    /// Renames `x-session-id`.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let protocol = HeaderProtocol::new().id_header(http::HeaderName::from_static("mcp-session-id"));
    /// ```
    #[must_use]
    pub fn id_header(mut self, name: HeaderName) -> Self {
        self.id = name;
        self.has_default_names = false;
        self
    }

    /// Renames `x-session-end`.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let protocol = HeaderProtocol::new().end_header(http::HeaderName::from_static("x-chat-end"));
    /// ```
    #[must_use]
    pub fn end_header(mut self, name: HeaderName) -> Self {
        self.end = name;
        self.has_default_names = false;
        self
    }

    /// Renames `x-session-compacted-from`.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let name = http::HeaderName::from_static("x-chat-compacted-from");
    /// let protocol = HeaderProtocol::new().compacted_from_header(name);
    /// ```
    #[must_use]
    pub fn compacted_from_header(mut self, name: HeaderName) -> Self {
        self.compacted_from = name;
        self.has_default_names = false;
        self
    }

    /// The longest valid id, in bytes. Default: 1024. A longer one is ignored like any invalid id.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let protocol = HeaderProtocol::new().max_id_len(64);
    /// ```
    #[must_use]
    pub const fn max_id_len(mut self, bytes: usize) -> Self {
        self.max_id_len = bytes;
        self
    }

    /// Whether the two control headers are removed from the response before it goes to the client. Default: `false`.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let protocol = HeaderProtocol::new().strip_control_headers(true);
    /// ```
    #[must_use]
    pub const fn strip_control_headers(mut self, strip: bool) -> Self {
        self.strip = strip;
        self
    }

    /// Whether a response with status 101, 2xx or 3xx and none of these headers notes the session of the request's id.
    /// Default: `false`.
    ///
    /// For hosts that continue sessions of another process, or of the time before a restart, and do not repeat the id
    /// in their responses. Nothing is noted by a response to `DELETE`, which may have ended the session, and by a
    /// response with a [`SessionUpdate`] of the handler, which takes precedence.
    ///
    /// The host has to refuse unknown ids. If it answers 200 to any id, clients can start sessions with ids that they
    /// invent.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let protocol = HeaderProtocol::new().adopt(true);
    /// ```
    #[must_use]
    pub const fn adopt(mut self, adopt: bool) -> Self {
        self.adopt = adopt;
        self
    }

    /// What happens to the active session of a request whose response carries another id, and no control header.
    /// Default: [`OnNewId::Keep`].
    ///
    /// For hosts that replace an id, for example after a reset, and say so only by the new id. With
    /// [`End`](OnNewId::End) and [`Compact`](OnNewId::Compact) the request belongs to the new session from then on.
    /// Nothing but the default happens if the request's id is not active, if the new id is active already, with a
    /// status that starts no session, and if the response has a [`SessionUpdate`] of the handler, which takes
    /// precedence.
    ///
    /// Used as a [`SessionProtocol`] inside another protocol, it does not know which ids are active, and takes every
    /// other id for a new one.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let protocol = HeaderProtocol::new().on_new_id(OnNewId::Compact);
    /// ```
    #[must_use]
    pub const fn on_new_id(mut self, on_new_id: OnNewId) -> Self {
        self.on_new_id = on_new_id;
        self
    }

    fn changes(
        &self,
        carried: Option<&SessionId>,
        is_tracked: bool,
        response: &response::Parts,
        found: &SessionHeaders<'_>,
    ) -> SessionUpdate {
        let named = found.id.named_id(self.max_id_len);
        let id = named.as_ref().and_then(|named| named.as_ref().ok());
        let mut update = SessionUpdate::empty();
        if let UniqueHeader::One(reason) = found.end
            && let Some(ended) = carried.or(id)
        {
            let reason = reason.to_str().map_or(EndReason::Unknown, reason_of);
            update = SessionUpdate::ended(ended, reason);
            if id == Some(ended) {
                return update;
            }
        }
        let Some(named) = named.filter(|_| may_start(response)) else { return update };
        let Ok(id) = named else { return update.and(SessionUpdate::invalid_id()) };
        match found.compacted_from.named_id(self.max_id_len) {
            Some(Ok(old)) => update.and(SessionUpdate::compacted(old, id)),
            // The old id is counted as invalid; the successor starts.
            Some(Err(_)) => update.and(SessionUpdate::invalid_id()).and(SessionUpdate::started(id)),
            None if is_tracked && carried == Some(&id) => update,
            None => match (self.on_new_id, carried.filter(|_| is_tracked && takes_new_id(response, found))) {
                (OnNewId::End(reason), Some(old)) => SessionUpdate::ended(old, reason).and(SessionUpdate::started(id)),
                (OnNewId::Compact, Some(old)) => SessionUpdate::compacted(old, id),
                (OnNewId::Keep, _) | (_, None) => update.and(SessionUpdate::started(id)),
            },
        }
    }
}

/// Whether neither a control header nor the handler says what another id in the response means.
fn takes_new_id(response: &response::Parts, found: &SessionHeaders<'_>) -> bool {
    matches!((&found.end, &found.compacted_from), (UniqueHeader::None, UniqueHeader::None))
        && response.extensions.get::<SessionUpdate>().is_none_or(SessionUpdate::is_empty)
}

fn reason_of(value: &str) -> EndReason {
    value.trim().to_ascii_lowercase().parse().unwrap_or(EndReason::Unknown)
}

/// Whether an id in this response may start a session: a success, a redirect or an upgrade, and no gRPC error. A gRPC
/// error has status 200 and a `grpc-status` other than 0.
fn may_start(response: &response::Parts) -> bool {
    let status = response.status;
    (status == StatusCode::SWITCHING_PROTOCOLS || status.is_success() || status.is_redirection())
        // Few responses have a `grpc-status`; comparing all names is faster than hashing one.
        && (response.headers.keys().all(|name| *name != GRPC_STATUS)
            || response.headers.get(GRPC_STATUS).is_none_or(|status| status == "0"))
}

impl SessionProtocol for HeaderProtocol {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        let id = self.id_at(&request.headers, self.index_of_id(&request.headers)?)?;
        SessionId::from_bytes(id, self.max_id_len).ok()
    }

    fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate {
        if !(self.adopt || self.has_session_headers(&response.headers))
            || request.tracked().is_some_and(|id| self.sole_id(&response.headers) == Some(id.as_bytes()))
        {
            return SessionUpdate::empty();
        }
        self.update(Some(request), request.tracked(), response)
    }
}
