//! How heads are read: once, by the names of their headers, which lie side by side in memory.

use http::{HeaderMap, HeaderName, HeaderValue, response};

use super::{COMPACTED_FROM, END, HeaderProtocol, ID, may_start};
use crate::{
    protocol::{RequestInfo, SessionUpdate, adopted, value::Value},
    session::SessionId,
};

/// Our headers of one response.
#[derive(Default)]
pub(super) struct Said<'a> {
    pub(super) id: Value<'a>,
    pub(super) end: Value<'a>,
    pub(super) compacted_from: Value<'a>,
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
        let value = self.value_at(headers, place)?;
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
    ) -> SessionUpdate {
        let said = Said::read(self, &response.headers);
        if let Said { id: Value::None, end: Value::None, compacted_from: Value::None } = said {
            return match request {
                Some(request) if self.adopt && may_start(response) => adopted(request, response),
                Some(_) | None => SessionUpdate::empty(),
            };
        }
        let carried = request.map_or(tracked, RequestInfo::id);
        let signal = self.changes(carried, tracked.is_some(), response, &said);
        if self.strip && !matches!((said.end, said.compacted_from), (Value::None, Value::None)) {
            response.headers.remove(&self.end);
            response.headers.remove(&self.compacted_from);
        }
        signal
    }

    /// The id in a response that says nothing else, if it is quickly read: as nearly all are that say anything.
    pub(crate) fn only_id<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        let place = match self.has_default_names {
            true => only(headers, |name| *name == ID, |name| *name == END || *name == COMPACTED_FROM),
            false => only(headers, |name| *name == self.id, |name| *name == self.end || *name == self.compacted_from),
        };
        self.value_at(headers, place?).map(HeaderValue::as_bytes)
    }

    /// The value of the id's header, which is in this place, if it is one.
    fn value_at<'a>(&self, headers: &'a HeaderMap, place: usize) -> Option<&'a HeaderValue> {
        if headers.len() > headers.keys_len() {
            return Value::of(headers, &self.id).one();
        }
        // No header comes twice: there are as many values as names, and in the same order.
        if place > STEPS { headers.get(&self.id) } else { headers.values().nth(place) }
    }

    /// The session that begins in a response with this [`only_id`](Self::only_id), if it is an id.
    pub(crate) fn begun(&self, id: &[u8], response: &response::Parts) -> Option<SessionId> {
        if may_start(response) { SessionId::from_bytes(id, self.max_id_len).ok() } else { None }
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

/// A look-up by a name's hash costs about as much as so many steps from one value to the next.
const STEPS: usize = 8;

/// Where the header is that is ours, if none is there that is not wanted.
#[inline(always)]
fn only(
    headers: &HeaderMap,
    is_ours: impl Fn(&HeaderName) -> bool,
    is_unwanted: impl Fn(&HeaderName) -> bool,
) -> Option<usize> {
    let mut place = None;
    for (number, name) in headers.keys().enumerate() {
        if is_ours(name) {
            place = Some(number);
        } else if is_unwanted(name) {
            return None;
        }
    }
    place
}
