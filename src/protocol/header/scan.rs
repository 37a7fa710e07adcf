//! The scan of heads: one pass over the header names, which are contiguous in memory.

use http::{HeaderMap, HeaderName, HeaderValue, response};

use super::{COMPACTED_FROM, END, HeaderProtocol, ID, OnNewId, may_start};
use crate::{
    protocol::{RequestInfo, SessionUpdate, adopted, header_value::UniqueHeader},
    session::SessionId,
};

/// The session headers of one response.
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
    /// The index of the id's header in a request. On the hot path: most requests carry no id.
    #[inline(always)]
    pub(crate) fn index_of_id(&self, headers: &HeaderMap) -> Option<usize> {
        match self.has_default_names {
            true => find_name(headers, |name| *name == ID),
            false => find_name(headers, |name| *name == self.id),
        }
    }

    /// Whether a response has any of the three headers.
    #[inline(always)]
    pub(crate) fn has_session_headers(&self, headers: &HeaderMap) -> bool {
        match self.has_default_names {
            true => headers.keys().any(|name| *name == ID || *name == END || *name == COMPACTED_FROM),
            false => headers.keys().any(|name| *name == self.id || *name == self.end || *name == self.compacted_from),
        }
    }

    /// The value of the id's header at this index, if its length is valid. Its bytes are not checked yet.
    pub(crate) fn id_at<'a>(&self, headers: &'a HeaderMap, index: usize) -> Option<&'a [u8]> {
        let value = self.value_at(headers, index)?;
        Some(value.as_bytes()).filter(|id| (1..=self.max_id_len).contains(&id.len()))
    }

    /// Whether a response without session headers may start a session.
    #[inline]
    pub(crate) const fn adopts(&self) -> bool {
        self.adopt
    }

    /// What happens to the session of a request whose response starts another one.
    #[inline]
    pub(crate) const fn new_id_policy(&self) -> OnNewId {
        self.on_new_id
    }

    /// The changes that a response declares. The request carried the active id `tracked`, or the one of `request`.
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
        let update = self.changes(carried, tracked.is_some(), response, &found);
        if self.strip && !matches!((found.end, found.compacted_from), (UniqueHeader::None, UniqueHeader::None)) {
            response.headers.remove(&self.end);
            response.headers.remove(&self.compacted_from);
        }
        update
    }

    /// The id in a response that has no control header: the usual case of a response with a session.
    pub(crate) fn sole_id<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        let index = match self.has_default_names {
            true => find_unless(headers, |name| *name == ID, |name| *name == END || *name == COMPACTED_FROM),
            false => {
                find_unless(headers, |name| *name == self.id, |name| *name == self.end || *name == self.compacted_from)
            }
        };
        self.value_at(headers, index?).map(HeaderValue::as_bytes)
    }

    /// The value of the id's header, which is at this index; `None` if it is ambiguous.
    fn value_at<'a>(&self, headers: &'a HeaderMap, index: usize) -> Option<&'a HeaderValue> {
        if headers.len() > headers.keys_len() {
            return UniqueHeader::of(headers, &self.id).one();
        }
        // No header comes twice, so values and names have the same indices.
        if index > MAX_VALUE_STEPS { headers.get(&self.id) } else { headers.values().nth(index) }
    }

    /// The id of the session that a response with this [`sole_id`](Self::sole_id) starts, if it is valid.
    pub(crate) fn starting_id(&self, id: &[u8], response: &response::Parts) -> Option<SessionId> {
        if may_start(response) { SessionId::from_bytes(id, self.max_id_len).ok() } else { None }
    }
}

/// `headers.keys().position(matches)`, with one step of the iterator for four names: the steps cost more than the
/// comparisons.
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

/// Up to this index, stepping to a value is faster than hashing the name.
const MAX_VALUE_STEPS: usize = 8;

/// The index of the last name that matches; `None` if there is an unwanted name.
#[inline(always)]
fn find_unless(
    headers: &HeaderMap,
    matches: impl Fn(&HeaderName) -> bool,
    is_unwanted: impl Fn(&HeaderName) -> bool,
) -> Option<usize> {
    let mut index = None;
    for (position, name) in headers.keys().enumerate() {
        if matches(name) {
            index = Some(position);
        } else if is_unwanted(name) {
            return None;
        }
    }
    index
}
