//! [`SessionUpdate`]: one vocabulary for protocols and handlers.

use http::Response;

use crate::session::{EndReason, Session, SessionId};

/// What a response says about sessions: started, ended, compacted, any number of them, in order.
///
/// A protocol returns one; a handler puts one into its response, and the layer takes it out again: it is never sent. It
/// counts on any status. Where headers say the same, nothing happens twice.
///
/// # Examples
///
/// ```
/// use tower_session_end::{EndReason, Session, SessionId, SessionUpdate};
///
/// // A reset: the old one ends, a new one starts.
/// let old = SessionId::new("old")?;
/// let signal = SessionUpdate::ended(old, EndReason::Reset).and(SessionUpdate::started("new"));
///
/// // For an axum handler it is a response, or a part of one; for others:
/// let mut response = http::Response::new("reset");
/// signal.insert_into(&mut response);
/// # Ok::<(), tower_session_end::InvalidSessionId>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a signal does nothing until it is part of a response"]
pub struct SessionUpdate {
    pub(crate) changes: Vec<SessionChange>,
}

#[derive(Clone, Debug)]
pub(crate) enum SessionChange {
    Started(Session),
    Ended(SessionId, EndReason),
    Compacted(SessionId, Session),
}

impl SessionUpdate {
    /// Nothing is said.
    pub const fn empty() -> Self {
        Self { changes: Vec::new() }
    }

    /// A session started.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let signal = SessionUpdate::started(Session::from("4711").with_key("chat"));
    /// assert!(!update.is_empty());
    /// ```
    pub fn started(session: impl Into<Session>) -> Self {
        Self { changes: vec![SessionChange::Started(session.into())] }
    }

    /// A session ended.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let id = SessionId::new("4711")?;
    /// let signal = SessionUpdate::ended(id, EndReason::Deleted);
    /// # Ok::<(), InvalidSessionId>(())
    /// ```
    pub fn ended(id: SessionId, reason: EndReason) -> Self {
        Self { changes: vec![SessionChange::Ended(id, reason)] }
    }

    /// `old` was compacted into `session`.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let old = SessionId::new("4711")?;
    /// let signal = SessionUpdate::compacted(old, "4712");
    /// # Ok::<(), InvalidSessionId>(())
    /// ```
    pub fn compacted(old: SessionId, session: impl Into<Session>) -> Self {
        Self { changes: vec![SessionChange::Compacted(old, session.into())] }
    }

    /// Both, this one first.
    pub fn and(mut self, other: Self) -> Self {
        self.changes.extend(other.changes);
        self
    }

    /// Whether nothing is said.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// assert!(SessionUpdate::empty().is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Puts the signal into a response, behind one that is there already.
    pub fn insert_into<B>(self, response: &mut Response<B>) {
        self.insert_into_extensions(response.extensions_mut());
    }

    pub(crate) fn insert_into_extensions(self, extensions: &mut http::Extensions) {
        let before = extensions.remove::<Self>().unwrap_or_default();
        extensions.insert(before.and(self));
    }
}
