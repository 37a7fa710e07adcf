//! The values of one header, as a protocol wants them: none, one, or too many to choose from.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::session::{Session, SessionId};

/// Up to so many headers, a look at each of their names is cheaper than a hash of ours.
const SHORT: usize = 8;

/// The values of one header.
#[derive(Clone, Copy, Default)]
pub(super) enum Value<'a> {
    #[default]
    None,
    One(&'a HeaderValue),
    Ambiguous,
}

impl<'a> Value<'a> {
    pub(super) fn of(headers: &'a HeaderMap, name: &HeaderName) -> Self {
        let mut seen = Self::None;
        if headers.len() <= SHORT {
            headers.iter().filter(|(other, _)| *other == name).for_each(|(_, value)| seen.see(value));
        } else {
            headers.get_all(name).iter().for_each(|value| seen.see(value));
        }
        seen
    }

    pub(super) fn see(&mut self, value: &'a HeaderValue) {
        *self = match *self {
            Self::None => Self::One(value),
            Self::One(before) if before == value => Self::One(before),
            Self::One(_) | Self::Ambiguous => Self::Ambiguous,
        };
    }

    /// The id that a request carries, if it is one.
    pub(super) fn id(self, max_len: usize) -> Option<SessionId> {
        match self {
            Self::One(value) => SessionId::from_bytes(value.as_bytes(), max_len).ok(),
            Self::None | Self::Ambiguous => None,
        }
    }

    /// The session that a response names. `None` for a header that is not there; an invalid one for what is no id: it is
    /// counted, and ignored.
    pub(super) fn session(self, max_len: usize) -> Option<Session> {
        match self {
            Self::None => None,
            Self::One(_) | Self::Ambiguous => Some(Session::new(self.id(max_len).unwrap_or(SessionId::invalid()))),
        }
    }
}
