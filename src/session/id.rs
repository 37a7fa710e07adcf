//! [`SessionId`]: short ids inline, checked once, never whole in a log.

use std::{
    borrow::Borrow,
    convert::Infallible,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Ids up to this many bytes need no allocation; a UUID in text has 36, more than `compact_str` keeps inline (24). An entry with an
/// inline id takes 131 bytes, with an `Arc<str>` 163.
const INLINE: usize = 38;

/// The longest id that [`SessionId::new`] takes, in bytes.
const DEFAULT_MAX_LEN: usize = 1024;

/// The id that a host gave to a session. An invalid id cannot exist.
///
/// An id is 1 to 1024 bytes of visible ASCII (`0x21` to `0x7E`: no spaces, no control characters).
/// [`with_max_len`](Self::with_max_len) takes longer ones. Up to 38 bytes are stored inline, longer ids are shared, so a clone
/// copies no text.
///
/// Ids are often credentials (a cookie, an MCP session id), so `Debug` and [`redacted`](Self::redacted) show a short
/// prefix only. `Display`, [`as_str`](Self::as_str) and the JSON form show all of it.
///
/// # Examples
///
/// ```
/// use tower_session_end::SessionId;
///
/// let id = SessionId::new("0b6e2f0c-3a5e-4c0e-9d4e-5d1e6c1f8a77")?;
/// assert_eq!(id.as_str().len(), 36);
/// assert_eq!(format!("{id:?}"), "SessionId(0b6e2f0c…)");
/// assert!(SessionId::new("").is_err());
/// assert!(SessionId::new("two words").is_err());
/// # Ok::<(), tower_session_end::InvalidSessionId>(())
/// ```
#[derive(Clone)]
pub struct SessionId(Repr);

#[derive(Clone)]
enum Repr {
    Inline { len: u8, bytes: [u8; INLINE] },
    Shared(Arc<str>),
}

impl SessionId {
    /// Checks `id` and copies it.
    ///
    /// # Errors
    ///
    /// [`InvalidSessionId`] if `id` is empty, longer than 1024 bytes, or holds anything but visible ASCII.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// assert_eq!(SessionId::new("4711")?.as_str(), "4711");
    /// assert_eq!(SessionId::new(""), Err(InvalidSessionId::Empty));
    /// # Ok::<(), InvalidSessionId>(())
    /// ```
    pub fn new(id: impl AsRef<str>) -> Result<Self, InvalidSessionId> {
        Self::with_max_len(id, DEFAULT_MAX_LEN)
    }

    /// As [`new`](Self::new), with a limit of the caller's own in bytes instead of 1024.
    ///
    /// # Errors
    ///
    /// [`InvalidSessionId`] if `id` is empty, longer than `max_len` bytes, or holds anything but visible ASCII.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let long = "x".repeat(4000);
    /// assert!(SessionId::new(&long).is_err());
    /// assert!(SessionId::with_max_len(&long, 4096).is_ok());
    /// ```
    pub fn with_max_len(id: impl AsRef<str>, max_len: usize) -> Result<Self, InvalidSessionId> {
        Self::from_bytes(id.as_ref().as_bytes(), max_len)
    }

    /// As [`with_max_len`](Self::with_max_len), for bytes as they come in a header.
    ///
    /// # Errors
    ///
    /// [`InvalidSessionId`] if `id` is empty, longer than `max_len` bytes, or holds anything but visible ASCII.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// assert!(SessionId::from_bytes(b"4711", 1024).is_ok());
    /// assert!(SessionId::from_bytes(b"47\xff11", 1024).is_err());
    /// ```
    pub fn from_bytes(id: &[u8], max_len: usize) -> Result<Self, InvalidSessionId> {
        if id.is_empty() {
            return Err(InvalidSessionId::Empty);
        }
        if id.len() > max_len {
            return Err(InvalidSessionId::TooLong { len: id.len(), max_len });
        }
        // Without an early exit, so that it is vectorised; the position is needed for the error alone.
        if !id.iter().fold(true, |all, b| all & b.is_ascii_graphic()) {
            let position = id.iter().position(|b| !b.is_ascii_graphic()).unwrap_or_default();
            return Err(InvalidSessionId::NotVisibleAscii { position });
        }
        if id.len() <= INLINE {
            let mut bytes = [0; INLINE];
            bytes[..id.len()].copy_from_slice(id);
            return Ok(Self(Repr::Inline { len: id.len() as u8, bytes }));
        }
        // Visible ASCII is UTF-8, so nothing is replaced here.
        Ok(Self(Repr::Shared(String::from_utf8_lossy(id).into())))
    }

    /// The whole id. It may be a credential: use [`redacted`](Self::redacted) in logs.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            // Checked to be ASCII when it was made.
            Repr::Inline { len, bytes } => std::str::from_utf8(&bytes[..usize::from(*len)]).unwrap_or_default(),
            Repr::Shared(id) => id,
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Shared(id) => id.as_bytes(),
        }
    }

    /// The form for logs: a prefix of at most 8 characters and at most a third of the id, then `…`.
    ///
    /// ```
    /// # use tower_session_end::SessionId;
    /// let id = SessionId::new("a-cookie-that-logs-you-in")?;
    /// assert_eq!(id.redacted().to_string(), "a-cookie…");
    /// # Ok::<(), tower_session_end::InvalidSessionId>(())
    /// ```
    #[must_use]
    pub fn redacted(&self) -> impl fmt::Display + '_ {
        Redacted(self)
    }
}

struct Redacted<'a>(&'a SessionId);

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0.as_str();
        let shown = (id.len() / 3).min(8);
        write!(f, "{}…", &id[..shown])
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({})", self.redacted())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl PartialEq for SessionId {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for SessionId {}

impl PartialEq<str> for SessionId {
    fn eq(&self, other: &str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl PartialEq<&str> for SessionId {
    fn eq(&self, other: &&str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl PartialOrd for SessionId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SessionId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

// Hashes as `str`, so that a map keyed by ids can be queried with a `&str`.
impl Hash for SessionId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Borrow<str> for SessionId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for SessionId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl FromStr for SessionId {
    type Err = InvalidSessionId;

    fn from_str(id: &str) -> Result<Self, Self::Err> {
        Self::new(id)
    }
}

impl TryFrom<&str> for SessionId {
    type Error = InvalidSessionId;

    fn try_from(id: &str) -> Result<Self, Self::Error> {
        Self::new(id)
    }
}

impl TryFrom<&String> for SessionId {
    type Error = InvalidSessionId;

    fn try_from(id: &String) -> Result<Self, Self::Error> {
        Self::new(id)
    }
}

/// Ids are cheap to clone.
impl From<&Self> for SessionId {
    fn from(id: &Self) -> Self {
        id.clone()
    }
}

impl TryFrom<String> for SessionId {
    type Error = InvalidSessionId;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        Self::new(id)
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = String::deserialize(deserializer)?;
        // A record may hold an id that was noted under a longer limit than the default.
        Self::with_max_len(id, usize::MAX).map_err(serde::de::Error::custom)
    }
}

/// Why a text is not a [`SessionId`].
///
/// The text itself is not repeated: it may be a credential, or bytes meant to disturb a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidSessionId {
    /// It is empty.
    Empty,
    /// It is longer than the limit.
    #[non_exhaustive]
    TooLong {
        /// The length that was found, in bytes.
        len: usize,
        /// The limit that was in force, in bytes.
        max_len: usize,
    },
    /// A head names two different ids where one is expected.
    Ambiguous,
    /// It holds a byte outside `0x21..=0x7E`.
    #[non_exhaustive]
    NotVisibleAscii {
        /// Where the first such byte stands, counted from 0.
        position: usize,
    },
}

impl fmt::Display for InvalidSessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a session id needs at least one byte"),
            Self::TooLong { len, max_len } => write!(f, "a session id of {len} bytes is over the limit of {max_len}"),
            Self::Ambiguous => f.write_str("two different session ids stand where one is expected"),
            Self::NotVisibleAscii { position } => {
                write!(f, "a session id is visible ASCII only, and byte {position} is not")
            }
        }
    }
}

impl std::error::Error for InvalidSessionId {}

/// What is a [`SessionId`] already converts without an error.
impl From<Infallible> for InvalidSessionId {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
