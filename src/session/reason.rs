//! [`EndReason`]: why a session ended.

use std::{convert::Infallible, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $wire:literal,)*) => {
        /// Why a session ended.
        ///
        /// On the wire (JSON, `x-session-end`) a reason is one lower-case word. Any other word is read as
        /// [`Unknown`](Self::Unknown), never as an error.
        ///
        /// # Examples
        ///
        /// ```
        /// use tower_session_end::EndReason;
        ///
        /// assert_eq!("compaction".parse(), Ok(EndReason::Compaction));
        /// assert_eq!("nonsense".parse(), Ok(EndReason::Unknown));
        /// assert_eq!(EndReason::Shutdown.to_string(), "shutdown");
        /// assert!(EndReason::Shutdown.may_resume() && !EndReason::Deleted.may_resume());
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum EndReason {
            $($(#[$doc])* $name,)*
        }

        impl EndReason {
            /// Every reason there is, in the order of their declaration.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word on the wire.
            ///
            /// ```
            /// # use tower_session_end::*;
            /// assert_eq!(EndReason::Idle.as_str(), "idle");
            /// ```
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $wire,)*
                }
            }

            fn from_wire(word: &str) -> Self {
                match word {
                    $($wire => Self::$name,)*
                    _ => Self::Unknown,
                }
            }
        }
    };
}

reasons! {
    /// A new session replaced it.
    New = "new",
    /// The user or the host reset it.
    Reset = "reset",
    /// It was idle for longer than allowed.
    Idle = "idle",
    /// The host starts a new session each day.
    Daily = "daily",
    /// Its history was compacted into a successor.
    Compaction = "compaction",
    /// It was deleted.
    Deleted = "deleted",
    /// The process shuts down.
    Shutdown = "shutdown",
    /// The process shuts down and is started again.
    Restart = "restart",
    /// No reason was given. Also the end of a session that was doubted, and showed no sign of life.
    Unknown = "unknown",
    /// There were more sessions than [`max_sessions`](crate::ActiveSessionsBuilder::max_sessions).
    Evicted = "evicted",
    /// It was older than [`max_lifetime`](crate::ActiveSessionsBuilder::max_lifetime).
    Expired = "expired",
    /// Its [parent](crate::Session::parent) ended.
    Parent = "parent",
    /// Its process died without ending it.
    Lost = "lost",
}

impl EndReason {
    /// Whether the conversation may resume: the process ended the session because of its own shutdown ([`Shutdown`] and
    /// [`Restart`]). A consumer that archives or deletes on `session_end` checks this first.
    ///
    /// [`Shutdown`]: Self::Shutdown
    /// [`Restart`]: Self::Restart
    ///
    /// ```
    /// # use tower_session_end::*;
    /// assert!(EndReason::Restart.may_resume());
    /// assert!(!EndReason::Reset.may_resume());
    /// ```
    #[must_use]
    pub const fn may_resume(self) -> bool {
        matches!(self, Self::Shutdown | Self::Restart)
    }

    /// For atomics.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_code(code: u8) -> Self {
        Self::ALL.get(usize::from(code)).copied().unwrap_or(Self::Unknown)
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for EndReason {
    type Err = Infallible;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Ok(Self::from_wire(word))
    }
}

impl Serialize for EndReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for EndReason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_wire(&String::deserialize(deserializer)?))
    }
}
