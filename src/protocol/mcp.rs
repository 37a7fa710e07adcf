//! [`McpProtocol`]: the sessions of MCP's Streamable HTTP transport.

use http::{HeaderMap, HeaderName, Method, StatusCode, request, response};

use super::{RequestInfo, SessionProtocol, SessionUpdate, header_value::UniqueHeader};
use crate::session::{EndReason, SessionId};

static SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
static PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

/// The first revision without sessions. Revisions are dates.
const SESSIONLESS: &[u8] = b"2026-07-28";

/// The sessions of an MCP server that speaks Streamable HTTP, revisions 2025-03-26 to 2025-11-25.
///
/// | response | to a request with | meaning |
/// |---|---|---|
/// | 2xx with a new `mcp-session-id` | no id, or another (`initialize`) | a birth |
/// | 2xx or 404 | `DELETE` and the id of an active session | its end, [`Deleted`](EndReason::Deleted) |
/// | 404 | any other method and the id of an active session | its end, [`Unknown`](EndReason::Unknown): the host has lost it |
/// | 2xx without one | no `DELETE`, and an id that is not active | nothing, or with [`adopt`](Self::adopt) a birth |
///
/// Anything else says nothing: not 400, 405 or 5xx, not an id that merely comes back, and no answer to `HEAD`, `OPTIONS`
/// or `TRACE` ends or opens anything. What a client sends never makes an event for an id that is unknown, a `DELETE`
/// least of all.
///
/// The revision 2026-07-28 and later ones have no sessions. The id of a request whose `mcp-protocol-version` says so is
/// ignored, so that a 404 for an unknown method ends nothing; and a response that says so opens nothing. But a host that
/// answers with a new id has a session, whatever revision the client claimed.
///
/// An id may be as long as HTTP lets it be. One that comes twice with different values is ambiguous, and ignored.
///
/// Put the layer around the MCP endpoint alone. A 404 of another route, to a client that sends its id there, would be
/// taken for the end of its session.
///
/// # What no response tells
///
/// * A host that lets a session go by itself, because it was idle. It is found out when its client comes back and gets a
///   404; if that never happens, by [`idle_timeout`](crate::ActiveSessionsBuilder::idle_timeout) or the stop. A host that
///   can be asked to tell should call [`end`](crate::ActiveSessions::end): `cargo run -p mcp-gateway` shows it for rmcp,
///   by a session manager around its own.
/// * What is in a body: a host that hands out an id with 200 beside a JSON-RPC error has opened a session.
///
/// # Examples
///
/// ```
/// use tower_session_end::{ActiveSessions, McpProtocol};
///
/// # fn mcp() -> axum::routing::MethodRouter { axum::routing::post(async || {}) }
/// let sessions = ActiveSessions::builder().build()?;
/// let app: axum::Router = axum::Router::new().route_service(
///     "/mcp",
///     mcp().layer(sessions.layer_with(McpProtocol::new())), // rmcp's `StreamableHttpService`, say
/// );
/// # Ok::<(), tower_session_end::BuildError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct McpProtocol {
    adopt: bool,
}

impl McpProtocol {
    /// The protocol as above, without adoption.
    #[must_use]
    pub const fn new() -> Self {
        Self { adopt: false }
    }

    /// Whether a 2xx response without an id, to a request with an id that is not active, notes that id; never for a
    /// `DELETE`. Off by default.
    ///
    /// For hosts that check every id, and know some that this process has not seen opened: they restore sessions of
    /// before a restart, or those of another replica. So too where [`idle_timeout`](crate::ActiveSessionsBuilder::idle_timeout)
    /// ends a session that the host still has: it is noted again when it is used again.
    ///
    /// Leave it off for a host that answers 200 whatever the id: its clients could make sessions up.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, McpProtocol};
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let layer = sessions.layer_with(McpProtocol::new().adopt(true));
    /// ```
    #[must_use]
    pub const fn adopt(mut self, adopt: bool) -> Self {
        self.adopt = adopt;
        self
    }

    /// The session that starts by a 2xx response to any method but `DELETE`.
    fn started(&self, request: &RequestInfo, headers: &HeaderMap) -> SessionUpdate {
        if is_sessionless(headers) {
            return SessionUpdate::empty();
        }
        match UniqueHeader::of(headers, &SESSION_ID) {
            // A host may repeat the id in every response.
            UniqueHeader::One(id)
                if request.is_tracked && request.id.as_ref().is_some_and(|known| known.as_bytes() == id) =>
            {
                SessionUpdate::empty()
            }
            UniqueHeader::None if self.adopt && !request.is_tracked => {
                request.id.as_ref().map_or_else(SessionUpdate::empty, SessionUpdate::started)
            }
            header => match header.named_id(usize::MAX) {
                Some(Ok(id)) => SessionUpdate::started(id),
                Some(Err(_)) => SessionUpdate::invalid_id(),
                None => SessionUpdate::empty(),
            },
        }
    }
}

/// Whether a head is of a revision that has no sessions. What is no date is taken for a revision that has them.
fn is_sessionless(headers: &HeaderMap) -> bool {
    headers.get(&PROTOCOL_VERSION).map(|version| version.as_bytes()).is_some_and(|version| {
        let is_date = version.len() == SESSIONLESS.len() && version.iter().all(|b| b.is_ascii_digit() || *b == b'-');
        is_date && version >= SESSIONLESS
    })
}

impl SessionProtocol for McpProtocol {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        UniqueHeader::of(&request.headers, &SESSION_ID).id(usize::MAX).filter(|_| !is_sessionless(&request.headers))
    }

    /// A `POST` without an active session, which may be an `initialize`, unless its revision has no sessions.
    fn may_start(&self, request: &request::Parts, tracked: Option<&SessionId>) -> bool {
        tracked.is_none() && request.method == Method::POST && !is_sessionless(&request.headers)
    }

    fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate {
        let is_delete = request.method == Method::DELETE;
        if request.method.is_safe() && request.method != Method::GET {
            return SessionUpdate::empty();
        }
        if response.status.is_success() && !is_delete {
            return self.started(request, &response.headers);
        }
        let reason = if is_delete { EndReason::Deleted } else { EndReason::Unknown };
        let is_over = response.status.is_success() || response.status == StatusCode::NOT_FOUND;
        match &request.id {
            Some(id) if is_over && request.is_tracked => SessionUpdate::ended(id.clone(), reason),
            Some(_) | None => SessionUpdate::empty(),
        }
    }
}
