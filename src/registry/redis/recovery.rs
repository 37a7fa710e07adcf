//! How far this holder has read what the holders that it adopted have left.

use std::collections::HashMap;

/// The kinds of sets that an adopted holder leaves: what it held, then what it had claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Held,
    Claimed,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Claimed => "claimed",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Held, Self::Claimed].into_iter().find(|kind| kind.name() == name)
    }
}

/// The position in the sets of one adopted holder. Both are in the order of their texts, so a position is a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// All generations up to this one are read; none if it is empty.
    Before(Kind, String),
    End,
}

/// The positions in all adopted holders. A copy is changed during a call, and stored when its answer is complete: if the
/// caller drops the call, the next one reads the same again.
#[derive(Clone, Debug, Default)]
pub(super) struct Recovery {
    positions: HashMap<String, Position>,
}

impl Recovery {
    /// Forgets all holders but these. New ones are read from the beginning.
    pub(super) fn set_adopted(&mut self, adopted: Vec<String>) {
        let mut before = std::mem::take(&mut self.positions);
        let start = || Position::Before(Kind::Held, String::new());
        self.positions = adopted
            .into_iter()
            .map(|holder| {
                let position = before.remove(&holder).unwrap_or_else(start);
                (holder, position)
            })
            .collect();
    }

    /// An adopted holder that is not read to its end.
    pub(super) fn next(&self) -> Option<(String, Kind, String)> {
        self.positions.iter().find_map(|(holder, position)| match position {
            Position::Before(kind, after) => Some((holder.clone(), *kind, after.clone())),
            Position::End => None,
        })
    }

    /// Moves on after a page: to the last generation that was read, or past the set if that is empty.
    pub(super) fn advance(&mut self, holder: &str, kind: Kind, last: String) {
        let position = match kind {
            _ if !last.is_empty() => Position::Before(kind, last),
            Kind::Held => Position::Before(Kind::Claimed, String::new()),
            Kind::Claimed => Position::End,
        };
        self.positions.insert(holder.to_owned(), position);
    }

    /// Whether this generation in a set of this holder was read before.
    pub(super) fn has_read(&self, holder: &str, kind: &str, generation: &str) -> bool {
        match self.positions.get(holder) {
            None => false,
            Some(Position::End) => true,
            Some(Position::Before(at, after)) => match Kind::from_name(kind) {
                Some(kind) if kind == *at => generation <= after.as_str(),
                Some(kind) => kind == Kind::Held,
                None => false,
            },
        }
    }
}
