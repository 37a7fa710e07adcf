//! Compaction: one session ends and its successor starts, in one step.

use std::sync::{Arc, PoisonError};

use super::{
    Activity, Generation, NoteSource, Noted, PendingEnd, Tracker, clock::Clock, generation::Scope, order::AfterUnlock,
    shard::ShardPair,
};
use crate::session::{EndReason, Phase, Session};

/// The outcome of a compaction.
#[derive(Debug)]
pub(crate) struct Compacted {
    pub(crate) ended_old: bool,
    pub(crate) noted: Noted,
    /// The old generation, if it had work, which counts as work of the successor now. The caller has to end one
    /// [`Activity::Work`] of it.
    pub(crate) worked: Option<Arc<Generation>>,
}

impl Tracker {
    /// Ends `old` with reason `compaction` and notes `new`, in one step. With `only`, no other generation of `old` is
    /// ended.
    ///
    /// A successor without details inherits those of `old`, except the session file. It is a child of the same parent,
    /// and the children of `old` become its own. With `activity`, the successor is busy from this call on.
    pub(crate) fn compact(
        &self,
        old: &[u8],
        only: Option<&Arc<Generation>>,
        mut new: Session,
        source: NoteSource,
        activity: Option<Activity>,
    ) -> Compacted {
        let nothing = |ended_old, noted| Compacted { ended_old, noted, worked: None };
        let busy =
            |generation: &Generation| activity.into_iter().for_each(|activity| generation.begin_activity(activity));
        let compaction_lock = self.compaction_lock.read().unwrap_or_else(PoisonError::into_inner);
        let (old_hash, new_hash) = (self.hash(old), self.hash(new.id.as_bytes()));
        let parent = self.parent_of(&new).or_else(|| self.parent_of_active(old));
        let mut after_unlock = AfterUnlock::default();
        let result = {
            let mut shards = ShardPair::lock(&self.shards, Self::index(old_hash), Self::index(new_hash));
            let is_meant = |generation: &&Arc<Generation>| only.is_none_or(|meant| Arc::ptr_eq(meant, generation));
            let old = shards.first().find_active(old_hash, old).filter(is_meant).cloned();
            let mut inherited = None;
            if let Some(old) = &old {
                let parent = new.parent.take();
                // Read once: a compaction of the parent may change it.
                inherited = old.parent_link().filter(|_| parent.is_none());
                if new.is_bare() {
                    new = Session { id: new.id, session_file: None, ..old.session() };
                }
                new.parent = parent.or_else(|| inherited.as_ref().map(|link| link.parent.clone()));
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
                        return nothing(true, Noted::AlreadyActive(generation));
                    }
                    if source == NoteSource::Handle || !new.is_bare() {
                        self.replace_details(&generation, new);
                    }
                    busy(&generation);
                    // As a note: its host knows it.
                    generation.touch(Clock::tick(end.at));
                    generation.trust();
                    if self.outbox.is_some() {
                        generation.note_again(end.at);
                    }
                    Noted::AlreadyActive(generation)
                }
                None if source
                    .request_began()
                    .is_some_and(|began| shards.second().tombstones.claimed_since(new_hash, began)) =>
                {
                    Noted::Tombstoned
                }
                None if self.phase() == Phase::Closed => return nothing(false, Noted::Closed),
                None => {
                    let resumed_from = old.as_ref().map(|old| old.id.clone());
                    let generation = self.new_generation(new, end.at, resumed_from, parent, &mut after_unlock);
                    if let Some(link) = &inherited {
                        generation.inherit_parent_since(link.since);
                    }
                    busy(&generation);
                    shards.second().insert(new_hash, &generation, |generation| self.hash_of(generation));
                    if let Some(old) = &old {
                        old.add_successor(&generation);
                    }
                    Noted::Started(generation)
                }
            };
            let mut worked = None;
            if let Some(old) = &old {
                if let Noted::Started(generation) | Noted::AlreadyActive(generation) = &note {
                    old.set_successor(generation);
                }
                self.claim_with_end(shards.first(), old_hash, old, end, &mut after_unlock);
                match &note {
                    Noted::Started(generation) | Noted::AlreadyActive(generation) => {
                        // Its streams now wait for the end of the successor.
                        generation.add_listeners(old.take_listeners());
                        // No work begins once it is claimed.
                        if old.has_work() {
                            old.begin_activity(Activity::Work);
                            old.pass_on_work(generation);
                            worked = Some(Arc::clone(old));
                        }
                        // Both shards are locked, so no end of the successor comes between.
                        shards.move_children(&old.id, &generation.id, self.claim_number());
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
                    source.origin(),
                    &mut after_unlock,
                );
            }
            Compacted { ended_old: old.is_some(), noted: note, worked }
        };
        drop(compaction_lock);
        self.apply_after_unlock(after_unlock);
        result
    }
}
