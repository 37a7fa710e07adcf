//! How heads are read: once, by the names of their headers, which lie side by side in memory.

use http::{HeaderMap, HeaderName, HeaderValue, response};

use super::{COMPACTED_FROM, END, HeaderProtocol, ID, may_start};
use crate::{
    protocol::{RequestInfo, SessionUpdate, adopted, header_value::UniqueHeader},
    session::SessionId,
};

/// Our headers of one response.
#[derive(Default)]
pub(super) struct SessionHeaders<'a> {
    pub(super) id: UniqueHeader<'a>,
    pub(super) end: UniqueHeader<'a>,
    pub(super) compacted_from: UniqueHeader<'a>,
}

impl<'a> SessionHeaders<'a> {
    fn read(protocol: &HeaderProtocol, headers: &'a HeaderMap) -> Self {
        let mut found = Self::default();
        if protocol.has_default_names {
            found.scan(protocol, headers, |name| *name == ID || *name == END || *name == COMPACTED_FROM);
        } else {
            found.scan(protocol, headers, |_| true);
        }
        found
    }

    #[inline(always)]
    fn scan(&mut self, protocol: &HeaderProtocol, headers: &'a HeaderMap, is_candidate: impl Fn(&HeaderName) -> bool) {
        for (name, value) in headers {
            if is_candidate(name) {
                self.add(protocol, name, value);
            }
        }
    }

    #[inline(never)]
    fn add(&mut self, protocol: &HeaderProtocol, name: &HeaderName, value: &'a HeaderValue) {
        if *name == protocol.id {
            self.id.add(value);
        } else if *name == protocol.end {
            self.end.add(value);
        } else if *name == protocol.compacted_from {
            self.compacted_from.add(value);
        }
    }
}

impl HeaderProtocol {
    /// Where the id is in a request. Quick, because the names of a head lie side by side in memory, and most requests carry
    /// none.
    #[inline(always)]
    pub(crate) fn index_of_id(&self, headers: &HeaderMap) -> Option<usize> {
        match self.has_default_names {
            true => find_name(headers, |name| *name == ID),
            false => find_name(headers, |name| *name == self.id),
        }
    }

    /// Likewise whether a response may say anything.
    #[inline(always)]
    pub(crate) fn has_session_headers(&self, headers: &HeaderMap) -> bool {
        match self.has_default_names {
            true => headers.keys().any(|name| *name == ID || *name == END || *name == COMPACTED_FROM),
            false => headers.keys().any(|name| *name == self.id || *name == self.end || *name == self.compacted_from),
        }
    }

    /// What stands in the id's header in this place, if that is of a legal length; whether it is an id is yet to be seen.
    pub(crate) fn id_at<'a>(&self, headers: &'a HeaderMap, index: usize) -> Option<&'a [u8]> {
        let value = self.value_at(headers, index)?;
        Some(value.as_bytes()).filter(|id| (1..=self.max_id_len).contains(&id.len()))
    }

    /// Whether a response may say something by its silence.
    #[inline]
    pub(crate) const fn adopts(&self) -> bool {
        self.adopt
    }

    /// What a response says to a request that carried an id: the active one `tracked`, or that which `request` names.
    pub(crate) fn update(
        &self,
        request: Option<&RequestInfo>,
        tracked: Option<&SessionId>,
        response: &mut response::Parts,
    ) -> SessionUpdate {
        let found = SessionHeaders::read(self, &response.headers);
        if let SessionHeaders { id: UniqueHeader::None, end: UniqueHeader::None, compacted_from: UniqueHeader::None } =
            found
        {
            return match request {
                Some(request) if self.adopt && may_start(response) => adopted(request, response),
                Some(_) | None => SessionUpdate::empty(),
            };
        }
        let carried = request.map_or(tracked, RequestInfo::id);
        let signal = self.changes(carried, tracked.is_some(), response, &found);
        if self.strip && !matches!((found.end, found.compacted_from), (UniqueHeader::None, UniqueHeader::None)) {
            response.headers.remove(&self.end);
            response.headers.remove(&self.compacted_from);
        }
        signal
    }

    /// The id in a response that says nothing else, if it is quickly read: as nearly all are that say anything.
    pub(crate) fn sole_id<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        let index = match self.has_default_names {
            true => find_unless(headers, |name| *name == ID, |name| *name == END || *name == COMPACTED_FROM),
            false => {
                find_unless(headers, |name| *name == self.id, |name| *name == self.end || *name == self.compacted_from)
            }
        };
        self.value_at(headers, index?).map(HeaderValue::as_bytes)
    }

    /// The value of the id's header, which is in this place, if it is one.
    fn value_at<'a>(&self, headers: &'a HeaderMap, index: usize) -> Option<&'a HeaderValue> {
        if headers.len() > headers.keys_len() {
            return UniqueHeader::of(headers, &self.id).one();
        }
        // No header comes twice: there are as many values as names, and in the same order.
        if index > STEPS { headers.get(&self.id) } else { headers.values().nth(index) }
    }

    /// The session that begins in a response with this [`sole_id`](Self::sole_id), if it is an id.
    pub(crate) fn starting_id(&self, id: &[u8], response: &response::Parts) -> Option<SessionId> {
        if may_start(response) { SessionId::from_bytes(id, self.max_id_len).ok() } else { None }
    }
}

/// As `headers.keys().position(matches)`. Most names are looked at by one comparison, so the steps from one to the next are
/// what costs: here one for four of them.
#[inline(always)]
fn find_name(headers: &HeaderMap, matches: impl Fn(&HeaderName) -> bool) -> Option<usize> {
    let end = headers.keys_len();
    let Some(last) = end.checked_sub(4) else { return headers.keys().position(matches) };
    let matches_at = |index| headers.keys().nth(index).is_some_and(&matches);
    let mut index = 0;
    while index <= last {
        if matches_at(index) {
            return Some(index);
        }
        if matches_at(index + 1) {
            return Some(index + 1);
        }
        if matches_at(index + 2) {
            return Some(index + 2);
        }
        if matches_at(index + 3) {
            return Some(index + 3);
        }
        index += 4;
    }
    if index < end && matches_at(index) {
        return Some(index);
    }
    if index + 1 < end && matches_at(index + 1) {
        return Some(index + 1);
    }
    (index + 2 < end && matches_at(index + 2)).then_some(index + 2)
}

/// A look-up by a name's hash costs about as much as so many steps from one value to the next.
const STEPS: usize = 8;

/// Where the header is that is ours, if none is there that is not wanted.
#[inline(always)]
fn find_unless(
    headers: &HeaderMap,
    matches: impl Fn(&HeaderName) -> bool,
    is_unwanted: impl Fn(&HeaderName) -> bool,
) -> Option<usize> {
    let mut index = None;
    for (number, name) in headers.keys().enumerate() {
        if matches(name) {
            index = Some(number);
        } else if is_unwanted(name) {
            return None;
        }
    }
    index
}
