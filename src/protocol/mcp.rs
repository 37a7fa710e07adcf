//! [`McpProtocol`]: the sessions of MCP's Streamable HTTP transport.

use http::{HeaderMap, HeaderName, Method, StatusCode, request, response};

use super::{RequestInfo, SessionProtocol, SessionUpdate, header_value::UniqueHeader};
use crate::session::{EndReason, SessionId};

static SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
static PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

/// The first revision without sessions. Revisions are dates.
const SESSIONLESS: &[u8] = b"2026-07-28";

/// The sessions of an MCP server with the Streamable HTTP transport, revisions 2025-03-26 to 2025-11-25.
///
/// | response | to a request with | meaning |
/// |---|---|---|
/// | 2xx with a new `mcp-session-id` | no id, or another one (`initialize`) | the session starts |
/// | 2xx | `DELETE` and an active id | it ended, [`Deleted`](EndReason::Deleted) |
/// | 404 or 410 | an active id | it is doubted: it ends, [`Unknown`](EndReason::Unknown), unless it shows a sign of life within [`doubt_timeout`](crate::ActiveSessionsBuilder::doubt_timeout) |
/// | 2xx without an id | an inactive id, not a `DELETE` | no change; with [`adopt`](Self::adopt) it starts |
///
/// A host may bind sessions to their owners, and answer another user's request with the 404 of an unknown id. So a
/// 404 ends no session at once, and cuts no stream. The next 2xx to a request with the id takes the doubt back. If the
/// doubt has ended the session by then, it starts anew, with or without an id in the response.
///
/// Nothing else is a change: not 400, 401, 403, 405 or 5xx, not a repeated id, and no response to `HEAD`, `OPTIONS` or
/// `TRACE`. A request with an unknown id never fires an event, a `DELETE` included.
///
/// The revision 2026-07-28 and later ones have no sessions. The id of a request whose `mcp-protocol-version` names
/// one of them is ignored, so that a 404 for an unknown method doubts nothing. A response that names one starts
/// nothing. If only the request names one and the host answers with a new id, the session starts.
///
/// The length of an id is not limited beyond HTTP's own limits. A header that comes twice with different values is
/// ambiguous, and ignored.
///
/// Put the layer around the MCP endpoint alone: a 404 of another route, to a client that sends its id there, would doubt
/// the session.
///
/// # Limits
///
/// * No response shows that a host has dropped an idle session by itself. The end is found when the client returns,
///   gets a 404 and leaves, by [`idle_timeout`](crate::ActiveSessionsBuilder::idle_timeout), or at the shutdown. A host that knows
///   should call [`end`](crate::ActiveSessions::end): `cargo run -p mcp-gateway` shows a session manager for rmcp that
///   does.
/// * Bodies are not read: a 200 with an id and a JSON-RPC error starts a session.
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
    /// The protocol above, without adoption.
    #[must_use]
    pub const fn new() -> Self {
        Self { adopt: false }
    }

    /// Whether a 2xx response without an id notes the session of the request's id; never for a `DELETE`. Default:
    /// `false`.
    ///
    /// For hosts that check every id and restore sessions of another replica, or of the time before a restart. It also
    /// notes a session again that [`idle_timeout`](crate::ActiveSessionsBuilder::idle_timeout) has ended, and that the
    /// host still serves.
    ///
    /// Leave it off for a host that answers 200 to any id: clients could start sessions with ids that they invent.
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

    /// The change of a 2xx response to any method but `DELETE`: a start, if there is one.
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

/// Whether a head names a revision without sessions. A version that is not a date counts as one with sessions.
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
        let Some(id) = request.tracked() else { return SessionUpdate::empty() };
        match response.status {
            // Of a `DELETE`: the others have started a session above.
            status if status.is_success() => SessionUpdate::ended(id, EndReason::Deleted),
            StatusCode::NOT_FOUND | StatusCode::GONE => SessionUpdate::doubted(id),
            _ => SessionUpdate::empty(),
        }
    }
}
