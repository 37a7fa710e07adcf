//! One exchange: the generation that its request belongs to, and what its response says about sessions.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use http::{HeaderMap, Method, header::CONTENT_TYPE, response};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::layer::Shared;
use crate::{
    lifecycle::ActiveSessions,
    protocol::{RequestInfo, Saying, SessionSignal},
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
    /// Births whose record is still to be written.
    births: Vec<Arc<Entry>>,
}

/// The wait of a response head for the record of its session.
pub(super) type Recording = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// The handle was closed before the response came: its head must not leave.
pub(super) struct Refused;

impl Exchange {
    pub(super) fn begin(shared: &Arc<Shared>, id: Option<&SessionId>) -> Self {
        let sessions = &shared.sessions;
        let entry = id.and_then(|id| sessions.inner.pool.tracker.take_up(id.as_bytes(), sessions.tick()));
        sessions.inner.open_responses.fetch_add(1, Ordering::SeqCst);
        Self { shared: Arc::clone(shared), entry, load: Load::Work, births: Vec::new() }
    }

    pub(super) fn is_tracked(&self) -> bool {
        self.entry.is_some()
    }

    pub(super) fn entry(&self) -> Option<&Arc<Entry>> {
        self.entry.as_ref()
    }

    pub(super) fn sessions(&self) -> &ActiveSessions {
        &self.shared.sessions
    }

    /// Does what the response says: first the handler's words, which know more, then the protocol's.
    pub(super) fn apply(&mut self, request: &RequestInfo, response: &mut response::Parts) -> Result<(), Refused> {
        // In this order, so that the protocol can see whether the handler said something.
        let from_protocol = self.shared.protocol.response(request, response);
        let from_handler = response.extensions.remove::<SessionSignal>();
        if from_handler.is_none() && from_protocol.is_nothing() {
            return Ok(());
        }
        // Of an id that was not even active there is no tombstone: the head that echoes it opens nothing either.
        let mut over = Vec::new();
        for saying in from_handler.into_iter().flat_map(|signal| signal.sayings) {
            match &saying {
                Saying::Ended(id, _) => over.push(id.clone()),
                Saying::Compacted(_, session) | Saying::Started(session) => over.retain(|id| *id != session.id),
            }
            self.say(saying, Voice::Said)?;
        }
        for saying in from_protocol.sayings {
            match saying {
                Saying::Started(session) if over.contains(&session.id) => {}
                Saying::Started(session) => self.see(request, session)?,
                said => self.say(said, Voice::Head)?,
            }
        }
        Ok(())
    }

    /// A birth, an end or a compaction that the host declares.
    fn say(&mut self, saying: Saying, voice: Voice) -> Result<(), Refused> {
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
                Ok(())
            }
            Saying::Compacted(old, session) => {
                let generation = self.entry.as_ref().filter(|entry| entry.id == old);
                self.adopt(sessions.compact_entry(old.as_str(), generation, session, voice, load).1)
            }
        }
    }

    /// An id that merely stands in the response: a birth only if it is news.
    fn see(&mut self, request: &RequestInfo, session: Session) -> Result<(), Refused> {
        let sessions = &self.shared.sessions;
        if request.id.as_ref() == Some(&session.id) {
            if let Some(entry) = &self.entry {
                // Over by now? Then this is a late response, and revives nothing.
                sessions.inner.pool.tracker.set_details(entry, session);
                return Ok(());
            }
            if sessions.phase() >= Phase::Closing {
                return Ok(());
            }
        }
        self.adopt(sessions.note_entry(session, Voice::Head, self.wanting()))
    }

    /// Waits for the records of what this response has opened, if there is anything to wait for.
    pub(super) fn until_recorded(&mut self) -> Option<Recording> {
        let births = std::mem::take(&mut self.births);
        (!births.is_empty()).then(|| -> Recording { Box::pin(self.sessions().clone().until_recorded(births)) })
    }

    /// What a newcomer is to take up, if this exchange belongs to no session yet.
    fn wanting(&self) -> Option<Load> {
        self.entry.is_none().then_some(self.load)
    }

    /// The rest of this exchange belongs to the newcomer, unless its request belonged to another session.
    fn adopt(&mut self, note: Option<Note>) -> Result<(), Refused> {
        if let Some(Note::Born(entry) | Note::Known(entry)) = &note
            && self.sessions().waits_for(entry)
        {
            self.births.push(Arc::clone(entry));
        }
        match note {
            Some(Note::Refused) => return Err(Refused),
            Some(Note::Born(entry) | Note::Known(entry)) if self.entry.is_none() => {
                self.entry = Some(entry);
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    /// Whether the response is a stream that only listens; such a one is no work.
    pub(super) fn listens(&mut self, method: &Method, headers: &HeaderMap) -> bool {
        let is_stream = *method == Method::GET && is_event_stream(headers);
        if is_stream && let Some(entry) = self.entry.clone() {
            entry.take_up(Load::Open);
            self.put_down(&entry);
            self.load = Load::Open;
        }
        is_stream
    }

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
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.put_down(&entry);
        }
        self.shared.sessions.inner.open_responses.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits for the cut of the connections, from when the host has made us wait.
///
/// Boxed, so that bodies and futures are `Unpin` where the host's are, and small where the host is quick.
#[derive(Default)]
pub(super) struct UntilCut(Option<Pin<Box<WaitForCancellationFutureOwned>>>);

impl UntilCut {
    pub(super) fn poll(&mut self, exchange: &Exchange, cx: &mut Context<'_>) -> Poll<()> {
        let cut = &exchange.shared.sessions.inner.cut;
        self.0.get_or_insert_with(|| Box::pin(cut.clone().cancelled_owned())).as_mut().poll(cx)
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    const EVENT_STREAM: &[u8] = b"text/event-stream";
    let content_type = headers.get(CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    let Some((essence, rest)) = content_type.split_at_checked(EVENT_STREAM.len()) else { return false };
    essence.eq_ignore_ascii_case(EVENT_STREAM) && matches!(rest.first(), None | Some(b';' | b' '))
}
