//! One shard of the tracker: what its lock guards, and the counts that balance at every moment.

use std::sync::Arc;

use hashbrown::{HashMap, HashTable};

use super::{
    entry::{Claim, Entry},
    tombstones::Tombstones,
};

#[derive(Debug, Default)]
pub(super) struct Shard {
    /// The latest generation of each id: active, or claimed with hooks to come.
    pub(super) table: HashTable<Arc<Entry>>,
    /// Earlier generations with hooks to come, by generation.
    displaced: HashMap<u64, Arc<Entry>>,
    pub(super) tombstones: Tombstones,
    /// Generations whose end was torn from the middle by a runtime that went away.
    pub(super) aborted: Vec<Arc<Entry>>,
    pub(super) counts: Counts,
}

/// What became of the generations of a tracker. At every moment, `births` is the sum of all the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) births: u64,
    pub(crate) active: u64,
    /// Claimed, and the `session_end` is not over.
    pub(crate) owed: u64,
    pub(crate) ended: u64,
    pub(crate) failed: u64,
    pub(crate) forgotten: u64,
    /// Forgotten by a drain that was told to keep them.
    pub(crate) kept: u64,
    /// The `session_end` was torn from the middle.
    pub(crate) aborted: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        let Self { births, active, owed, ended, failed, forgotten, kept, aborted } = other;
        self.births += births;
        self.active += active;
        self.owed += owed;
        self.ended += ended;
        self.failed += failed;
        self.forgotten += forgotten;
        self.kept += kept;
        self.aborted += aborted;
    }
}

impl Shard {
    pub(super) fn find(&self, hash: u64, id: &[u8]) -> Option<&Arc<Entry>> {
        self.table.find(hash, |entry| entry.id.as_bytes() == id)
    }

    pub(super) fn find_active(&self, hash: u64, id: &[u8]) -> Option<&Arc<Entry>> {
        self.find(hash, id).filter(|entry| entry.is_active())
    }

    /// Makes `entry` the latest generation of its id. An earlier one is either over, or has hooks to come: then
    /// `entry` starts after it.
    pub(super) fn insert(&mut self, hash: u64, entry: &Arc<Entry>, rehash: impl Fn(&Arc<Entry>) -> u64) {
        let same_id = |other: &Arc<Entry>| other.id == entry.id;
        match self.table.entry(hash, same_id, rehash) {
            hashbrown::hash_table::Entry::Occupied(mut slot) => {
                let before = std::mem::replace(slot.get_mut(), Arc::clone(entry));
                before.precede(entry);
                self.displaced.insert(before.generation, before);
            }
            hashbrown::hash_table::Entry::Vacant(slot) => {
                slot.insert(Arc::clone(entry));
            }
        }
        self.counts.births += 1;
        self.counts.active += 1;
    }

    /// Takes out a generation that has no hooks to come.
    pub(super) fn remove(&mut self, hash: u64, entry: &Arc<Entry>) {
        if let Ok(slot) = self.table.find_entry(hash, |other| Arc::ptr_eq(other, entry)) {
            slot.remove();
        } else {
            self.displaced.remove(&entry.generation);
        }
    }

    pub(super) fn active(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.table.iter().filter(|entry| entry.is_active())
    }

    /// Generations whose `session_end` is owed and not over.
    pub(super) fn owed(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.table
            .iter()
            .chain(self.displaced.values())
            .filter(|entry| matches!(entry.claim(), Claim::Owed | Claim::Compacted))
    }
}
