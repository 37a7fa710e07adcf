//! The value of a header that must have one value at most.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::session::{InvalidSessionId, SessionId};

/// Up to this many headers, comparing each name is cheaper than hashing one.
const LINEAR_SCAN_MAX: usize = 8;

/// The value of one header; ambiguous if it comes twice with different values.
#[derive(Clone, Copy, Default)]
pub(super) enum UniqueHeader<'a> {
    #[default]
    None,
    One(&'a HeaderValue),
    Ambiguous,
}

impl<'a> UniqueHeader<'a> {
    pub(super) fn of(headers: &'a HeaderMap, name: &HeaderName) -> Self {
        let mut found = Self::None;
        if headers.len() <= LINEAR_SCAN_MAX {
            headers.iter().filter(|(other, _)| *other == name).for_each(|(_, value)| found.add(value));
        } else {
            headers.get_all(name).iter().for_each(|value| found.add(value));
        }
        found
    }

    pub(super) fn add(&mut self, value: &'a HeaderValue) {
        *self = match *self {
            Self::None => Self::One(value),
            Self::One(before) if before == value => Self::One(before),
            Self::One(_) | Self::Ambiguous => Self::Ambiguous,
        };
    }

    pub(super) fn one(self) -> Option<&'a HeaderValue> {
        match self {
            Self::One(value) => Some(value),
            Self::None | Self::Ambiguous => None,
        }
    }

    /// The id that a request carries; `None` if it is not valid.
    pub(super) fn id(self, max_len: usize) -> Option<SessionId> {
        SessionId::from_bytes(self.one()?.as_bytes(), max_len).ok()
    }

    /// The id that a response names. `None` if there is no such header.
    pub(super) fn named_id(self, max_len: usize) -> Option<Result<SessionId, InvalidSessionId>> {
        match self {
            Self::None => None,
            Self::One(value) => Some(SessionId::from_bytes(value.as_bytes(), max_len)),
            Self::Ambiguous => Some(Err(InvalidSessionId::Ambiguous)),
        }
    }
}
