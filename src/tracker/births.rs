//! Births: how a generation becomes active, and what a note of one that is active changes.

use std::sync::Arc;

use super::{
    Tracker,
    chain::Released,
    clock::{Clock, Nanos},
    entry::{Entry, Load, Scope},
    shard::Shard,
};
use crate::{
    session::{Phase, Session, SessionId},
    sync::Ordering,
};

/// Who says that a session is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Voice {
    /// The host, by a note: the details are replaced, by none if there are none.
    Host,
    /// The host, by a signal or a guard: as above, but none replace no details.
    Said,
    /// A head in which the id stands: as above, and it does not wake the dead.
    Head,
}

/// What came of a note.
#[derive(Debug)]
pub(crate) enum Note {
    /// It made this generation.
    Born(Arc<Entry>),
    /// The id was active, and has its new details.
    Known(Arc<Entry>),
    /// It was a head's word only, and the session is over.
    Dead,
    /// The handle is closed.
    Refused,
}

impl Tracker {
    /// With `load`, the session is busy from here on: under the lock, so that nobody finds it at rest in between.
    pub(crate) fn note(&self, session: Session, voice: Voice, load: Option<Load>) -> Note {
        let busy = |entry: &Entry| load.into_iter().for_each(|load| entry.take_up(load));
        let hash = self.hash(session.id.as_bytes());
        let mut released = Released::default();
        let note = {
            let mut shard = self.shard(hash);
            if let Some(entry) = shard.find_active(hash, session.id.as_bytes()) {
                if voice == Voice::Host || !session.is_bare() {
                    self.replace_details(entry, session);
                }
                busy(entry);
                return Note::Known(Arc::clone(entry));
            }
            // Read after the lock was taken: a sweep that has passed this shard has stored the phase before.
            if self.phase() == Phase::Closed {
                return Note::Refused;
            }
            let now = self.clock.now();
            if voice == Voice::Head && shard.tombstones.has(hash, Clock::tick(now)) {
                return Note::Dead;
            }
            if voice != Voice::Head {
                shard.tombstones.clear(hash);
            }
            let entry = self.birth(session, now, None);
            busy(&entry);
            let waits = shard.insert(hash, &entry, |entry| self.hash_of(entry));
            self.settle_birth(&mut shard, hash, &entry, waits, &mut released);
            Note::Born(entry)
        };
        self.release(released);
        note
    }

    /// Replaces the details of this very generation, unless it is over or there are none.
    pub(crate) fn set_details(&self, entry: &Arc<Entry>, session: Session) {
        if !session.is_bare() {
            let _claims_wait = self.shard(self.hash_of(entry));
            if entry.is_active() {
                self.replace_details(entry, session);
            }
        }
    }

    /// Under the shard's lock.
    pub(super) fn replace_details(&self, entry: &Arc<Entry>, session: Session) {
        if self.ledger.is_some() && entry.session() != session {
            entry.set_details(session);
            self.record_details(entry);
        } else {
            entry.set_details(session);
        }
    }

    /// The number of a generation that does not become active by it: of one that began elsewhere, or goes on anew.
    pub(super) fn number(&self) -> u64 {
        let number = 1 + self.totals.generations.fetch_add(1, Ordering::SeqCst);
        self.totals.claimed.fetch_add(1, Ordering::SeqCst);
        number
    }

    #[inline]
    pub(super) fn birth(&self, session: Session, now: Nanos, resumed_from: Option<SessionId>) -> Arc<Entry> {
        let generation = 1 + self.totals.generations.fetch_add(1, Ordering::SeqCst);
        self.set_tick(now);
        Arc::new(Entry::new(session, generation, now, resumed_from))
    }

    /// The part of a birth after the insertion: its start, unless that waits for ends or for the record, and in `Closing`
    /// its end.
    #[inline]
    pub(super) fn settle_birth(
        &self,
        shard: &mut Shard,
        hash: u64,
        entry: &Arc<Entry>,
        waits: bool,
        released: &mut Released,
    ) {
        released.telling.born(entry);
        self.record_birth(entry);
        if !waits && self.ledger.is_none() {
            self.begin(shard, entry, released);
        }
        if self.phase() >= Phase::Closing {
            if self.is_late(entry) {
                entry.set_given_up(true);
            }
            if self.ends_births {
                let ending = self.ending(self.stop_reason(), Scope::Here);
                self.owe(shard, hash, entry, ending, released);
            }
        }
    }

    /// Whether it was born after the drain had begun, in front of a server whose `finish` waits for it. Else a steady
    /// stream of births would use up the drain's time.
    #[inline]
    pub(crate) fn is_late(&self, entry: &Entry) -> bool {
        entry.generation >= self.late_from.load(Ordering::SeqCst)
    }

    /// What is born from now on is not the drain's to wait for.
    pub(crate) fn begin_late(&self) {
        let next = 1 + self.totals.generations.load(Ordering::SeqCst);
        let _ = self.late_from.compare_exchange(u64::MAX, next, Ordering::SeqCst, Ordering::SeqCst);
    }
}
