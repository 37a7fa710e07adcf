//! Compaction: one session ends and another begins in its place, in one step.

use std::sync::{Arc, PoisonError};

use super::{
    Activity, Generation, NoteSource, Noted, PendingEnd, Tracker, clock::Clock, generation::Scope, order::AfterUnlock,
    shard::ShardPair,
};
use crate::session::{EndReason, Phase, Session};

impl Tracker {
    /// Ends `old` with reason `compaction` and notes `new`, in one step. With `generation`, only that generation of
    /// `old` counts. Says whether `old` was tracked, and what came of `new`.
    ///
    /// A successor without details takes over those of `old`, but for the transcript's file. With `load`, it is busy
    /// from here on.
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
        let mut after = AfterUnlock::default();
        let result = {
            let mut shards = ShardPair::lock(&self.shards, Self::index(old_hash), Self::index(new_hash));
            let is_meant = |generation: &&Arc<Generation>| only.is_none_or(|meant| Arc::ptr_eq(meant, generation));
            let old = shards.first().find_active(old_hash, old).filter(is_meant).cloned();
            if let Some(old) = old.as_ref().filter(|_| new.is_bare()) {
                new = Session { id: new.id, session_file: None, ..old.session() };
            }
            let ending = PendingEnd {
                next: Some(Box::new(new.clone())),
                ..self.ending(EndReason::Compaction, Scope::Everywhere)
            };
            let known = shards.second().find_active(new_hash, new.id.as_bytes()).cloned();
            let note = match known {
                Some(generation) => {
                    if old.as_ref().is_some_and(|old| Arc::ptr_eq(old, &generation)) {
                        busy(&generation);
                        return (true, Noted::AlreadyActive(generation)); // to itself: nothing to do
                    }
                    if source == NoteSource::Handle || !new.is_bare() {
                        self.replace_details(&generation, new);
                    }
                    busy(&generation);
                    Noted::AlreadyActive(generation)
                }
                None if source == NoteSource::ResponseHeader
                    && shards.second().tombstones.has(new_hash, Clock::tick(ending.at)) =>
                {
                    Noted::Tombstoned
                }
                None if self.phase() == Phase::Closed => return (false, Noted::Closed),
                None => {
                    if source != NoteSource::ResponseHeader {
                        shards.second().tombstones.clear(new_hash);
                    }
                    let generation = self.new_generation(new, ending.at, old.as_ref().map(|old| old.id.clone()));
                    busy(&generation);
                    shards.second().insert(new_hash, &generation, |generation| self.hash_of(generation));
                    if let Some(old) = &old {
                        old.add_successor(&generation);
                    }
                    Noted::Started(generation)
                }
            };
            if let Some(old) = &old {
                shards.first().tombstones.set(old_hash, Clock::tick(ending.at));
                self.claim_with_end(shards.first(), old_hash, old, ending, &mut after);
                // Its streams listen on: to the successor.
                match &note {
                    Noted::Started(generation) | Noted::AlreadyActive(generation) => {
                        generation.add_listeners(old.take_listeners())
                    }
                    // There is none, and nobody else would ever end them.
                    Noted::Tombstoned | Noted::Closed => after.streams.append(&mut old.take_listeners()),
                }
            }
            if let Noted::Started(generation) = &note {
                self.after_insert(shards.second(), new_hash, generation, generation.has_predecessors(), &mut after);
            }
            (old.is_some(), note)
        };
        drop(compaction_lock);
        self.apply_deferred(after);
        result
    }
}
