//! [`RegistryError`].

use std::fmt;

use crate::error::BoxError;

/// The error of a [`Registry`](super::Registry).
#[derive(Debug)]
#[non_exhaustive]
pub enum RegistryError {
    /// The store could not be reached, was too slow, or refused to write. A later call may succeed.
    Unavailable(BoxError),
    /// The call met a concurrent one (a deadlock, a serialization failure), and nothing was applied. The caller repeats it at
    /// once.
    Conflict,
    /// This holder lost its lease, and other holders have recovered its sessions. It already has a new lease. The
    /// caller must hold the sessions that are still active again, as new generations.
    Fenced,
    /// The store has lost some or all of its records. The caller must hold its active sessions again, with their
    /// present generations, before it relies on another answer.
    DataLost,
    /// The store cannot be used, and waiting does not help: it is damaged, of another version, or of another kind. The
    /// text names the store and the cause.
    Invalid(BoxError),
}

impl RegistryError {
    /// Creates an [`Unavailable`](Self::Unavailable) error with this cause.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        Self::Unavailable(error.into())
    }

    /// Creates an [`Invalid`](Self::Invalid) error with this cause.
    pub fn invalid(error: impl Into<BoxError>) -> Self {
        Self::Invalid(error.into())
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(error) => write!(f, "the session registry is not available: {error}"),
            Self::Conflict => f.write_str("the session registry had a conflict between two calls"),
            Self::Fenced => {
                f.write_str("the lease in the session registry expired, and other processes recovered its sessions")
            }
            Self::DataLost => f.write_str("the session registry has lost its records"),
            Self::Invalid(error) => write!(f, "the session registry cannot be used: {error}"),
        }
    }
}

impl std::error::Error for RegistryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // The display text already contains the text of the cause.
            Self::Unavailable(error) | Self::Invalid(error) => error.source(),
            Self::Conflict | Self::Fenced | Self::DataLost => None,
        }
    }
}
