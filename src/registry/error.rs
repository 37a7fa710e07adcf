//! [`RegistryError`].

use std::fmt;

use crate::error::BoxError;

/// What went wrong in a [`Registry`](super::Registry).
#[derive(Debug)]
#[non_exhaustive]
pub enum RegistryError {
    /// It could not be reached, was too slow, or refused to write: it may work later.
    Unavailable(BoxError),
    /// This holder had lost its lease: others have taken over what it held, and have ended it. It has a new lease by now,
    /// and everything that is still active here is to be held anew, as new generations.
    Fenced,
    /// The store has forgotten everything, or an unknown part of it: what is held here is to be held again, as the
    /// generations that they are, before anything that it says is believed.
    DataLost,
    /// The store cannot be used, and waiting will not help: damaged, of a newer version, of another kind. The text says
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
            Self::Unavailable(error) | Self::Invalid(error) => Some(&**error),
            Self::Fenced | Self::DataLost => None,
        }
    }
}
