//! [`RegistryError`].

use std::fmt;

use crate::error::BoxError;

/// The error of a [`Registry`](super::Registry).
#[derive(Debug)]
#[non_exhaustive]
pub enum RegistryError {
    /// It could not be reached, was too slow, or refused to write. A later call may succeed.
    Unavailable(BoxError),
    /// This holder had lost its lease, and other holders have ended its sessions. It has a new lease by now. The sessions that are
    /// still active here have to be held again, as new generations.
    Fenced,
    /// The store has lost its records, or an unknown part of them. The sessions of this holder have to be held again, as the
    /// generations that they are, before another answer is relied on.
    DataLost,
    /// The store cannot be used, and waiting does not help: it is damaged, of another version, or of another kind. The text says
    /// which, and where.
    Invalid(BoxError),
}

impl RegistryError {
    /// [`Unavailable`](Self::Unavailable), for this reason.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        Self::Unavailable(error.into())
    }

    /// [`Invalid`](Self::Invalid), for this reason.
    pub fn invalid(error: impl Into<BoxError>) -> Self {
        Self::Invalid(error.into())
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(error) => write!(f, "the session registry is not available: {error}"),
            Self::Fenced => f.write_str("the lease in the session registry was over, and its sessions were taken over"),
            Self::DataLost => f.write_str("the session registry has lost its records"),
            Self::Invalid(error) => write!(f, "the session registry cannot be used: {error}"),
        }
    }
}

impl std::error::Error for RegistryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Its text is a part of this error's text already.
            Self::Unavailable(error) | Self::Invalid(error) => error.source(),
            Self::Fenced | Self::DataLost => None,
        }
    }
}
