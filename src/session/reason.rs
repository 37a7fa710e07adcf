//! [`EndReason`]: why a session ended.

use std::{convert::Infallible, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $wire:literal,)*) => {
        /// Why a session ended.
        ///
        /// On the wire (JSON, `x-session-end`) a reason is one lower-case word. Reading a word that is none of them
        /// gives [`Unknown`](Self::Unknown): a reason is never an error.
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
    /// A new session took its place.
    New = "new",
    /// The user or the host reset it.
    Reset = "reset",
    /// It was silent for longer than allowed.
    Idle = "idle",
    /// The host starts afresh each day.
    Daily = "daily",
    /// Its history was compacted into a successor.
    Compaction = "compaction",
    /// It was deleted.
    Deleted = "deleted",
    /// The process was told to stop.
    Shutdown = "shutdown",
    /// The process was told to stop and will be back.
    Restart = "restart",
    /// Nobody said why.
    Unknown = "unknown",
    /// Ended by this crate, because there were more sessions than the cap allows.
    Evicted = "evicted",
    /// Its process died without saying so.
    Lost = "lost",
}

impl EndReason {
    /// True if the process only let go of the session, and the conversation itself may resume: [`Shutdown`] and
    /// [`Restart`]. A consumer that archives or deletes on `session_end` wants to look at this first.
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

    /// The number that an atomic can hold.
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
