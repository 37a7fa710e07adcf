//! [`HeaderProtocol`]: ids and ends in headers.

mod scan;

use http::{HeaderName, StatusCode, request, response};

use self::scan::SessionHeaders;
use super::{RequestInfo, SessionProtocol, SessionUpdate, header_value::UniqueHeader};
use crate::session::{EndReason, SessionId};

// As constants, and not only as fields, because the compiler then knows what there is to compare.
const ID: HeaderName = HeaderName::from_static("x-session-id");
const END: HeaderName = HeaderName::from_static("x-session-end");
const COMPACTED_FROM: HeaderName = HeaderName::from_static("x-session-compacted-from");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Sessions in headers, the default protocol.
///
/// | response header | meaning |
/// |---|---|
/// | `x-session-id: <id>` | the session of this exchange; a new id is a birth |
/// | `x-session-end: <reason>` | the request's session ended; without one, the response's |
/// | `x-session-compacted-from: <old id>` | beside `x-session-id`: that is the successor of the old id |
///
/// A request carries its id in `x-session-id`. The two control headers count in responses only; what a client sends in
/// them is ignored. Responses with status 101, 2xx or 3xx may open a session, 4xx and 5xx never do; an end counts with
/// any status. A header that comes twice with different values is ambiguous and ignored.
///
/// In gRPC these are metadata of the same names: those of the call, and the initial ones of the answer. An error that is
/// the whole answer is HTTP 200 with a `grpc-status` among the headers: one that is not 0 never opens, and an end in its
/// metadata counts. Trailing metadata are not read: a stream that fails after its head has opened what the head said.
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
    /// None of the names is another than the default one.
    has_default_names: bool,
    id: HeaderName,
    end: HeaderName,
    compacted_from: HeaderName,
    max_id_len: usize,
    strip: bool,
    adopt: bool,
}

impl Default for HeaderProtocol {
    fn default() -> Self {
        Self::new()
    }
}

impl HeaderProtocol {
    /// The protocol with the names above, ids of up to 1024 bytes, nothing stripped and nothing adopted.
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
    #[must_use]
    pub fn end_header(mut self, name: HeaderName) -> Self {
        self.end = name;
        self.has_default_names = false;
        self
    }

    /// Renames `x-session-compacted-from`.
    #[must_use]
    pub fn compacted_from_header(mut self, name: HeaderName) -> Self {
        self.compacted_from = name;
        self.has_default_names = false;
        self
    }

    /// The longest id that counts, in bytes; 1024 by default.
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

    /// Whether the two control headers are taken out of the response before it goes to the client. Off by default.
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

    /// Whether a success (101, 2xx or 3xx) that carries none of these headers notes the session whose id the request
    /// carried, if it is not active. Off by default.
    ///
    /// For hosts that go on with sessions made elsewhere, or before a restart, and answer without repeating the id. A
    /// `DELETE` notes nothing, because it may well be the end; nor does a response to which a handler has attached a
    /// [`SessionUpdate`], which says more.
    ///
    /// The host has to refuse ids that it does not know. If it answers 200 to anything, a client that makes up ids
    /// makes up sessions.
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
            // The old id is counted as invalid; the successor is a session all the same.
            Some(Err(_)) => update.and(SessionUpdate::invalid_id()).and(SessionUpdate::started(id)),
            None if is_tracked && carried == Some(&id) => update,
            None => update.and(SessionUpdate::started(id)),
        }
    }
}

fn reason_of(word: &str) -> EndReason {
    word.trim().to_ascii_lowercase().parse().unwrap_or(EndReason::Unknown)
}

/// A redirect or an upgrade may carry a new id, an error never does. A gRPC error has status 200, and says what it is in
/// a header of its own; where the call succeeded, or goes on, that is 0 or absent.
fn may_start(response: &response::Parts) -> bool {
    let status = response.status;
    (status == StatusCode::SWITCHING_PROTOCOLS || status.is_success() || status.is_redirection())
        // Hardly any response has one: the names are looked at more quickly than one is looked up.
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
