//! One shard of the tracker: what its lock guards, and the counts that balance at every moment.

use std::sync::Arc;

use hashbrown::{HashMap, HashTable};

use super::{
    entry::{Claim, Entry},
    tombstones::Tombstones,
};
use crate::session::SessionId;

#[derive(Debug, Default)]
pub(super) struct Shard {
    /// The active generations.
    pub(super) table: HashTable<Arc<Entry>>,
    /// Claimed generations with hooks to come, the latest of each id: the next generation queues behind it.
    claimed: HashTable<Arc<Entry>>,
    /// Earlier ones, by generation.
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
    /// Let go of, and other replicas still hold it.
    pub(crate) others: u64,
    /// Ended by somebody else.
    pub(crate) gone: u64,
    /// Left to whoever comes after us.
    pub(crate) handed_over: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        let Self { births, active, owed, ended, failed, forgotten, kept, aborted, others, gone, handed_over } = other;
        self.births += births;
        self.active += active;
        self.owed += owed;
        self.ended += ended;
        self.failed += failed;
        self.forgotten += forgotten;
        self.kept += kept;
        self.aborted += aborted;
        self.others += others;
        self.gone += gone;
        self.handed_over += handed_over;
    }
}

impl Shard {
    pub(super) fn find_active(&self, hash: u64, id: &[u8]) -> Option<&Arc<Entry>> {
        self.table.find(hash, |entry| entry.id.as_bytes() == id)
    }

    /// Adds an active generation, to an id that has none. If an earlier one has hooks to come, this one starts after it.
    pub(super) fn insert(&mut self, hash: u64, entry: &Arc<Entry>, rehash: impl Fn(&Arc<Entry>) -> u64) {
        if let Ok(slot) = self.claimed.find_entry(hash, |other| other.id == entry.id) {
            let (before, _) = slot.remove();
            before.precede(entry);
            self.displaced.insert(before.generation, before);
        }
        self.table.insert_unique(hash, Arc::clone(entry), rehash);
        self.counts.births += 1;
        self.counts.active += 1;
    }

    /// Adds a claimed generation; the next one of its id starts after it, if there is none yet.
    pub(super) fn insert_owed(&mut self, hash: u64, entry: &Arc<Entry>, rehash: impl Fn(&Arc<Entry>) -> u64) {
        let is_there = |other: &Arc<Entry>| other.id == entry.id;
        if self.table.find(hash, is_there).or_else(|| self.claimed.find(hash, is_there)).is_some() {
            self.displaced.insert(entry.generation, Arc::clone(entry));
        } else {
            self.claimed.insert_unique(hash, Arc::clone(entry), rehash);
        }
    }

    /// Takes a generation out of the active ones: the claim. It stays findable while it has hooks to come.
    pub(super) fn claim(&mut self, hash: u64, entry: &Arc<Entry>, rehash: impl Fn(&Arc<Entry>) -> u64) {
        if let Ok(slot) = self.table.find_entry(hash, |other| Arc::ptr_eq(other, entry)) {
            let (entry, _) = slot.remove();
            self.claimed.insert_unique(hash, entry, rehash);
            self.counts.active -= 1;
        }
    }

    /// As [`claim`](Self::claim), for all of them; their number is up to the size of the shard, so no entry is moved
    /// one by one where that can be helped. Each is still to be claimed by itself.
    pub(super) fn claim_all(&mut self, rehash: impl Fn(&Arc<Entry>) -> u64) -> Vec<Arc<Entry>> {
        let all: Vec<_> = self.table.iter().cloned().collect();
        if self.claimed.is_empty() {
            self.claimed = std::mem::take(&mut self.table);
        } else {
            for entry in self.table.drain() {
                self.claimed.insert_unique(rehash(&entry), entry, &rehash);
            }
        }
        self.counts.active -= all.len() as u64;
        all
    }

    /// Lets go of a claimed generation that has no hooks to come.
    pub(super) fn remove(&mut self, hash: u64, entry: &Arc<Entry>) {
        if let Ok(slot) = self.claimed.find_entry(hash, |other| Arc::ptr_eq(other, entry)) {
            slot.remove();
        } else {
            self.displaced.remove(&entry.generation);
        }
    }

    pub(super) fn active(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.table.iter()
    }

    /// Every generation of `id` that is not over.
    pub(super) fn generations(&self, hash: u64, id: &SessionId) -> impl Iterator<Item = &Arc<Entry>> {
        let is_meant = |entry: &Arc<Entry>| entry.id == *id;
        let earlier = self.displaced.values().filter(move |entry| entry.id == *id);
        self.table.find(hash, is_meant).into_iter().chain(self.claimed.find(hash, is_meant)).chain(earlier)
    }

    /// Generations whose `session_end` is owed and not over.
    pub(super) fn owed(&self) -> impl Iterator<Item = &Arc<Entry>> {
        let claimed = self.claimed.iter().chain(self.displaced.values());
        claimed.filter(|entry| matches!(entry.claim(), Claim::Owed | Claim::Compacted))
    }
}
