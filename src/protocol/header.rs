//! [`HeaderProtocol`]: ids and ends in headers.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, request, response};

use super::{RequestInfo, SessionProtocol, SessionSignal, adopted, value::Value};
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
    /// [`SessionSignal`], which says more.
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

    fn sayings(
        &self,
        carried: Option<&SessionId>,
        is_tracked: bool,
        response: &response::Parts,
        said: &Said<'_>,
    ) -> SessionSignal {
        let session = said.id.session(self.max_id_len);
        let mut signal = SessionSignal::nothing();
        if let Value::One(reason) = said.end {
            let ended = carried.or(session.as_ref().map(|session| &session.id));
            if let Some(id) = ended.filter(|id| id.is_valid()) {
                let reason = reason.to_str().map_or(EndReason::Unknown, reason_of);
                signal = SessionSignal::ended(id.clone(), reason);
                if session.as_ref().is_some_and(|session| session.id == *id) {
                    return signal;
                }
            }
        }
        let Some(session) = session.filter(|_| may_open(response)) else { return signal };
        match said.compacted_from.session(self.max_id_len) {
            Some(old) if old.id.is_valid() => signal.and(SessionSignal::compacted(old.id, session)),
            // Counted, like any id that is none; the successor is a session all the same.
            Some(invalid) => signal.and(SessionSignal::started(invalid)).and(SessionSignal::started(session)),
            None if is_tracked && carried == Some(&session.id) => signal,
            None => signal.and(SessionSignal::started(session)),
        }
    }
}

fn reason_of(word: &str) -> EndReason {
    word.trim().to_ascii_lowercase().parse().unwrap_or(EndReason::Unknown)
}

/// A redirect or an upgrade may carry a new id, an error never does. A gRPC error has status 200, and says what it is in
/// a header of its own; where the call succeeded, or goes on, that is 0 or absent.
fn may_open(response: &response::Parts) -> bool {
    let status = response.status;
    (status == StatusCode::SWITCHING_PROTOCOLS || status.is_success() || status.is_redirection())
        // Hardly any response has one: the names are looked at more quickly than one is looked up.
        && (response.headers.keys().all(|name| *name != GRPC_STATUS)
            || response.headers.get(GRPC_STATUS).is_none_or(|status| status == "0"))
}

/// Our headers of one response.
#[derive(Default)]
struct Said<'a> {
    id: Value<'a>,
    end: Value<'a>,
    compacted_from: Value<'a>,
}

impl<'a> Said<'a> {
    fn read(protocol: &HeaderProtocol, headers: &'a HeaderMap) -> Self {
        let mut said = Self::default();
        if protocol.has_default_names {
            said.read_all(protocol, headers, |name| *name == ID || *name == END || *name == COMPACTED_FROM);
        } else {
            said.read_all(protocol, headers, |_| true);
        }
        said
    }

    #[inline(always)]
    fn read_all(
        &mut self,
        protocol: &HeaderProtocol,
        headers: &'a HeaderMap,
        may_be_ours: impl Fn(&HeaderName) -> bool,
    ) {
        for (name, value) in headers {
            if may_be_ours(name) {
                self.see(protocol, name, value);
            }
        }
    }

    #[inline(never)]
    fn see(&mut self, protocol: &HeaderProtocol, name: &HeaderName, value: &'a HeaderValue) {
        if *name == protocol.id {
            self.id.see(value);
        } else if *name == protocol.end {
            self.end.see(value);
        } else if *name == protocol.compacted_from {
            self.compacted_from.see(value);
        }
    }
}

/// As `headers.keys().position(is_ours)`. Most names are looked at by one comparison, so the steps from one to the next are
/// what costs: here one for four of them.
#[inline(always)]
fn place_of(headers: &HeaderMap, is_ours: impl Fn(&HeaderName) -> bool) -> Option<usize> {
    let end = headers.keys_len();
    let Some(last) = end.checked_sub(4) else { return headers.keys().position(is_ours) };
    let is_ours_at = |place| headers.keys().nth(place).is_some_and(&is_ours);
    let mut place = 0;
    while place <= last {
        if is_ours_at(place) {
            return Some(place);
        }
        if is_ours_at(place + 1) {
            return Some(place + 1);
        }
        if is_ours_at(place + 2) {
            return Some(place + 2);
        }
        if is_ours_at(place + 3) {
            return Some(place + 3);
        }
        place += 4;
    }
    if place < end && is_ours_at(place) {
        return Some(place);
    }
    if place + 1 < end && is_ours_at(place + 1) {
        return Some(place + 1);
    }
    (place + 2 < end && is_ours_at(place + 2)).then_some(place + 2)
}

/// The value in this place, if no header comes twice: then there are as many values as names, and in the same order.
fn value_at(headers: &HeaderMap, place: usize) -> Option<&HeaderValue> {
    if headers.len() > headers.keys_len() {
        return None;
    }
    let mut values = headers.values();
    for _ in 0..place {
        values.next();
    }
    values.next()
}

impl HeaderProtocol {
    /// Where the id is in a request. Quick, because the names of a head lie side by side in memory, and most requests carry
    /// none.
    #[inline(always)]
    pub(crate) fn place_of_id(&self, headers: &HeaderMap) -> Option<usize> {
        match self.has_default_names {
            true => place_of(headers, |name| *name == ID),
            false => place_of(headers, |name| *name == self.id),
        }
    }

    /// Likewise whether a response may say anything.
    #[inline(always)]
    pub(crate) fn may_say(&self, headers: &HeaderMap) -> bool {
        match self.has_default_names {
            true => headers.keys().any(|name| *name == ID || *name == END || *name == COMPACTED_FROM),
            false => headers.keys().any(|name| *name == self.id || *name == self.end || *name == self.compacted_from),
        }
    }

    /// What stands in the id's header in this place, if that is of a legal length; whether it is an id is yet to be seen.
    pub(crate) fn id_at<'a>(&self, headers: &'a HeaderMap, place: usize) -> Option<&'a [u8]> {
        let value = value_at(headers, place).or_else(|| Value::of(headers, &self.id).one())?;
        Some(value.as_bytes()).filter(|id| (1..=self.max_id_len).contains(&id.len()))
    }

    /// Whether a response may say something by its silence.
    #[inline]
    pub(crate) const fn adopts(&self) -> bool {
        self.adopt
    }

    /// What a response says to a request that carried an id: the active one `tracked`, or that which `request` names.
    pub(crate) fn said(
        &self,
        request: Option<&RequestInfo>,
        tracked: Option<&SessionId>,
        response: &mut response::Parts,
    ) -> SessionSignal {
        let said = Said::read(self, &response.headers);
        if let Said { id: Value::None, end: Value::None, compacted_from: Value::None } = said {
            return match request {
                Some(request) if self.adopt && may_open(response) => adopted(request, response),
                Some(_) | None => SessionSignal::nothing(),
            };
        }
        let carried = request.map_or(tracked, RequestInfo::id);
        let signal = self.sayings(carried, tracked.is_some(), response, &said);
        if self.strip && !matches!((said.end, said.compacted_from), (Value::None, Value::None)) {
            response.headers.remove(&self.end);
            response.headers.remove(&self.compacted_from);
        }
        signal
    }

    /// The id in a response that says nothing else, if it is quickly read: as nearly all are that say anything.
    pub(crate) fn only_id<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        let value = match self.has_default_names {
            true => only(headers, |name| *name == ID, |name| *name == END || *name == COMPACTED_FROM),
            false => only(headers, |name| *name == self.id, |name| *name == self.end || *name == self.compacted_from),
        };
        value.map(HeaderValue::as_bytes)
    }

    /// The session that begins in a response with this [`only_id`](Self::only_id), if it is an id.
    pub(crate) fn begun(&self, id: &[u8], response: &response::Parts) -> Option<SessionId> {
        if may_open(response) { SessionId::from_bytes(id, self.max_id_len).ok() } else { None }
    }
}

/// The value of the header that is ours, if none is there that is not wanted, and none comes twice.
#[inline(always)]
fn only(
    headers: &HeaderMap,
    is_ours: impl Fn(&HeaderName) -> bool,
    is_unwanted: impl Fn(&HeaderName) -> bool,
) -> Option<&HeaderValue> {
    let mut place = None;
    for (number, name) in headers.keys().enumerate() {
        if is_ours(name) {
            place = Some(number);
        } else if is_unwanted(name) {
            return None;
        }
    }
    value_at(headers, place?)
}

impl SessionProtocol for HeaderProtocol {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        let id = self.id_at(&request.headers, self.place_of_id(&request.headers)?)?;
        SessionId::from_bytes(id, self.max_id_len).ok()
    }

    fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionSignal {
        if !(self.adopt || self.may_say(&response.headers))
            || request.tracked().is_some_and(|id| self.only_id(&response.headers) == Some(id.as_bytes()))
        {
            return SessionSignal::nothing();
        }
        self.said(Some(request), request.tracked(), response)
    }
}
