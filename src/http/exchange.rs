//! One exchange: the generation that its request belongs to, and what its response says about sessions.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use http::{HeaderMap, header::CONTENT_TYPE, response};

use super::layer::Shared;
use crate::{
    handle::ActiveSessions,
    protocol::{ProtocolKind, RequestInfo, SessionChange, SessionUpdate},
    session::{Phase, Session, SessionId},
    tracker::{Activity, EndedBy, Generation, NoteSource, Noted},
};

/// From the request's head to the response body's end. Its session is busy for so long.
pub(super) struct Exchange {
    shared: Arc<Shared>,
    /// The generation that was active when the request came, or was born in the response: what the response says about
    /// that id is about this generation alone.
    generation: Option<Arc<Generation>>,
    activity: Activity,
}

/// The wait of a response head for the record of its session.
pub(super) type Recording = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// The handle was closed before the response came: its head must not leave.
pub(super) struct Refused;

impl Shared {
    /// The generation of an id, if it is active: busy from here on.
    pub(super) fn begin_activity(&self, id: &[u8]) -> Option<Arc<Generation>> {
        self.sessions.inner.tracker.begin_activity(id, self.sessions.inner.housekeeper.tick())
    }
}

impl Exchange {
    #[inline]
    pub(super) fn begin(shared: &Arc<Shared>, generation: Option<Arc<Generation>>) -> Self {
        shared.sessions.inner.shutdown.open_responses.fetch_add(1, Ordering::SeqCst);
        Self { shared: Arc::clone(shared), generation, activity: Activity::Request }
    }

    pub(super) fn generation(&self) -> Option<&Arc<Generation>> {
        self.generation.as_ref()
    }

    pub(super) fn sessions(&self) -> &ActiveSessions {
        &self.shared.sessions
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shared.phase() == Phase::Closed
    }

    /// Whether there may be something to [`obey`](Self::obey) in the response.
    #[inline(always)]
    pub(super) fn may_say(&self, request: Option<&RequestInfo>, response: &response::Parts) -> bool {
        match &self.shared.protocol {
            ProtocolKind::Header(protocol) => {
                !response.extensions.is_empty()
                    || protocol.may_say(&response.headers)
                    // Of the preset we have told only ids that are not active.
                    || (protocol.adopts() && request.is_some())
            }
            ProtocolKind::Other(_) => true,
        }
    }

    /// Does what the response says: first the handler's words, which know more, then the protocol's. Its head has to wait
    /// for the records of what it has opened, if there are any.
    #[inline(never)]
    pub(super) fn obey(
        &mut self,
        request: Option<&RequestInfo>,
        response: &mut response::Parts,
    ) -> Result<Option<Recording>, Refused> {
        let tracked = self.generation.as_ref().map(|generation| &generation.id);
        // Short ways for what is said most: that the session goes on, and that one begins.
        if let (ProtocolKind::Header(protocol), false) = (&self.shared.protocol, has_signal(response))
            && let Some(id) = protocol.only_id(&response.headers)
        {
            if tracked.is_some_and(|tracked| tracked.as_bytes() == id) {
                return Ok(None);
            }
            if let Some(id) = protocol.begun(id, response) {
                let birth = self.see(request.and_then(RequestInfo::id), Session::new(id))?;
                return Ok(birth.map(|birth| self.recording(vec![birth])));
            }
        }
        let carried = request.map_or(tracked, RequestInfo::id).cloned();
        // In this order, so that the protocol can see whether the handler said something.
        let from_protocol = match (&self.shared.protocol, request) {
            (ProtocolKind::Header(protocol), _) => protocol.said(request, tracked, response),
            (ProtocolKind::Other(protocol), Some(request)) => protocol.response(request, response),
            (ProtocolKind::Other(_), None) => SessionUpdate::empty(),
        };
        let from_handler = match has_signal(response) {
            true => response.extensions.remove::<SessionUpdate>(),
            false => None,
        };
        if from_handler.is_none() && from_protocol.is_empty() {
            return Ok(None);
        }
        let mut births = Vec::new();
        // Of an id that was not even active there is no tombstone: the head that echoes it opens nothing either.
        let mut over = Vec::new();
        for saying in from_handler.into_iter().flat_map(|signal| signal.changes) {
            match &saying {
                SessionChange::Ended(id, _) => over.push(id.clone()),
                SessionChange::Compacted(_, session) | SessionChange::Started(session) => {
                    over.retain(|id| *id != session.id)
                }
            }
            births.extend(self.say(saying, NoteSource::Update)?);
        }
        for saying in from_protocol.changes {
            births.extend(match saying {
                SessionChange::Started(session) if over.contains(&session.id) => None,
                SessionChange::Started(session) => self.see(carried.as_ref(), session)?,
                said => self.say(said, NoteSource::ResponseHeader)?,
            });
        }
        Ok((!births.is_empty()).then(|| self.recording(births)))
    }

    fn recording(&self, births: Vec<Arc<Generation>>) -> Recording {
        let persister = self.sessions().inner.persister.clone();
        Box::pin(async move {
            if let Some(persister) = persister {
                persister.until_recorded(&births).await;
            }
        })
    }

    /// A birth, an end or a compaction that the host declares. Returns a birth whose record is still to be written.
    fn say(&mut self, saying: SessionChange, source: NoteSource) -> Result<Option<Arc<Generation>>, Refused> {
        let sessions = &self.shared.sessions;
        let activity = self.wanting();
        match saying {
            SessionChange::Started(session) => self.adopt(sessions.note_session(session, source, activity)),
            SessionChange::Ended(id, reason) => {
                match self.generation.as_ref().filter(|generation| generation.id == id) {
                    // A later generation of the same id is not what this response is about.
                    Some(generation) => sessions.end_generation(generation, reason, EndedBy::Host),
                    None => sessions.end(id, reason),
                };
                Ok(None)
            }
            SessionChange::Compacted(old, session) => {
                let only = self.generation.as_ref().filter(|generation| generation.id == old);
                self.adopt(sessions.compact_generation(old.as_str(), only, session, source, activity).1)
            }
        }
    }

    /// An id that merely stands in the response: a birth only if it is news.
    fn see(&mut self, carried: Option<&SessionId>, session: Session) -> Result<Option<Arc<Generation>>, Refused> {
        let sessions = &self.shared.sessions;
        if carried == Some(&session.id) {
            // Not one that a handler's word has just opened.
            if let Some(generation) = self.generation.as_ref().filter(|generation| generation.id == session.id) {
                // Over by now? Then this is a late response, and revives nothing.
                sessions.inner.tracker.set_details(generation, session);
                return Ok(None);
            }
            if sessions.phase() >= Phase::Closing {
                return Ok(None);
            }
        }
        self.adopt(sessions.note_session(session, NoteSource::ResponseHeader, self.wanting()))
    }

    fn delays_head(&self, generation: &Generation) -> bool {
        self.sessions().inner.persister.as_ref().is_some_and(|persister| persister.delays_head(generation))
    }

    /// What a newcomer is to take up, if this exchange belongs to no session yet.
    fn wanting(&self) -> Option<Activity> {
        self.generation.is_none().then_some(self.activity)
    }

    /// The rest of this exchange belongs to the newcomer, unless its request belonged to another session.
    fn adopt(&mut self, note: Option<Noted>) -> Result<Option<Arc<Generation>>, Refused> {
        match note {
            Some(Noted::Closed) => Err(Refused),
            Some(Noted::Started(generation) | Noted::AlreadyActive(generation)) => {
                let waits = self.delays_head(&generation).then(|| Arc::clone(&generation));
                self.generation.get_or_insert(generation);
                Ok(waits)
            }
            Some(Noted::Tombstoned) | None => Ok(None),
        }
    }

    /// Whether the response to a `GET` is a stream that is to end with its session. One that only listens is no work.
    #[inline(never)]
    pub(super) fn listens(&mut self, headers: &HeaderMap) -> bool {
        let is_stream = is_event_stream(headers);
        if is_stream && let Some(generation) = self.generation.clone() {
            generation.begin_activity(Activity::Stream);
            self.end_activity(&generation);
            self.activity = Activity::Stream;
        }
        is_stream && self.sessions().inner.end_streams
    }

    #[inline(never)]
    fn end_activity(&self, generation: &Arc<Generation>) {
        let sessions = &self.shared.sessions;
        generation.touch(sessions.inner.housekeeper.tick());
        // First put down, then read the phase: a drain that still found work here has stored the phase before.
        if generation.end_activity(self.activity) && generation.is_active() && sessions.phase() >= Phase::Closing {
            sessions.inner.housekeeper.drain_one(generation);
        }
    }
}

impl Drop for Exchange {
    #[inline]
    fn drop(&mut self) {
        if let Some(generation) = &self.generation {
            self.end_activity(generation);
        }
        self.shared.sessions.inner.shutdown.open_responses.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether a handler has put its words into the response.
#[inline]
fn has_signal(response: &response::Parts) -> bool {
    !response.extensions.is_empty() && response.extensions.get::<SessionUpdate>().is_some()
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    const EVENT_STREAM: &[u8] = b"text/event-stream";
    let content_type = headers.get(CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    let Some((essence, rest)) = content_type.split_at_checked(EVENT_STREAM.len()) else { return false };
    essence.eq_ignore_ascii_case(EVENT_STREAM) && matches!(rest.first(), None | Some(b';' | b' '))
}
