//! Births: how a generation becomes active, and what a note of one that is active changes.

use std::sync::Arc;

use super::{
    Tracker,
    clock::{Clock, Nanos},
    generation::{Activity, Generation, Scope},
    order::AfterUnlock,
    shard::Shard,
};
use crate::{
    session::{Phase, Session, SessionId},
    sync::Ordering,
};

/// Who says that a session is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoteSource {
    /// A call of `note`: the details are replaced, by none if there are none.
    Handle,
    /// A `SessionUpdate` or a guard: a bare session leaves the details as they are.
    Update,
    /// An id in a response head: as `Update`, but it never revives a tombstoned id.
    ResponseHeader,
}

/// What came of a note.
#[derive(Debug)]
pub(crate) enum Noted {
    /// A new generation.
    Started(Arc<Generation>),
    /// The id was active, and has its new details.
    AlreadyActive(Arc<Generation>),
    /// A response header named an id that has ended.
    Tombstoned,
    /// The handle is closed.
    Closed,
}

impl Tracker {
    /// With `load`, the session is busy from here on: under the lock, so that nobody finds it at rest in between.
    pub(crate) fn note(&self, session: Session, source: NoteSource, activity: Option<Activity>) -> Noted {
        let busy =
            |generation: &Generation| activity.into_iter().for_each(|activity| generation.begin_activity(activity));
        let hash = self.hash(session.id.as_bytes());
        let mut after = AfterUnlock::default();
        let note = {
            let mut shard = self.shard(hash);
            if let Some(generation) = shard.find_active(hash, session.id.as_bytes()) {
                if source == NoteSource::Handle || !session.is_bare() {
                    self.replace_details(generation, session);
                }
                busy(generation);
                return Noted::AlreadyActive(Arc::clone(generation));
            }
            // Read after the lock was taken: a sweep that has passed this shard has stored the phase before.
            if self.phase() == Phase::Closed {
                return Noted::Closed;
            }
            let now = self.clock.now();
            if source == NoteSource::ResponseHeader && shard.tombstones.has(hash, Clock::tick(now)) {
                return Noted::Tombstoned;
            }
            if source != NoteSource::ResponseHeader {
                shard.tombstones.clear(hash);
            }
            let generation = self.new_generation(session, now, None);
            busy(&generation);
            let waits = shard.insert(hash, &generation, |generation| self.hash_of(generation));
            self.after_insert(&mut shard, hash, &generation, waits, &mut after);
            Noted::Started(generation)
        };
        self.apply_deferred(after);
        note
    }

    /// Replaces the details of this very generation, unless it is over or there are none.
    pub(crate) fn set_details(&self, generation: &Arc<Generation>, session: Session) {
        if !session.is_bare() {
            let _claims_wait = self.shard(self.hash_of(generation));
            if generation.is_active() {
                self.replace_details(generation, session);
            }
        }
    }

    /// Under the shard's lock.
    pub(super) fn replace_details(&self, generation: &Arc<Generation>, session: Session) {
        if self.outbox.is_some() && generation.session() != session {
            generation.set_details(session);
            self.record_details(generation);
        } else {
            generation.set_details(session);
        }
    }

    /// The number of a generation that does not become active by it: of one that began elsewhere, or goes on anew.
    pub(super) fn next_number(&self) -> u64 {
        let number = 1 + self.totals.generations.fetch_add(1, Ordering::SeqCst);
        self.totals.claimed.fetch_add(1, Ordering::SeqCst);
        number
    }

    #[inline]
    pub(super) fn new_generation(
        &self,
        session: Session,
        now: Nanos,
        resumed_from: Option<SessionId>,
    ) -> Arc<Generation> {
        let number = 1 + self.totals.generations.fetch_add(1, Ordering::SeqCst);
        self.set_tick(now);
        Arc::new(Generation::new(session, number, now, resumed_from))
    }

    /// The part of a birth after the insertion: its start, unless that waits for ends or for the record, and in `Closing`
    /// its end.
    #[inline]
    pub(super) fn after_insert(
        &self,
        shard: &mut Shard,
        hash: u64,
        generation: &Arc<Generation>,
        waits: bool,
        after: &mut AfterUnlock,
    ) {
        after.effects.started(generation);
        self.record_start(generation);
        if !waits && self.outbox.is_none() {
            self.start(shard, generation, after);
        }
        if self.phase() >= Phase::Closing {
            if self.is_late_start(generation) {
                generation.set_given_up(true);
            }
            if self.ends_late_starts {
                let ending = self.ending(self.shutdown_reason(), Scope::Here);
                self.claim_with_end(shard, hash, generation, ending, after);
            }
        }
    }

    /// Whether it was born after the drain had begun, in front of a server whose `finish` waits for it. Else a steady
    /// stream of births would use up the drain's time.
    #[inline]
    pub(crate) fn is_late_start(&self, generation: &Generation) -> bool {
        generation.number >= self.late_from.load(Ordering::SeqCst)
    }

    /// What is born from now on is not the drain's to wait for.
    pub(crate) fn expect_late_starts(&self) {
        let next = 1 + self.totals.generations.load(Ordering::SeqCst);
        let _ = self.late_from.compare_exchange(u64::MAX, next, Ordering::SeqCst, Ordering::SeqCst);
    }
}
