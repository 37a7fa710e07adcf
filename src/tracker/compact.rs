//! Compaction: one session ends and its successor starts, in one step.

use std::sync::{Arc, PoisonError};

use super::{
    Activity, Generation, NoteSource, Noted, PendingEnd, Tracker, clock::Clock, generation::Scope, order::AfterUnlock,
    shard::ShardPair,
};
use crate::session::{EndReason, Phase, Session};

impl Tracker {
    /// Ends `old` with reason `compaction` and notes `new`, in one step. With `only`, no other generation of `old` is
    /// ended. Returns whether `old` was active, and the outcome of the note.
    ///
    /// A successor without details inherits those of `old`, except the session file. With `activity`, the successor is
    /// busy from this call on.
    pub(crate) fn compact(
        &self,
        old: &[u8],
        only: Option<&Arc<Generation>>,
        mut new: Session,
        source: NoteSource,
        activity: Option<Activity>,
    ) -> (bool, Noted) {
        let busy =
            |generation: &Generation| activity.into_iter().for_each(|activity| generation.begin_activity(activity));
        let compaction_lock = self.compaction_lock.read().unwrap_or_else(PoisonError::into_inner);
        let (old_hash, new_hash) = (self.hash(old), self.hash(new.id.as_bytes()));
        let mut after_unlock = AfterUnlock::default();
        let result = {
            let mut shards = ShardPair::lock(&self.shards, Self::index(old_hash), Self::index(new_hash));
            let is_meant = |generation: &&Arc<Generation>| only.is_none_or(|meant| Arc::ptr_eq(meant, generation));
            let old = shards.first().find_active(old_hash, old).filter(is_meant).cloned();
            if let Some(old) = old.as_ref().filter(|_| new.is_bare()) {
                new = Session { id: new.id, session_file: None, ..old.session() };
            }
            let end = PendingEnd {
                next: Some(Box::new(new.clone())),
                ..self.pending_end(EndReason::Compaction, Scope::Everywhere)
            };
            let known = shards.second().find_active(new_hash, new.id.as_bytes()).cloned();
            let note = match known {
                Some(generation) => {
                    if old.as_ref().is_some_and(|old| Arc::ptr_eq(old, &generation)) {
                        busy(&generation);
                        // A compaction into itself does nothing.
                        return (true, Noted::AlreadyActive(generation));
                    }
                    if source == NoteSource::Handle || !new.is_bare() {
                        self.replace_details(&generation, new);
                    }
                    busy(&generation);
                    Noted::AlreadyActive(generation)
                }
                None if source == NoteSource::ResponseHeader
                    && shards.second().tombstones.contains(new_hash, Clock::tick(end.at)) =>
                {
                    Noted::Tombstoned
                }
                None if self.phase() == Phase::Closed => return (false, Noted::Closed),
                None => {
                    if source != NoteSource::ResponseHeader {
                        shards.second().tombstones.clear(new_hash);
                    }
                    let generation = self.new_generation(new, end.at, old.as_ref().map(|old| old.id.clone()));
                    busy(&generation);
                    shards.second().insert(new_hash, &generation, |generation| self.hash_of(generation));
                    if let Some(old) = &old {
                        old.add_successor(&generation);
                    }
                    Noted::Started(generation)
                }
            };
            if let Some(old) = &old {
                shards.first().tombstones.set(old_hash, Clock::tick(end.at));
                self.claim_with_end(shards.first(), old_hash, old, end, &mut after_unlock);
                // Its streams now wait for the end of the successor.
                match &note {
                    Noted::Started(generation) | Noted::AlreadyActive(generation) => {
                        generation.add_listeners(old.take_listeners())
                    }
                    // There is no successor: the streams end with `old`.
                    Noted::Tombstoned | Noted::Closed => after_unlock.listeners.append(&mut old.take_listeners()),
                }
            }
            if let Noted::Started(generation) = &note {
                self.after_insert(
                    shards.second(),
                    new_hash,
                    generation,
                    generation.has_predecessors(),
                    &mut after_unlock,
                );
            }
            (old.is_some(), note)
        };
        drop(compaction_lock);
        self.apply_after_unlock(after_unlock);
        result
    }
}
