//! [`BuildError`].

use std::{fmt, time::Duration};

/// The error of [`ActiveSessionsBuilder::build`](crate::ActiveSessionsBuilder::build): a setting is not valid.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// The settle timeout is longer than the drain timeout, of which it is a part.
    #[non_exhaustive]
    SettleOverDrain {
        /// The [`settle_timeout`](crate::ActiveSessionsBuilder::settle_timeout).
        settle_timeout: Duration,
        /// The [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout).
        drain_timeout: Duration,
    },
    /// A setting is 0 that has to be at least 1, or longer than 0 s.
    #[non_exhaustive]
    ZeroValue {
        /// The name of the builder's method.
        setting: &'static str,
    },
    /// A media type is not `type/subtype`, without parameters and wildcards.
    #[non_exhaustive]
    InvalidMediaType {
        /// The name of the builder's method.
        setting: &'static str,
        /// The text that is no media type.
        media_type: String,
    },
    /// A setting is longer than its limit. `Duration::MAX` is no limit, where the setting allows it.
    #[non_exhaustive]
    TooLong {
        /// The name of the builder's method.
        setting: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The handle is built in a tokio runtime without a timer. Hooks have time limits, so none could run there. Build
    /// the runtime with [`enable_all`](tokio::runtime::Builder::enable_all) or
    /// [`enable_time`](tokio::runtime::Builder::enable_time), or build the handle outside of it.
    NoTimer,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SettleOverDrain { settle_timeout, drain_timeout } => write!(
                f,
                "`settle_timeout` ({settle_timeout:?}) is longer than `drain_timeout` ({drain_timeout:?}), of which it is \
                 a part"
            ),
            Self::TooLong { setting, limit } => {
                let days = limit.as_secs() / 86_400;
                write!(f, "`{setting}` is longer than its limit of {days} days; leave it out for no limit")
            }
            Self::NoTimer => f.write_str(
                "this tokio runtime has no timer, so no hook can run in it; build it with `enable_all` or `enable_time`",
            ),
            Self::InvalidMediaType { setting, media_type } => write!(
                f,
                "`{setting}` has {media_type:?}, which is no media type; it has to be `type/subtype`, without parameters \
                 and wildcards"
            ),
            Self::ZeroValue { setting } => write!(f, "`{setting}` is 0; it has to be greater"),
        }
    }
}

impl std::error::Error for BuildError {}
