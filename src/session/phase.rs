//! [`Phase`]: how far a shutdown has come.

use serde::Serialize;

/// How far the shutdown of a handle has come. It only moves forward.
///
/// ```
/// use tower_session_end::{ActiveSessions, Phase};
///
/// let sessions = ActiveSessions::builder().build()?;
/// assert_eq!(sessions.phase(), Phase::Open);
/// assert!(Phase::Open < Phase::Closing);
/// # Ok::<(), tower_session_end::BuildError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Phase {
    /// No shutdown was requested.
    Open,
    /// A shutdown was requested. Sessions still start and go on, and readiness probes fail. From this phase on, HTTP/1
    /// responses carry `connection: close`; see
    /// [`close_connections`](crate::ActiveSessionsBuilder::close_connections).
    LameDuck,
    /// The drain runs, or the connection drain after it. A session that starts now ends at once.
    Closing,
    /// The shutdown is over. Requests are refused, and no session is noted.
    Closed,
}

impl Phase {
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    pub(crate) const fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Open,
            1 => Self::LameDuck,
            2 => Self::Closing,
            _ => Self::Closed,
        }
    }
}
