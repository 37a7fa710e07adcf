//! One exchange: the generation that its request belongs to, and what its response says about sessions.

use std::sync::{Arc, atomic::Ordering};

use http::response;

use super::layer::Shared;
use crate::{
    protocol::{RequestInfo, Saying, SessionSignal},
    session::{Phase, Session},
    tracker::{Entry, Note},
};

/// From the request's head to the response body's end.
pub(super) struct Exchange {
    shared: Arc<Shared>,
    /// The generation that was active when the request came: what the response says about that id is about it alone.
    entry: Option<Arc<Entry>>,
}

/// The handle was closed before the response came: its head must not leave.
pub(super) struct Refused;

impl Exchange {
    pub(super) fn begin(shared: &Arc<Shared>, entry: Option<Arc<Entry>>) -> Self {
        if let Some(entry) = &entry {
            entry.count_request();
        }
        shared.sessions.inner.open_responses.fetch_add(1, Ordering::SeqCst);
        Self { shared: Arc::clone(shared), entry }
    }

    pub(super) fn cut(&self) -> &tokio_util::sync::CancellationToken {
        &self.shared.sessions.inner.cut
    }

    /// Does what the response says: first the handler's words, which know more, then the protocol's.
    pub(super) fn apply(&self, request: &RequestInfo, response: &mut response::Parts) -> Result<(), Refused> {
        let from_handler = response.extensions.remove::<SessionSignal>();
        let from_protocol = self.shared.protocol.response(request, response);
        for saying in from_handler.into_iter().flat_map(|signal| signal.sayings) {
            self.say(saying)?;
        }
        for saying in from_protocol.sayings {
            match saying {
                Saying::Started(session) => self.see(request, session)?,
                said => self.say(said)?,
            }
        }
        Ok(())
    }

    /// A birth, an end or a compaction that the host declares.
    fn say(&self, saying: Saying) -> Result<(), Refused> {
        let sessions = &self.shared.sessions;
        match saying {
            Saying::Started(session) => refuse_if_closed(sessions.note_entry(session).as_ref()),
            Saying::Ended(id, reason) => {
                match self.entry.as_ref().filter(|entry| entry.id == id) {
                    // A later generation of the same id is not what this response is about.
                    Some(entry) => sessions.end_entry(entry, reason),
                    None => sessions.end(id, reason),
                };
                Ok(())
            }
            Saying::Compacted(old, session) => {
                let generation = self.entry.as_ref().filter(|entry| entry.id == old);
                refuse_if_closed(sessions.compact_entry(old.as_str(), generation, session).1.as_ref())
            }
        }
    }

    /// An id that merely stands in the response: a birth only if it is news.
    fn see(&self, request: &RequestInfo, session: Session) -> Result<(), Refused> {
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
        refuse_if_closed(sessions.see_entry(session).as_ref())
    }
}

fn refuse_if_closed(note: Option<&Note>) -> Result<(), Refused> {
    match note {
        Some(Note::Refused) => Err(Refused),
        Some(Note::Born(_) | Note::Known(_)) | None => Ok(()),
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.shared.sessions.inner.open_responses.fetch_sub(1, Ordering::SeqCst);
    }
}
