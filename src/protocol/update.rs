//! [`SessionUpdate`]: the changes that protocols and handlers declare.

use http::Response;

use crate::session::{EndReason, InvalidSessionId, Session, SessionId};

/// What a response says about sessions: started, ended, compacted, any number of them, in order.
///
/// A protocol returns one. A handler puts one into its response; the layer takes it out, so it is never sent. It counts on any
/// status. A change that the response's headers repeat takes place once.
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
    Compacted(SessionId, Session),
    InvalidId,
}

impl SessionUpdate {
    /// No change.
    pub const fn empty() -> Self {
        Self { changes: Vec::new() }
    }

    /// A session started.
    ///
    /// An id that is not valid is ignored, counted in [`ignored_ids`](crate::ActiveSessions::ignored_ids), and the first one is
    /// logged; so too in [`ended`](Self::ended) and [`compacted`](Self::compacted).
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

    /// A session ended.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let update = SessionUpdate::ended("4711", EndReason::Deleted);
    /// # drop(update);
    /// ```
    pub fn ended(id: impl TryInto<SessionId, Error: Into<InvalidSessionId>>, reason: EndReason) -> Self {
        Self::one(id.try_into().map(|id| SessionChange::Ended(id, reason)))
    }

    /// `old` was compacted into `session`.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let update = SessionUpdate::compacted("4711", "4712");
    /// # drop(update);
    /// ```
    pub fn compacted(
        old: impl TryInto<SessionId, Error: Into<InvalidSessionId>>,
        session: impl TryInto<Session, Error: Into<InvalidSessionId>>,
    ) -> Self {
        match (old.try_into(), session.try_into()) {
            (Ok(old), Ok(session)) => Self { changes: vec![SessionChange::Compacted(old, session)] },
            // The successor is a session all the same.
            (Err(_), Ok(session)) => Self { changes: vec![SessionChange::InvalidId, SessionChange::Started(session)] },
            (_, Err(_)) => Self::invalid_id(),
        }
    }

    /// An id that is not valid, to be counted.
    pub(crate) fn invalid_id() -> Self {
        Self { changes: vec![SessionChange::InvalidId] }
    }

    fn one<E>(change: Result<SessionChange, E>) -> Self {
        Self { changes: vec![change.unwrap_or(SessionChange::InvalidId)] }
    }

    /// Both, this one first.
    pub fn and(mut self, other: Self) -> Self {
        self.changes.extend(other.changes);
        self
    }

    /// Whether it holds no change.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// assert!(SessionUpdate::empty().is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Puts the update into a response, behind one that is there already.
    pub fn insert_into<B>(self, response: &mut Response<B>) {
        self.insert_into_extensions(response.extensions_mut());
    }

    pub(crate) fn insert_into_extensions(self, extensions: &mut http::Extensions) {
        let before = extensions.remove::<Self>().unwrap_or_default();
        extensions.insert(before.and(self));
    }
}
