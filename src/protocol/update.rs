//! [`SessionUpdate`]: the changes that protocols and handlers declare.

use http::Response;

use crate::session::{EndReason, InvalidSessionId, Session, SessionId};

/// The changes that a response declares: sessions started, ended, doubted, compacted; any number of them, in order.
///
/// A [`SessionProtocol`](crate::SessionProtocol) returns one. A handler inserts one into its response; the layer
/// takes it out, so it is never sent. It counts with any status. A change that the response's headers repeat is made
/// once.
///
/// # Examples
///
/// ```
/// use tower_session_end::{EndReason, SessionUpdate};
///
/// // A reset: the old session ends, a new one starts.
/// let update = SessionUpdate::ended("old", EndReason::Reset).and(SessionUpdate::started("new"));
///
/// // An axum handler returns it as a response, or as a part of one. Others insert it:
/// let mut response = http::Response::new("reset");
/// update.insert_into(&mut response);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "an update does nothing until it is part of a response"]
pub struct SessionUpdate {
    pub(crate) changes: Vec<SessionChange>,
}

#[derive(Clone, Debug)]
pub(crate) enum SessionChange {
    Started(Session),
    Ended(SessionId, EndReason),
    Doubted(SessionId),
    Compacted(SessionId, Session),
    InvalidId,
}

impl SessionUpdate {
    /// No change.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// assert!(SessionUpdate::empty().is_empty());
    /// ```
    pub const fn empty() -> Self {
        Self { changes: Vec::new() }
    }

    /// A session started. If it is active already, only its details are replaced.
    ///
    /// An id that is not valid is ignored. It is counted in [`ignored_ids`](crate::ActiveSessions::ignored_ids), and
    /// the first one is logged. The same holds for [`ended`](Self::ended) and [`compacted`](Self::compacted).
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let update = SessionUpdate::started("4711");
    /// let detailed = SessionUpdate::started(Session::try_from("4712")?.with_key("chat"));
    /// assert!(!update.is_empty() && !detailed.is_empty());
    /// # Ok::<(), InvalidSessionId>(())
    /// ```
    pub fn started(session: impl TryInto<Session, Error: Into<InvalidSessionId>>) -> Self {
        Self::one(session.try_into().map(SessionChange::Started))
    }

    /// A session ended. Nothing happens if it is not active.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let mut response = http::Response::new("deleted");
    /// SessionUpdate::ended("4711", EndReason::Deleted).insert_into(&mut response);
    /// ```
    pub fn ended(id: impl TryInto<SessionId, Error: Into<InvalidSessionId>>, reason: EndReason) -> Self {
        Self::one(id.try_into().map(|id| SessionChange::Ended(id, reason)))
    }

    /// The host has answered as if the session did not exist, which may be the refusal of another user's request: the
    /// session ends with [`EndReason::Unknown`] unless it shows a sign of life within
    /// [`doubt_timeout`](crate::ActiveSessionsBuilder::doubt_timeout). Nothing happens if it is not active.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let mut response = http::Response::new("no such session");
    /// SessionUpdate::doubted("4711").insert_into(&mut response);
    /// ```
    pub fn doubted(id: impl TryInto<SessionId, Error: Into<InvalidSessionId>>) -> Self {
        Self::one(id.try_into().map(SessionChange::Doubted))
    }

    /// `old` was compacted into `session`; see [`ActiveSessions::compact`](crate::ActiveSessions::compact).
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let mut response = http::Response::new("compacted");
    /// SessionUpdate::compacted("4711", "4712").insert_into(&mut response);
    /// ```
    pub fn compacted(
        old: impl TryInto<SessionId, Error: Into<InvalidSessionId>>,
        session: impl TryInto<Session, Error: Into<InvalidSessionId>>,
    ) -> Self {
        match (old.try_into(), session.try_into()) {
            (Ok(old), Ok(session)) => Self { changes: vec![SessionChange::Compacted(old, session)] },
            // The successor starts, although the old id is not valid.
            (Err(_), Ok(session)) => Self { changes: vec![SessionChange::InvalidId, SessionChange::Started(session)] },
            (_, Err(_)) => Self::invalid_id(),
        }
    }

    /// An invalid id, to be counted.
    pub(crate) fn invalid_id() -> Self {
        Self { changes: vec![SessionChange::InvalidId] }
    }

    fn one<E>(change: Result<SessionChange, E>) -> Self {
        Self { changes: vec![change.unwrap_or(SessionChange::InvalidId)] }
    }

    /// The changes of both, those of `self` first.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let update = SessionUpdate::ended("a", EndReason::Idle).and(SessionUpdate::ended("b", EndReason::Idle));
    /// assert!(!update.is_empty());
    /// ```
    pub fn and(mut self, other: Self) -> Self {
        self.changes.extend(other.changes);
        self
    }

    /// Whether there is no change in it.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// assert!(SessionUpdate::default().is_empty());
    /// assert!(!SessionUpdate::started("4711").is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Inserts the update into a response's extensions. An update that is there already keeps its changes, which come
    /// first.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let mut response = http::Response::new("ended");
    /// SessionUpdate::ended("4711", EndReason::Deleted).insert_into(&mut response);
    /// assert!(response.extensions().get::<SessionUpdate>().is_some());
    /// ```
    pub fn insert_into<B>(self, response: &mut Response<B>) {
        self.insert_into_extensions(response.extensions_mut());
    }

    pub(crate) fn insert_into_extensions(self, extensions: &mut http::Extensions) {
        let before = extensions.remove::<Self>().unwrap_or_default();
        extensions.insert(before.and(self));
    }
}
