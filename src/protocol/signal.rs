//! [`SessionSignal`]: one vocabulary for protocols and handlers.

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
/// use tower_session_end::{EndReason, Session, SessionId, SessionSignal};
///
/// // A reset: the old one ends, a new one starts.
/// let old = SessionId::new("old")?;
/// let signal = SessionSignal::ended(old, EndReason::Reset).and(SessionSignal::started("new"));
///
/// // For an axum handler it is a response, or a part of one; for others:
/// let mut response = http::Response::new("reset");
/// signal.attach(&mut response);
/// # Ok::<(), tower_session_end::InvalidSessionId>(())
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "a signal does nothing until it is part of a response"]
pub struct SessionSignal {
    pub(crate) sayings: Vec<Saying>,
}

#[derive(Clone, Debug)]
pub(crate) enum Saying {
    Started(Session),
    Ended(SessionId, EndReason),
    Compacted(SessionId, Session),
}

impl SessionSignal {
    /// Nothing is said.
    pub const fn nothing() -> Self {
        Self { sayings: Vec::new() }
    }

    /// A session started.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let signal = SessionSignal::started(Session::from("4711").with_key("chat"));
    /// assert!(!signal.is_nothing());
    /// ```
    pub fn started(session: impl Into<Session>) -> Self {
        Self { sayings: vec![Saying::Started(session.into())] }
    }

    /// A session ended.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let id = SessionId::new("4711")?;
    /// let signal = SessionSignal::ended(id, EndReason::Deleted);
    /// # Ok::<(), InvalidSessionId>(())
    /// ```
    pub fn ended(id: SessionId, reason: EndReason) -> Self {
        Self { sayings: vec![Saying::Ended(id, reason)] }
    }

    /// `old` was compacted into `session`.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let old = SessionId::new("4711")?;
    /// let signal = SessionSignal::compacted(old, "4712");
    /// # Ok::<(), InvalidSessionId>(())
    /// ```
    pub fn compacted(old: SessionId, session: impl Into<Session>) -> Self {
        Self { sayings: vec![Saying::Compacted(old, session.into())] }
    }

    /// Both, this one first.
    pub fn and(mut self, other: Self) -> Self {
        self.sayings.extend(other.sayings);
        self
    }

    /// Whether nothing is said.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// assert!(SessionSignal::nothing().is_nothing());
    /// ```
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.sayings.is_empty()
    }

    /// Puts the signal into a response, behind one that is there already.
    pub fn attach<B>(self, response: &mut Response<B>) {
        self.attach_to(response.extensions_mut());
    }

    pub(crate) fn attach_to(self, extensions: &mut http::Extensions) {
        let before = extensions.remove::<Self>().unwrap_or_default();
        extensions.insert(before.and(self));
    }
}
