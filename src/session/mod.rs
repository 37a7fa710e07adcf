//! The vocabulary: ids, sessions, reasons, events, phases.

mod event;
mod generation;
mod id;
mod phase;
mod reason;

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

pub use self::{
    event::{SessionEnd, SessionStart},
    generation::{GenerationId, IdempotencyKey, InvalidGenerationId},
    id::{InvalidSessionId, SessionId},
    phase::Phase,
    reason::EndReason,
};

/// A session as its host describes it: the id and optional details.
///
/// The details are passed to the hooks unchanged; this crate reads none of them. A session is made from a [`SessionId`], or from
/// text by `TryFrom`: a session with an invalid id cannot exist.
///
/// # Examples
///
/// ```
/// use tower_session_end::Session;
///
/// let session = Session::try_from("4711")?
///     .with_key("agent:main:telegram:42")
///     .with_agent_id("main")
///     .with_attribute("tenant", "acme");
/// assert_eq!(session.attributes["tenant"], "acme");
/// # Ok::<(), tower_session_end::InvalidSessionId>(())
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Session {
    /// The session's id.
    #[serde(rename = "sessionId")]
    pub id: SessionId,
    /// The conversation that it belongs to: stays the same when a reset or a compaction gives the session a new id.
    #[serde(rename = "sessionKey", default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The agent that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// Where the host keeps its sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_path: Option<String>,
    /// The file that holds the transcript.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_file: Option<String>,
    /// The session that this one is a child of, as a subagent's session is of its agent's; see
    /// [`with_parent`](Self::with_parent).
    #[serde(rename = "parentSessionId", default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SessionId>,
    /// Details of the user's own, such as a tenant; a registry keeps them too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

impl Session {
    /// A session with its id alone.
    #[must_use]
    pub fn new(id: SessionId) -> Self {
        Self {
            id,
            key: None,
            agent_id: None,
            store_path: None,
            session_file: None,
            parent: None,
            attributes: BTreeMap::new(),
        }
    }

    /// Sets [`parent`](Self::parent): when the parent ends, this session ends after it, with reason
    /// [`Parent`](EndReason::Parent).
    ///
    /// The parent is set when the session starts, and a later note does not change it. Note the child while its parent
    /// is active, or before; a parent that has ended by then ends no child. A child may end alone. If the parent is
    /// compacted, its successor is the parent; if a child is compacted, its successor is a child. A parent that is
    /// forgotten, or kept by [`keep_if`](crate::ActiveSessionsBuilder::keep_if), ends no child, and a shutdown ends each
    /// session with its own reason. With a registry, the children of a process end with
    /// the parent's end there, or when the process lets go of it as its last holder; a child on another replica does not
    /// learn of it.
    ///
    /// An id that is not valid names no session, so there is no parent then.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason, Session};
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("agent");
    /// sessions.note(Session::try_from("subagent").unwrap().with_parent("agent"));
    /// sessions.end("agent", EndReason::Deleted);
    /// assert!(!sessions.contains("subagent"));
    /// ```
    #[must_use]
    pub fn with_parent(mut self, parent: impl TryInto<SessionId>) -> Self {
        self.parent = parent.try_into().ok();
        self
    }

    /// Sets [`key`](Self::key).
    ///
    /// ```
    /// # use tower_session_end::*;
    /// assert_eq!(Session::try_from("a").unwrap().with_key("telegram:42").key.as_deref(), Some("telegram:42"));
    /// ```
    #[must_use]
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets [`agent_id`](Self::agent_id).
    #[must_use]
    pub fn with_agent_id(mut self, agent_id: impl Into<String>) -> Self {
        self.agent_id = Some(agent_id.into());
        self
    }

    /// Sets [`store_path`](Self::store_path).
    #[must_use]
    pub fn with_store_path(mut self, store_path: impl Into<String>) -> Self {
        self.store_path = Some(store_path.into());
        self
    }

    /// Sets [`session_file`](Self::session_file).
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let session = Session::try_from("a").unwrap().with_session_file("a.jsonl");
    /// assert_eq!(session.session_file.as_deref(), Some("a.jsonl"));
    /// ```
    #[must_use]
    pub fn with_session_file(mut self, session_file: impl Into<String>) -> Self {
        self.session_file = Some(session_file.into());
        self
    }

    /// Adds one of the [`attributes`](Self::attributes), or replaces it.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// assert_eq!(Session::try_from("a").unwrap().with_attribute("tenant", "acme").attributes["tenant"], "acme");
    /// ```
    #[must_use]
    pub fn with_attribute(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(name.into(), value.into());
        self
    }

    /// The context that a plugin gets with each event: `agentId?`, `sessionId`, `sessionKey?` in JSON.
    ///
    /// ```
    /// # use tower_session_end::Session;
    /// let session = Session::try_from("4711").unwrap().with_agent_id("main");
    /// let context = serde_json::to_string(&session.context()).unwrap();
    /// assert_eq!(context, r#"{"agentId":"main","sessionId":"4711"}"#);
    /// ```
    #[must_use]
    pub fn context(&self) -> SessionContext<'_> {
        SessionContext { agent_id: self.agent_id.as_deref(), session_id: &self.id, session_key: self.key.as_deref() }
    }

    /// True if there are no details. The parent is none: it is not replaced by a later note.
    pub(crate) fn is_bare(&self) -> bool {
        self.key.is_none()
            && self.agent_id.is_none()
            && self.store_path.is_none()
            && self.session_file.is_none()
            && self.attributes.is_empty()
    }
}

/// Details are shown up to 64 bytes each, attributes by their names and the lengths of their values: a value may be large, or secret.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 64;
        let Self { id, key, agent_id, store_path, session_file, parent, attributes } = self;
        let mut out = f.debug_struct("Session");
        out.field("id", id);
        let details =
            [("key", key), ("agent_id", agent_id), ("store_path", store_path), ("session_file", session_file)];
        for (name, value) in details {
            if let Some(value) = value {
                let end = (0..=SHOWN.min(value.len())).rev().find(|end| value.is_char_boundary(*end));
                let prefix = &value[..end.unwrap_or_default()];
                let rest = value.len() - prefix.len();
                match rest {
                    0 => out.field(name, &prefix),
                    _ => out.field(name, &format_args!("{prefix:?} and {rest} bytes more")),
                };
            }
        }
        if let Some(parent) = parent {
            out.field("parent", parent);
        }
        let lengths: BTreeMap<_, _> =
            attributes.iter().take(SHOWN).map(|(name, value)| (name, format!("{} bytes", value.len()))).collect();
        out.field("attributes", &lengths).finish()
    }
}

impl From<SessionId> for Session {
    fn from(id: SessionId) -> Self {
        Self::new(id)
    }
}

impl From<&SessionId> for Session {
    fn from(id: &SessionId) -> Self {
        Self::new(id.clone())
    }
}

impl TryFrom<&str> for Session {
    type Error = InvalidSessionId;

    fn try_from(id: &str) -> Result<Self, Self::Error> {
        SessionId::new(id).map(Self::new)
    }
}

impl TryFrom<String> for Session {
    type Error = InvalidSessionId;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        SessionId::new(id).map(Self::new)
    }
}

impl TryFrom<&String> for Session {
    type Error = InvalidSessionId;

    fn try_from(id: &String) -> Result<Self, Self::Error> {
        SessionId::new(id).map(Self::new)
    }
}

/// The context of an event in the plugin contract; made by [`Session::context`].
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct SessionContext<'a> {
    /// The agent that serves the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<&'a str>,
    /// The session's id.
    pub session_id: &'a SessionId,
    /// The conversation that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_key: Option<&'a str>,
}
