//! One exchange: the generation that its request belongs to, and what its response says about sessions.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use http::{HeaderMap, header::CONTENT_TYPE, response};

use super::layer::Shared;
use crate::{
    lifecycle::ActiveSessions,
    protocol::{RequestInfo, Saying, SessionSignal, Spoken},
    session::{Phase, Session, SessionId},
    tracker::{By, Entry, Load, Note, Voice},
};

/// From the request's head to the response body's end. Its session is busy for so long.
pub(super) struct Exchange {
    shared: Arc<Shared>,
    /// The generation that was active when the request came, or was born in the response: what the response says about
    /// that id is about this generation alone.
    entry: Option<Arc<Entry>>,
    load: Load,
}

/// The wait of a response head for the record of its session.
pub(super) type Recording = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// The handle was closed before the response came: its head must not leave.
pub(super) struct Refused;

impl Shared {
    /// The generation of an id, if it is active: busy from here on.
    pub(super) fn take_up(&self, id: &[u8]) -> Option<Arc<Entry>> {
        self.sessions.inner.pool.tracker.take_up(id, self.sessions.tick())
    }
}

impl Exchange {
    #[inline]
    pub(super) fn begin(shared: &Arc<Shared>, entry: Option<Arc<Entry>>) -> Self {
        shared.sessions.inner.open_responses.fetch_add(1, Ordering::SeqCst);
        Self { shared: Arc::clone(shared), entry, load: Load::Work }
    }

    pub(super) fn entry(&self) -> Option<&Arc<Entry>> {
        self.entry.as_ref()
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
            Spoken::Header(protocol) => {
                !response.extensions.is_empty()
                    || protocol.may_say(&response.headers)
                    // Of the preset we have told only ids that are not active.
                    || (protocol.adopts() && request.is_some())
            }
            Spoken::Other(_) => true,
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
        let tracked = self.entry.as_ref().map(|entry| &entry.id);
        // Short ways for what is said most: that the session goes on, and that one begins.
        if let (Spoken::Header(protocol), false) = (&self.shared.protocol, has_signal(response))
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
            (Spoken::Header(protocol), _) => protocol.said(request, tracked, response),
            (Spoken::Other(protocol), Some(request)) => protocol.response(request, response),
            (Spoken::Other(_), None) => SessionSignal::nothing(),
        };
        let from_handler = match has_signal(response) {
            true => response.extensions.remove::<SessionSignal>(),
            false => None,
        };
        if from_handler.is_none() && from_protocol.is_nothing() {
            return Ok(None);
        }
        let mut births = Vec::new();
        // Of an id that was not even active there is no tombstone: the head that echoes it opens nothing either.
        let mut over = Vec::new();
        for saying in from_handler.into_iter().flat_map(|signal| signal.sayings) {
            match &saying {
                Saying::Ended(id, _) => over.push(id.clone()),
                Saying::Compacted(_, session) | Saying::Started(session) => over.retain(|id| *id != session.id),
            }
            births.extend(self.say(saying, Voice::Said)?);
        }
        for saying in from_protocol.sayings {
            births.extend(match saying {
                Saying::Started(session) if over.contains(&session.id) => None,
                Saying::Started(session) => self.see(carried.as_ref(), session)?,
                said => self.say(said, Voice::Head)?,
            });
        }
        Ok((!births.is_empty()).then(|| self.recording(births)))
    }

    fn recording(&self, births: Vec<Arc<Entry>>) -> Recording {
        Box::pin(self.sessions().clone().until_recorded(births))
    }

    /// A birth, an end or a compaction that the host declares. Returns a birth whose record is still to be written.
    fn say(&mut self, saying: Saying, voice: Voice) -> Result<Option<Arc<Entry>>, Refused> {
        let sessions = &self.shared.sessions;
        let load = self.wanting();
        match saying {
            Saying::Started(session) => self.adopt(sessions.note_entry(session, voice, load)),
            Saying::Ended(id, reason) => {
                match self.entry.as_ref().filter(|entry| entry.id == id) {
                    // A later generation of the same id is not what this response is about.
                    Some(entry) => sessions.end_entry(entry, reason, By::Host),
                    None => sessions.end(id, reason),
                };
                Ok(None)
            }
            Saying::Compacted(old, session) => {
                let generation = self.entry.as_ref().filter(|entry| entry.id == old);
                self.adopt(sessions.compact_entry(old.as_str(), generation, session, voice, load).1)
            }
        }
    }

    /// An id that merely stands in the response: a birth only if it is news.
    fn see(&mut self, carried: Option<&SessionId>, session: Session) -> Result<Option<Arc<Entry>>, Refused> {
        let sessions = &self.shared.sessions;
        if carried == Some(&session.id) {
            // Not one that a handler's word has just opened.
            if let Some(entry) = self.entry.as_ref().filter(|entry| entry.id == session.id) {
                // Over by now? Then this is a late response, and revives nothing.
                sessions.inner.pool.tracker.set_details(entry, session);
                return Ok(None);
            }
            if sessions.phase() >= Phase::Closing {
                return Ok(None);
            }
        }
        self.adopt(sessions.note_entry(session, Voice::Head, self.wanting()))
    }

    /// What a newcomer is to take up, if this exchange belongs to no session yet.
    fn wanting(&self) -> Option<Load> {
        self.entry.is_none().then_some(self.load)
    }

    /// The rest of this exchange belongs to the newcomer, unless its request belonged to another session.
    fn adopt(&mut self, note: Option<Note>) -> Result<Option<Arc<Entry>>, Refused> {
        match note {
            Some(Note::Refused) => Err(Refused),
            Some(Note::Born(entry) | Note::Known(entry)) => {
                let waits = self.sessions().waits_for(&entry).then(|| Arc::clone(&entry));
                self.entry.get_or_insert(entry);
                Ok(waits)
            }
            Some(Note::Dead) | None => Ok(None),
        }
    }

    /// Whether the response to a `GET` is a stream that is to end with its session. One that only listens is no work.
    #[inline(never)]
    pub(super) fn listens(&mut self, headers: &HeaderMap) -> bool {
        let is_stream = is_event_stream(headers);
        if is_stream && let Some(entry) = self.entry.clone() {
            entry.take_up(Load::Open);
            self.put_down(&entry);
            self.load = Load::Open;
        }
        is_stream && self.sessions().inner.config.end_streams
    }

    #[inline(never)]
    fn put_down(&self, entry: &Arc<Entry>) {
        let sessions = &self.shared.sessions;
        entry.heard_of(sessions.tick());
        // First put down, then read the phase: a drain that still found work here has stored the phase before.
        if entry.put_down(self.load) && entry.is_active() && sessions.phase() >= Phase::Closing {
            sessions.stop_entry(entry);
        }
    }
}

impl Drop for Exchange {
    #[inline]
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            self.put_down(entry);
        }
        self.shared.sessions.inner.open_responses.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether a handler has put its words into the response.
#[inline]
fn has_signal(response: &response::Parts) -> bool {
    !response.extensions.is_empty() && response.extensions.get::<SessionSignal>().is_some()
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    const EVENT_STREAM: &[u8] = b"text/event-stream";
    let content_type = headers.get(CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    let Some((essence, rest)) = content_type.split_at_checked(EVENT_STREAM.len()) else { return false };
    essence.eq_ignore_ascii_case(EVENT_STREAM) && matches!(rest.first(), None | Some(b';' | b' '))
}
