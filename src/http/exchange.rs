//! One exchange: the generation that its request belongs to, and what its response says about sessions.

use std::{future::Future, pin::Pin, sync::Arc};

use http::{Method, Response, StatusCode, response};

use super::{in_flight::InFlight, layer::Shared};
use crate::{
    handle::ActiveSessions,
    protocol::{OnNewId, ProtocolKind, RequestInfo, SessionChange, SessionUpdate},
    session::{Phase, Session, SessionId},
    tracker::{Activity, ClaimNumber, Generation, NoteSource, Noted, Origin, Scope},
};

/// Lasts from the request's head to the response's.
pub(super) struct Exchange {
    /// Goes on in the response body.
    pub(super) in_flight: InFlight,
    /// The id of the request, if that is valid and not active. Shared with the extractors.
    pub(super) untracked: Option<Arc<SessionId>>,
    /// The claims before the request began: a generation that was claimed later is not revived by the response.
    began: ClaimNumber,
}

/// The wait of a response head for the record of its session.
pub(super) type RecordWait = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// The handle was closed before the response came: the head must not leave.
pub(super) struct HandleClosed;

impl Exchange {
    #[inline]
    pub(super) fn begin(
        shared: &Arc<Shared>,
        generation: Option<Arc<Generation>>,
        untracked: Option<Arc<SessionId>>,
    ) -> Self {
        let in_flight = InFlight::begin(shared, generation);
        Self { in_flight, untracked, began: shared.claim_number() }
    }

    pub(super) fn sessions(&self) -> &ActiveSessions {
        self.in_flight.sessions()
    }

    /// Whether [`apply_response`](Self::apply_response) may find a change in the response.
    #[inline(always)]
    pub(super) fn may_update<B>(&self, response: &Response<B>) -> bool {
        let InFlight { shared, generation, .. } = &self.in_flight;
        match &shared.protocol {
            ProtocolKind::Header(protocol) => {
                !response.extensions().is_empty()
                    || (protocol.adopts() && self.untracked.is_some())
                    || generation.as_ref().is_some_and(|generation| generation.is_doubted())
                    || protocol.may_update(response.headers(), generation.as_ref().map(|generation| &generation.id))
            }
            ProtocolKind::Other(_) => true,
        }
    }

    #[inline(always)]
    pub(super) fn phase(&self) -> Phase {
        self.in_flight.shared.phase()
    }

    /// The request, as the protocol gets it. With the preset, `None` unless the request has a valid id that is not active.
    fn request_info(&self, method: &Method) -> Option<RequestInfo> {
        let generation = self.in_flight.generation.as_ref();
        if matches!(self.in_flight.shared.protocol, ProtocolKind::Header(_)) && self.untracked.is_none() {
            return None;
        }
        let id = generation.map(|generation| &generation.id).or(self.untracked.as_deref());
        Some(RequestInfo { method: method.clone(), id: id.cloned(), is_tracked: generation.is_some() })
    }

    /// Applies the changes that the response declares: the handler's first, which take precedence, then the protocol's.
    /// Returns the wait for the records of the sessions that it starts, if there is a registry.
    #[inline(never)]
    pub(super) fn apply_response(
        &mut self,
        method: &Method,
        response: &mut response::Parts,
    ) -> Result<Option<RecordWait>, HandleClosed> {
        let request = self.request_info(method);
        let request = request.as_ref();
        if let Some(generation) = &self.in_flight.generation
            && generation.is_doubted()
            && shows_session(response.status)
        {
            generation.trust();
        }
        let tracked = self.in_flight.generation.as_ref().map(|generation| &generation.id);
        // Short paths for the most frequent responses: the session continues, or one starts.
        if let (ProtocolKind::Header(protocol), false) = (&self.in_flight.shared.protocol, has_update(response))
            && let Some(id) = protocol.sole_id(&response.headers)
        {
            if tracked.is_some_and(|tracked| tracked.as_bytes() == id) {
                return Ok(None);
            }
            if let Some(id) = protocol.starting_id(id, response) {
                let policy = protocol.new_id_policy();
                if policy != OnNewId::Keep && self.in_flight.generation.is_some() {
                    return self.apply_new_id(policy, request.and_then(RequestInfo::id), Session::new(id));
                }
                let start = self.note_from_header(request.and_then(RequestInfo::id), Session::new(id))?;
                return Ok(start.map(|start| self.record_wait(vec![start])));
            }
        }
        let carried = request.map_or(tracked, RequestInfo::id).cloned();
        // Before the handler's update is removed: `adopt` depends on whether there is one.
        let from_protocol = match (&self.in_flight.shared.protocol, request) {
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
        let sessions = &self.in_flight.shared.sessions;
        let (source, activity) = (NoteSource::ResponseHead(self.began, Origin::Made), Some(self.in_flight.activity));
        let old = self.in_flight.generation.clone().filter(|_| !self.in_flight.shared.is_tracked(&new.id));
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
        let sessions = &self.in_flight.shared.sessions;
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
                match self.in_flight.generation.as_ref().filter(|generation| generation.id == id) {
                    // This response must not end a later generation of the same id.
                    Some(generation) => sessions.end_generation(generation, reason, Scope::Everywhere),
                    None => sessions.end(id, reason),
                };
                Ok(None)
            }
            SessionChange::Doubted(id) => {
                match self.in_flight.generation.as_ref().filter(|generation| generation.id == id) {
                    Some(generation) => sessions.inner.housekeeper.doubt(generation),
                    None => {
                        let generation = sessions.inner.tracker.find(id.as_bytes());
                        generation.iter().for_each(|generation| sessions.inner.housekeeper.doubt(generation));
                    }
                }
                Ok(None)
            }
            SessionChange::Compacted(old, session) => {
                let only = self.in_flight.generation.as_ref().filter(|generation| generation.id == old);
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
        let sessions = &self.in_flight.shared.sessions;
        if carried == Some(&session.id) {
            // Filtered, because the exchange may belong to another session that the handler has just started.
            if let Some(generation) =
                self.in_flight.generation.as_ref().filter(|generation| generation.id == session.id)
            {
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
        let is_free = self.in_flight.generation.as_ref().is_none_or(|generation| !generation.is_active());
        is_free.then_some(self.in_flight.activity)
    }

    /// The exchange belongs to the noted session from here on, if that has started with its `activity`.
    fn attach(&mut self, noted: Noted, activity: Option<Activity>) -> Result<Option<Arc<Generation>>, HandleClosed> {
        match noted {
            Noted::Closed => Err(HandleClosed),
            Noted::Started(generation) | Noted::AlreadyActive(generation) => {
                let waits = self.delays_head(&generation).then(|| Arc::clone(&generation));
                if activity.is_some()
                    && let Some(ended) = self.in_flight.generation.replace(generation)
                {
                    self.in_flight.end_activity(&ended);
                }
                Ok(waits)
            }
            Noted::Tombstoned => Ok(None),
        }
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
