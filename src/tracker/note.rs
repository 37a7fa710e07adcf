//! Notes: a new generation starts, or the details of an active one change.

use std::sync::Arc;

use super::{
    ClaimNumber, Tracker,
    clock::{Clock, Nanos},
    generation::{Activity, Generation, Scope},
    order::AfterUnlock,
    shard::Shard,
};
use crate::{
    session::{Phase, Session, SessionId},
    sync::Ordering,
};

/// Where a note comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoteSource {
    /// A call of `note`: replaces the details, also by none.
    Handle,
    /// A `SessionUpdate` or a guard: a bare session leaves the details as they are.
    Update(Origin),
    /// A response head: as `Update`, but it starts nothing if a generation of the id was claimed after the request
    /// began. So many claims had been made then.
    ResponseHead(ClaimNumber, Origin),
}

/// Where an id comes from. It decides whether a session may start while the registry does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The host has just made it: it is in the response and not in the request. No other process can hold it, so the
    /// session starts.
    Made,
    /// The host has named it, not in an answer. It waits for the registry, or for the drain, which ends it.
    Noted,
    /// The request carried it. Another process may hold it, so it waits for the registry. A drain releases it.
    Carried,
}

impl NoteSource {
    pub(super) const fn request_began(self) -> Option<ClaimNumber> {
        match self {
            Self::ResponseHead(began, _) => Some(began),
            Self::Handle | Self::Update(_) => None,
        }
    }

    pub(super) const fn origin(self) -> Origin {
        match self {
            Self::Handle => Origin::Noted,
            Self::Update(origin) | Self::ResponseHead(_, origin) => origin,
        }
    }
}

/// The outcome of a note.
#[derive(Debug)]
pub(crate) enum Noted {
    /// A new generation.
    Started(Arc<Generation>),
    /// The id was active.
    AlreadyActive(Arc<Generation>),
    /// A response head named an id whose generation was claimed after the request began.
    Tombstoned,
    /// The handle is closed.
    Closed,
}

impl Tracker {
    /// With `activity`, the session is busy from this call on: it begins under the lock, so no sweep sees the session
    /// idle in between.
    pub(crate) fn note(&self, session: Session, source: NoteSource, activity: Option<Activity>) -> Noted {
        let busy =
            |generation: &Generation| activity.into_iter().for_each(|activity| generation.begin_activity(activity));
        let hash = self.hash(session.id.as_bytes());
        let parent = self.parent_of(&session);
        let mut after_unlock = AfterUnlock::default();
        let note = {
            let mut shard = self.shard(hash);
            if let Some(generation) = shard.find_active(hash, session.id.as_bytes()) {
                if source == NoteSource::Handle || !session.is_bare() {
                    self.replace_details(generation, session);
                }
                busy(generation);
                // A host may note as a heartbeat.
                let now = self.clock.now();
                generation.touch(Clock::tick(now));
                generation.trust();
                if self.outbox.is_some() {
                    generation.note_again(now);
                }
                return Noted::AlreadyActive(Arc::clone(generation));
            }
            // Read under the lock: a sweep that has passed this shard stored the phase before.
            if self.phase() == Phase::Closed {
                return Noted::Closed;
            }
            if source.request_began().is_some_and(|began| shard.tombstones.claimed_since(hash, began)) {
                return Noted::Tombstoned;
            }
            let now = self.clock.now();
            let generation = self.new_generation(session, now, None, parent, &mut after_unlock);
            busy(&generation);
            let has_predecessor = shard.insert(hash, &generation, |generation| self.hash_of(generation));
            self.after_insert(&mut shard, hash, &generation, has_predecessor, source.origin(), &mut after_unlock);
            Noted::Started(generation)
        };
        self.apply_after_unlock(after_unlock);
        note
    }

    /// Replaces the details of exactly this generation, if it is active and `session` has details.
    pub(crate) fn set_details(&self, generation: &Arc<Generation>, session: Session) {
        if !session.is_bare() {
            let _shard = self.shard(self.hash_of(generation));
            if generation.is_active() {
                self.replace_details(generation, session);
            }
        }
    }

    /// Sessions that start from now on are late. Only the first call counts.
    pub(crate) fn mark_late_starts(&self) {
        let next = 1 + self.totals.generations.load(Ordering::SeqCst);
        let _ = self.first_late_number.compare_exchange(u64::MAX, next, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Whether it started after the drain did, and `finish` waits for it. The drain does not: steady traffic would use
    /// up its budget.
    #[inline]
    pub(crate) fn is_late_start(&self, generation: &Generation) -> bool {
        generation.number >= self.first_late_number.load(Ordering::SeqCst)
    }

    /// Must be called under the shard's lock.
    pub(super) fn replace_details(&self, generation: &Arc<Generation>, mut session: Session) {
        // It is set when the session starts.
        session.parent = generation.parent();
        if self.outbox.is_some() && generation.session() != session {
            generation.set_details(session);
            self.record_details(generation);
        } else {
            generation.set_details(session);
        }
    }

    /// `parent` is the [`parent_of`](Self::parent_of) the session, read before the lock.
    #[inline]
    pub(super) fn new_generation(
        &self,
        mut session: Session,
        now: Nanos,
        resumed_from: Option<SessionId>,
        parent: Option<Arc<Generation>>,
        after_unlock: &mut AfterUnlock,
    ) -> Arc<Generation> {
        let number = 1 + self.totals.generations.fetch_add(1, Ordering::SeqCst);
        self.set_tick(now);
        let parent_id = session.parent.take();
        let generation = Arc::new(Generation::new(session, number, now, resumed_from));
        if let Some(id) = parent_id {
            self.set_parent(&generation, id, parent, after_unlock);
        }
        generation
    }

    /// The number of a generation that is not inserted as active: it started elsewhere, or goes on as a new generation.
    pub(super) fn next_number(&self) -> u64 {
        let number = 1 + self.totals.generations.fetch_add(1, Ordering::SeqCst);
        self.totals.claimed.fetch_add(1, Ordering::SeqCst);
        number
    }

    /// Runs the start, unless that waits for predecessors or for the record. In `Closing` it claims the generation.
    #[inline]
    pub(super) fn after_insert(
        &self,
        shard: &mut Shard,
        hash: u64,
        generation: &Arc<Generation>,
        has_predecessor: bool,
        origin: Origin,
        after_unlock: &mut AfterUnlock,
    ) {
        after_unlock.effects.started(generation);
        self.record_start(generation, origin);
        if !has_predecessor && self.outbox.is_none() {
            self.start(shard, generation, after_unlock);
        }
        if self.phase() >= Phase::Closing {
            if self.is_late_start(generation) {
                generation.set_given_up(true);
            }
            if self.ends_late_starts {
                let end = self.pending_end(self.shutdown_reason(), Scope::Here);
                self.claim_with_end(shard, hash, generation, end, after_unlock);
            }
        }
    }
}
