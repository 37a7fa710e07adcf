//! One exchange: the generation that its request belongs to, and what its response says about sessions.

use std::{future::Future, pin::Pin, sync::Arc};

use http::{Method, StatusCode, response};

use super::layer::Shared;
use crate::{
    handle::ActiveSessions,
    protocol::{OnNewId, ProtocolKind, RequestInfo, SessionChange, SessionUpdate},
    session::{Phase, Session, SessionId},
    shutdown::OpenResponses,
    tracker::{Activity, ClaimNumber, Generation, NoteSource, Noted, Origin, Scope},
};

/// Lasts from the request's head to the response body's end. Its session has an activity for that time.
pub(super) struct Exchange {
    shared: Arc<Shared>,
    /// The generation that was active when the request came, or that the response started. If the response changes
    /// this id, it changes this generation and no later one.
    generation: Option<Arc<Generation>>,
    activity: Activity,
    /// The claims before the request began: a generation that was claimed later is not revived by the response.
    began: ClaimNumber,
}

/// The wait of a response head for the record of its session.
pub(super) type RecordWait = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// The handle was closed before the response came: the head must not leave.
pub(super) struct HandleClosed;

impl Exchange {
    #[inline]
    pub(super) fn begin(shared: &Arc<Shared>, generation: Option<Arc<Generation>>) -> Self {
        shared.shutdown.open_responses.begin();
        let began = shared.claim_number();
        Self { shared: Arc::clone(shared), generation, activity: Activity::Work, began }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn generation(&self) -> Option<&Arc<Generation>> {
        self.generation.as_ref()
    }

    pub(super) fn sessions(&self) -> &ActiveSessions {
        &self.shared.sessions
    }

    #[inline]
    pub(super) fn open_responses(&self) -> &OpenResponses {
        &self.shared.shutdown.open_responses
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shared.phase() == Phase::Closed
    }

    #[inline(always)]
    pub(super) fn is_open(&self) -> bool {
        self.shared.phase() == Phase::Open
    }

    /// Whether [`apply_response`](Self::apply_response) may find a change in the response.
    #[inline(always)]
    pub(super) fn may_update(&self, request: Option<&RequestInfo>, response: &response::Parts) -> bool {
        match &self.shared.protocol {
            ProtocolKind::Header(protocol) => {
                !response.extensions.is_empty()
                    || protocol.has_session_headers(&response.headers)
                    // With the preset, `request` is set only for an id that is not active.
                    || (protocol.adopts() && request.is_some())
                    || self.generation.as_ref().is_some_and(|generation| generation.is_doubted())
            }
            ProtocolKind::Other(_) => true,
        }
    }

    /// Applies the changes that the response declares: the handler's first, which take precedence, then the protocol's.
    /// Returns the wait for the records of the sessions that it starts, if there is a registry.
    #[inline(never)]
    pub(super) fn apply_response(
        &mut self,
        request: Option<&RequestInfo>,
        response: &mut response::Parts,
    ) -> Result<Option<RecordWait>, HandleClosed> {
        if let Some(generation) = &self.generation
            && generation.is_doubted()
            && shows_session(response.status)
        {
            generation.trust();
        }
        let tracked = self.generation.as_ref().map(|generation| &generation.id);
        // Short paths for the most frequent responses: the session continues, or one starts.
        if let (ProtocolKind::Header(protocol), false) = (&self.shared.protocol, has_update(response))
            && let Some(id) = protocol.sole_id(&response.headers)
        {
            if tracked.is_some_and(|tracked| tracked.as_bytes() == id) {
                return Ok(None);
            }
            if let Some(id) = protocol.starting_id(id, response) {
                let policy = protocol.new_id_policy();
                if policy != OnNewId::Keep && self.generation.is_some() {
                    return self.apply_new_id(policy, request.and_then(RequestInfo::id), Session::new(id));
                }
                let start = self.note_from_header(request.and_then(RequestInfo::id), Session::new(id))?;
                return Ok(start.map(|start| self.record_wait(vec![start])));
            }
        }
        let carried = request.map_or(tracked, RequestInfo::id).cloned();
        // Before the handler's update is removed: `adopt` depends on whether there is one.
        let from_protocol = match (&self.shared.protocol, request) {
            (ProtocolKind::Header(protocol), _) => protocol.update(request, tracked, response),
            (ProtocolKind::Other(protocol), Some(request)) => protocol.response(request, response),
            (ProtocolKind::Other(_), None) => SessionUpdate::empty(),
        };
        let from_handler = match response.extensions.is_empty() {
            true => None,
            false => response.extensions.remove::<SessionUpdate>(),
        };
        if from_handler.is_none() && from_protocol.is_empty() {
            return self.restart_doubted(request, response.status);
        }
        let mut starts = Vec::new();
        // The end of an inactive id leaves no tombstone: without this list a head that repeats the id would start it.
        let mut ended = Vec::new();
        for change in from_handler.into_iter().flat_map(|update| update.changes) {
            match &change {
                SessionChange::Ended(id, _) => ended.push(id.clone()),
                SessionChange::InvalidId | SessionChange::Doubted(_) => {}
                SessionChange::Compacted(_, session) | SessionChange::Started(session) => {
                    ended.retain(|id| *id != session.id);
                }
            }
            let source = NoteSource::Update(origin_of(&change, carried.as_ref()));
            starts.extend(self.apply_change(change, source)?);
        }
        for change in from_protocol.changes {
            starts.extend(match change {
                SessionChange::Started(session) if ended.contains(&session.id) => None,
                SessionChange::Started(session) => self.note_from_header(carried.as_ref(), session)?,
                change => {
                    let source = NoteSource::ResponseHead(self.began, origin_of(&change, carried.as_ref()));
                    self.apply_change(change, source)?
                }
            });
        }
        Ok((!starts.is_empty()).then(|| self.record_wait(starts)))
    }

    /// A success shows that a session goes on, although it has ended because of a doubt: a new generation starts. It needs
    /// no id in the response.
    #[inline(never)]
    fn restart_doubted(
        &mut self,
        request: Option<&RequestInfo>,
        status: StatusCode,
    ) -> Result<Option<RecordWait>, HandleClosed> {
        let untracked = request.filter(|request| !request.is_tracked() && *request.method() != Method::DELETE);
        let Some(id) = untracked.and_then(RequestInfo::id).filter(|_| shows_session(status)) else { return Ok(None) };
        if !self.sessions().inner.tracker.was_doubted(id.as_bytes()) {
            return Ok(None);
        }
        let start = self.note_from_header(Some(id), Session::new(id.clone()))?;
        Ok(start.map(|start| self.record_wait(vec![start])))
    }

    /// The request has a session, and the response names another one. If that is new, it replaces the request's, and the
    /// exchange goes on in it.
    #[cold]
    fn apply_new_id(
        &mut self,
        policy: OnNewId,
        carried: Option<&SessionId>,
        new: Session,
    ) -> Result<Option<RecordWait>, HandleClosed> {
        let sessions = &self.shared.sessions;
        let (source, activity) = (NoteSource::ResponseHead(self.began, Origin::Made), Some(self.activity));
        let old = self.generation.clone().filter(|_| !self.shared.is_tracked(&new.id));
        let noted = match (policy, &old) {
            (OnNewId::Compact, Some(old)) => {
                sessions.compact_generation(old.id.as_str(), Some(old), new, source, activity).1
            }
            (OnNewId::End(reason), Some(old)) => {
                sessions.end_generation(old, reason, Scope::Everywhere);
                sessions.note_session(new, source, activity)
            }
            (OnNewId::Keep, _) | (_, None) => {
                let start = self.note_from_header(carried, new)?;
                return Ok(start.map(|start| self.record_wait(vec![start])));
            }
        };
        let start = self.attach(noted, activity)?;
        Ok(start.map(|start| self.record_wait(vec![start])))
    }

    fn record_wait(&self, starts: Vec<Arc<Generation>>) -> RecordWait {
        let persister = self.sessions().inner.persister.clone();
        Box::pin(async move {
            if let Some(persister) = persister {
                persister.until_recorded(&starts).await;
            }
        })
    }

    /// Applies one change. Returns the start if its record is still to be written.
    fn apply_change(
        &mut self,
        change: SessionChange,
        source: NoteSource,
    ) -> Result<Option<Arc<Generation>>, HandleClosed> {
        let sessions = &self.shared.sessions;
        let activity = self.initial_activity();
        match change {
            SessionChange::Started(session) => {
                let noted = sessions.note_session(session, source, activity);
                self.attach(noted, activity)
            }
            SessionChange::InvalidId => {
                sessions.ignore_id();
                Ok(None)
            }
            SessionChange::Ended(id, reason) => {
                match self.generation.as_ref().filter(|generation| generation.id == id) {
                    // This response must not end a later generation of the same id.
                    Some(generation) => sessions.end_generation(generation, reason, Scope::Everywhere),
                    None => sessions.end(id, reason),
                };
                Ok(None)
            }
            SessionChange::Doubted(id) => {
                match self.generation.as_ref().filter(|generation| generation.id == id) {
                    Some(generation) => sessions.inner.housekeeper.doubt(generation),
                    None => {
                        let generation = sessions.inner.tracker.find(id.as_bytes());
                        generation.iter().for_each(|generation| sessions.inner.housekeeper.doubt(generation));
                    }
                }
                Ok(None)
            }
            SessionChange::Compacted(old, session) => {
                let only = self.generation.as_ref().filter(|generation| generation.id == old);
                let noted = sessions.compact_generation(old.as_str(), only, session, source, activity).1;
                self.attach(noted, activity)
            }
        }
    }

    /// Notes the id of a response head. An id that the request carried too revives nothing, and starts nothing in a
    /// shutdown.
    fn note_from_header(
        &mut self,
        carried: Option<&SessionId>,
        session: Session,
    ) -> Result<Option<Arc<Generation>>, HandleClosed> {
        let sessions = &self.shared.sessions;
        if carried == Some(&session.id) {
            // Filtered, because the exchange may belong to another session that the handler has just started.
            if let Some(generation) = self.generation.as_ref().filter(|generation| generation.id == session.id) {
                // If the generation has ended by now, this response is late, and starts nothing.
                sessions.inner.tracker.set_details(generation, session);
                return Ok(None);
            }
            if sessions.phase() >= Phase::Closing {
                return Ok(None);
            }
        }
        let activity = self.initial_activity();
        let source = NoteSource::ResponseHead(self.began, origin(&session, carried));
        let noted = sessions.note_session(session, source, activity);
        self.attach(noted, activity)
    }

    /// Whether the head has to wait for the record of this generation.
    fn delays_head(&self, generation: &Generation) -> bool {
        self.sessions().inner.persister.as_ref().is_some_and(|persister| persister.delays_head(generation))
    }

    /// The activity with which a session starts here; `None` if this exchange already belongs to an active session.
    fn initial_activity(&self) -> Option<Activity> {
        let is_free = self.generation.as_ref().is_none_or(|generation| !generation.is_active());
        is_free.then_some(self.activity)
    }

    /// The exchange belongs to the noted session from here on, if that has started with its `activity`.
    fn attach(&mut self, noted: Noted, activity: Option<Activity>) -> Result<Option<Arc<Generation>>, HandleClosed> {
        match noted {
            Noted::Closed => Err(HandleClosed),
            Noted::Started(generation) | Noted::AlreadyActive(generation) => {
                let waits = self.delays_head(&generation).then(|| Arc::clone(&generation));
                if activity.is_some()
                    && let Some(ended) = self.generation.replace(generation)
                {
                    self.end_activity(&ended);
                }
                Ok(waits)
            }
            Noted::Tombstoned => Ok(None),
        }
    }

    /// Turns the activity into [`Activity::Stream`]: a client that listens is not work. Returns whether the stream has
    /// to end with its session.
    #[inline(never)]
    pub(super) fn begin_stream(&mut self) -> bool {
        if let Some(generation) = self.generation.clone() {
            generation.begin_activity(Activity::Stream);
            self.end_activity(&generation);
            self.activity = Activity::Stream;
        }
        self.sessions().inner.end_streams
    }

    #[inline(never)]
    fn end_activity(&self, generation: &Arc<Generation>) {
        self.shared.end_activity(generation, self.activity);
    }
}

impl Drop for Exchange {
    #[inline]
    fn drop(&mut self) {
        if let Some(generation) = &self.generation {
            self.end_activity(generation);
        }
        self.shared.shutdown.open_responses.end();
    }
}

/// Where the id of a response comes from, if the request carried this one.
fn origin(session: &Session, carried: Option<&SessionId>) -> Origin {
    if carried == Some(&session.id) { Origin::Carried } else { Origin::Made }
}

/// As [`origin`], of the session that a change starts.
fn origin_of(change: &SessionChange, carried: Option<&SessionId>) -> Origin {
    match change {
        SessionChange::Started(session) | SessionChange::Compacted(_, session) => origin(session, carried),
        SessionChange::Ended(..) | SessionChange::Doubted(_) | SessionChange::InvalidId => Origin::Noted,
    }
}

/// Whether a handler has put an update into the response that declares a change.
#[inline]
fn has_update(response: &response::Parts) -> bool {
    !response.extensions.is_empty()
        && response.extensions.get::<SessionUpdate>().is_some_and(|update| !update.is_empty())
}

/// Whether a response with this status shows that the host knows the session of its request.
fn shows_session(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS
}
