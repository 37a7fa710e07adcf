//! The events of the hooks: [`SessionStart`] and [`SessionEnd`].

use std::time::{Duration, Instant, SystemTime};

use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::{EndReason, GenerationId, IdempotencyKey, Session, SessionId};

/// A session started.
///
/// As JSON: `sessionId`, `sessionKey?`, `resumedFrom?`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionStart {
    /// The session, with the details that were known at its start.
    pub session: Session,
    /// The session that was compacted into this one.
    pub resumed_from: Option<SessionId>,
    /// The identity of this generation, the same as on its end. To deduplicate, use [`idempotency_key`](Self::idempotency_key).
    pub generation: GenerationId,
}

impl SessionStart {
    /// The key by which a consumer recognises a repeated start. It differs from that of the generation's end.
    ///
    /// ```
    /// use tower_session_end::{EndReason, Session, SessionEnd, SessionStart};
    ///
    /// let session = Session::try_from("4711")?;
    /// let start = SessionStart::new(session.clone());
    /// let end = SessionEnd::new(session, EndReason::Idle).with_generation(start.generation);
    /// assert_eq!(start.generation, end.generation);
    /// assert_ne!(start.idempotency_key(), end.idempotency_key());
    /// # Ok::<(), tower_session_end::InvalidSessionId>(())
    /// ```
    #[must_use]
    pub const fn idempotency_key(&self) -> IdempotencyKey {
        IdempotencyKey::start(self.generation)
    }

    /// A start as a hook would get it, for the tests of hooks.
    ///
    /// ```
    /// use tower_session_end::{Session, SessionId, SessionStart};
    ///
    /// let start = SessionStart::new(Session::try_from("new").unwrap()).with_resumed_from(SessionId::new("old").unwrap());
    /// assert_eq!(serde_json::to_string(&start).unwrap(), r#"{"sessionId":"new","resumedFrom":"old"}"#);
    /// ```
    #[must_use]
    pub fn new(session: impl Into<Session>) -> Self {
        Self { session: session.into(), resumed_from: None, generation: GenerationId::new(0, 0) }
    }

    /// Sets [`resumed_from`](Self::resumed_from).
    #[must_use]
    pub fn with_resumed_from(mut self, old: SessionId) -> Self {
        self.resumed_from = Some(old);
        self
    }

    /// Sets [`generation`](Self::generation).
    #[must_use]
    pub fn with_generation(mut self, generation: GenerationId) -> Self {
        self.generation = generation;
        self
    }
}

impl Serialize for SessionStart {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("SessionStart", 3)?;
        out.serialize_field("sessionId", &self.session.id)?;
        optional(&mut out, "sessionKey", self.session.key.as_ref())?;
        optional(&mut out, "resumedFrom", self.resumed_from.as_ref())?;
        out.end()
    }
}

/// A session ended. Each generation of a session gets exactly one of these.
///
/// As JSON: `sessionId`, `sessionKey?`, `messageCount`, `durationMs?`, `reason?`, `sessionFile?`,
/// `transcriptArchived?`, `nextSessionId?`, `nextSessionKey?`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionEnd {
    /// The session, with the details that were known last.
    pub session: Session,
    /// Why it ended.
    pub reason: EndReason,
    /// The session that goes on in its place, after a compaction.
    pub next: Option<Session>,
    /// When it was noted.
    pub started_at: SystemTime,
    /// From the note to the end, on the monotonic clock.
    pub duration: Duration,
    /// How many requests carried its id (`messageCount` in JSON).
    pub requests: u64,
    /// Whether the transcript has been archived. This crate cannot know and leaves it unset.
    pub transcript_archived: Option<bool>,
    /// The identity of this generation, the same as on its start. To deduplicate, use [`idempotency_key`](Self::idempotency_key).
    pub generation: GenerationId,
    /// When the hook is no longer awaited: the drain's deadline, or the end of the hook timeout. `None` is no limit.
    pub deadline: Option<Instant>,
}

impl SessionEnd {
    /// The key by which a consumer recognises a repeated end. It differs from that of the generation's start.
    ///
    /// ```
    /// use tower_session_end::{EndReason, Session, SessionEnd, SessionStart};
    ///
    /// let session = Session::try_from("4711")?;
    /// let start = SessionStart::new(session.clone());
    /// let end = SessionEnd::new(session, EndReason::Idle).with_generation(start.generation);
    /// assert_eq!(start.generation, end.generation);
    /// assert_ne!(start.idempotency_key(), end.idempotency_key());
    /// # Ok::<(), tower_session_end::InvalidSessionId>(())
    /// ```
    #[must_use]
    pub const fn idempotency_key(&self) -> IdempotencyKey {
        IdempotencyKey::end(self.generation)
    }

    /// An end as a hook would get it, for the tests of hooks. It started now, lasted zero, and saw no request.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_session_end::{EndReason, Session, SessionEnd};
    ///
    /// let end = SessionEnd::new(Session::try_from("abc").unwrap(), EndReason::Reset)
    ///     .with_requests(3)
    ///     .with_duration(Duration::from_millis(250));
    /// assert_eq!(
    ///     serde_json::to_string(&end).unwrap(),
    ///     r#"{"sessionId":"abc","messageCount":3,"durationMs":250,"reason":"reset"}"#,
    /// );
    /// ```
    #[must_use]
    pub fn new(session: impl Into<Session>, reason: EndReason) -> Self {
        Self {
            session: session.into(),
            reason,
            next: None,
            started_at: SystemTime::now(),
            duration: Duration::ZERO,
            requests: 0,
            transcript_archived: None,
            generation: GenerationId::new(0, 0),
            deadline: None,
        }
    }

    /// Sets [`next`](Self::next).
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let end = SessionEnd::new(SessionId::new("old").unwrap(), EndReason::Compaction).with_next(SessionId::new("new").unwrap());
    /// assert_eq!(end.next.unwrap().id, "new");
    /// ```
    #[must_use]
    pub fn with_next(mut self, next: impl Into<Session>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Sets [`started_at`](Self::started_at).
    #[must_use]
    pub fn with_started_at(mut self, started_at: SystemTime) -> Self {
        self.started_at = started_at;
        self
    }

    /// Sets [`duration`](Self::duration).
    #[must_use]
    pub fn with_duration(mut self, duration: Duration) -> Self {
        self.duration = duration;
        self
    }

    /// Sets [`requests`](Self::requests).
    ///
    /// ```
    /// # use tower_session_end::*;
    /// assert_eq!(SessionEnd::new(SessionId::new("a").unwrap(), EndReason::Idle).with_requests(7).requests, 7);
    /// ```
    #[must_use]
    pub fn with_requests(mut self, requests: u64) -> Self {
        self.requests = requests;
        self
    }

    /// Sets [`transcript_archived`](Self::transcript_archived).
    #[must_use]
    pub fn with_transcript_archived(mut self, archived: bool) -> Self {
        self.transcript_archived = Some(archived);
        self
    }

    /// Sets [`generation`](Self::generation).
    #[must_use]
    pub fn with_generation(mut self, generation: GenerationId) -> Self {
        self.generation = generation;
        self
    }

    /// Sets [`deadline`](Self::deadline).
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

impl Serialize for SessionEnd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let millis = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        let next = self.next.as_ref();
        let mut out = serializer.serialize_struct("SessionEnd", 9)?;
        out.serialize_field("sessionId", &self.session.id)?;
        optional(&mut out, "sessionKey", self.session.key.as_ref())?;
        out.serialize_field("messageCount", &self.requests)?;
        out.serialize_field("durationMs", &millis)?;
        out.serialize_field("reason", &self.reason)?;
        optional(&mut out, "sessionFile", self.session.session_file.as_ref())?;
        optional(&mut out, "transcriptArchived", self.transcript_archived.as_ref())?;
        optional(&mut out, "nextSessionId", next.map(|next| &next.id))?;
        optional(&mut out, "nextSessionKey", next.and_then(|next| next.key.as_ref()))?;
        out.end()
    }
}

/// Writes a field if there is a value; else it leaves the field out.
fn optional<S: SerializeStruct, T: Serialize>(
    out: &mut S,
    name: &'static str,
    value: Option<&T>,
) -> Result<(), S::Error> {
    match value {
        Some(value) => out.serialize_field(name, value),
        None => out.skip_field(name),
    }
}
