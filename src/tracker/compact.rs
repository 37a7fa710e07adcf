//! Compaction: one session ends and another begins in its place, in one step.

use std::sync::{Arc, PoisonError};

use super::{Ending, Entry, Load, Note, Tracker, Voice, chain::Released, clock::Clock, entry::Scope, two::Two};
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
        generation: Option<&Arc<Entry>>,
        mut new: Session,
        voice: Voice,
        load: Option<Load>,
    ) -> (bool, Note) {
        let busy = |entry: &Entry| load.into_iter().for_each(|load| entry.take_up(load));
        let moving = self.moving.read().unwrap_or_else(PoisonError::into_inner);
        let (old_hash, new_hash) = (self.hash(old), self.hash(new.id.as_bytes()));
        let mut released = Released::default();
        let result = {
            let mut shards = Two::lock(&self.shards, Self::index(old_hash), Self::index(new_hash));
            let is_meant = |entry: &&Arc<Entry>| generation.is_none_or(|meant| Arc::ptr_eq(meant, entry));
            let old = shards.first().find_active(old_hash, old).filter(is_meant).cloned();
            if let Some(old) = old.as_ref().filter(|_| new.is_bare()) {
                new = Session { id: new.id, session_file: None, ..old.session() };
            }
            let ending =
                Ending { next: Some(Box::new(new.clone())), ..self.ending(EndReason::Compaction, Scope::Everywhere) };
            let known = shards.second().find_active(new_hash, new.id.as_bytes()).cloned();
            let note = match known {
                Some(entry) => {
                    if old.as_ref().is_some_and(|old| Arc::ptr_eq(old, &entry)) {
                        busy(&entry);
                        return (true, Note::Known(entry)); // to itself: nothing to do
                    }
                    if voice == Voice::Host || !new.is_bare() {
                        self.replace_details(&entry, new);
                    }
                    busy(&entry);
                    Note::Known(entry)
                }
                None if voice == Voice::Head && shards.second().tombstones.has(new_hash, Clock::tick(ending.at)) => {
                    Note::Dead
                }
                None if self.phase() == Phase::Closed => return (false, Note::Refused),
                None => {
                    if voice != Voice::Head {
                        shards.second().tombstones.clear(new_hash);
                    }
                    let entry = self.birth(new, ending.at, old.as_ref().map(|old| old.id.clone()));
                    busy(&entry);
                    shards.second().insert(new_hash, &entry, |entry| self.hash_of(entry));
                    if let Some(old) = &old {
                        old.precede(&entry);
                    }
                    Note::Born(entry)
                }
            };
            if let Some(old) = &old {
                shards.first().tombstones.set(old_hash, Clock::tick(ending.at));
                self.owe(shards.first(), old_hash, old, ending, &mut released);
                // Its streams listen on: to the successor.
                match &note {
                    Note::Born(entry) | Note::Known(entry) => entry.add_listeners(old.take_listeners()),
                    // There is none, and nobody else would ever end them.
                    Note::Dead | Note::Refused => released.streams.append(&mut old.take_listeners()),
                }
            }
            if let Note::Born(entry) = &note {
                self.settle_birth(shards.second(), new_hash, entry, entry.has_predecessors(), &mut released);
            }
            (old.is_some(), note)
        };
        drop(moving);
        self.release(released);
        result
    }
}
