//! [`GenerationId`] and [`IdempotencyKey`].

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// The identity of one generation: one life of a session, from the note that starts it to its one end.
///
/// It is known from the start, and a redelivery does not change it. A session that is noted again after its end is another
/// generation.
///
/// It is **the same on the start and on the end**. A consumer that deduplicates by it alone would drop every end: use
/// [`SessionStart::idempotency_key`](crate::SessionStart::idempotency_key) and
/// [`SessionEnd::idempotency_key`](crate::SessionEnd::idempotency_key).
///
/// ```
/// use tower_session_end::{EndReason, Session, SessionEnd};
///
/// let end = SessionEnd::new(Session::try_from("abc")?, EndReason::Deleted);
/// let text = end.generation.to_string(); // 32 hex digits (the process), a dash, a number
/// assert_eq!(text.split_once('-').unwrap().0.len(), 32);
/// assert_eq!(text.parse(), Ok(end.generation));
/// # Ok::<(), tower_session_end::InvalidSessionId>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GenerationId {
    instance: u128,
    generation: u64,
}

impl GenerationId {
    pub(crate) const fn new(instance: u128, generation: u64) -> Self {
        Self { instance, generation }
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}-{}", self.instance, self.generation)
    }
}

impl fmt::Debug for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GenerationId({self})")
    }
}

impl FromStr for GenerationId {
    type Err = InvalidGenerationId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (instance, generation) = text.split_once('-')?;
            Some(Self::new(u128::from_str_radix(instance, 16).ok()?, generation.parse().ok()?))
        };
        // There is one way to write it, so that texts can be compared too.
        parse().filter(|id| id.to_string() == text).ok_or(InvalidGenerationId(()))
    }
}

/// A text is not a [`GenerationId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidGenerationId(());

impl fmt::Display for InvalidGenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a generation id is 32 lower-case hexadecimal digits, a dash, and a number")
    }
}

impl std::error::Error for InvalidGenerationId {}

impl Serialize for GenerationId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The key by which a consumer recognises a repeated event; from
/// [`SessionStart::idempotency_key`](crate::SessionStart::idempotency_key) and
/// [`SessionEnd::idempotency_key`](crate::SessionEnd::idempotency_key).
///
/// It differs between the start and the end of one generation, and stays the same when one of them is delivered again. As text it is
/// the [`GenerationId`], a dash, and `start` or `end`: visible ASCII, at most 59 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey {
    generation: GenerationId,
    event: &'static str,
}

impl IdempotencyKey {
    pub(super) const fn start(generation: GenerationId) -> Self {
        Self { generation, event: "start" }
    }

    pub(super) const fn end(generation: GenerationId) -> Self {
        Self { generation, event: "end" }
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.generation, self.event)
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdempotencyKey({self})")
    }
}

impl Serialize for IdempotencyKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
