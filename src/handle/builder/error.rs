//! [`BuildError`].

use std::{fmt, time::Duration};

/// Why [`ActiveSessionsBuilder::build`](crate::ActiveSessionsBuilder::build) refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// The drain would be over before its first part.
    #[non_exhaustive]
    SettleOverDrain {
        /// The time for requests that are not over.
        settle_timeout: Duration,
        /// The time for the whole drain.
        drain_timeout: Duration,
    },
    /// A capacity, or a time of the same effect, of zero: nothing could ever happen.
    #[non_exhaustive]
    ZeroValue {
        /// The setting.
        setting: &'static str,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SettleOverDrain { settle_timeout, drain_timeout } => write!(
                f,
                "`settle_timeout` of {settle_timeout:?} is longer than the `drain_timeout` of {drain_timeout:?}, \
                 of which it is a part"
            ),
            Self::ZeroValue { setting } => write!(f, "`{setting}` of 0 would let nothing happen; it has to be more"),
        }
    }
}

impl std::error::Error for BuildError {}
