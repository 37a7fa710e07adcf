//! Tombstones: ids that the host has ended in the last 30 s. A late response that still carries one does not revive it.
//!
//! Why no cache from a crate: each shard's ring is guarded by the shard's lock, which the claim holds anyway. All rings
//! together take at most 2.3 MB, and a lookup compares 64 fingerprints of 2 bytes.

use super::{SHARDS, clock::Tick};

/// The ids that all shards remember together, at least.
const CAPACITY: usize = 65_536;

/// Twice the share of one shard, because hashes spread unevenly.
const CAPACITY_PER_SHARD: usize = 2 * CAPACITY / SHARDS;

/// 30 s.
pub(super) const TOMBSTONE_LIFETIME: Tick = 3000;

/// The ring of one shard. A new tombstone replaces the oldest.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    /// 16 bits of each hash, contiguous: most lookups end here.
    fingerprints: Vec<u16>,
    /// Keyed hashes, and when each was set.
    hashes: Vec<(u64, Tick)>,
    next: usize,
}

impl Tombstones {
    pub(super) fn set(&mut self, hash: u64, now: Tick) {
        // One end may set its tombstone twice: by the host, and in `Closing`.
        if let Some(last) = self.next.checked_sub(1)
            && self.hashes[last].0 == hash
        {
            self.hashes[last].1 = now;
            return;
        }
        if self.fingerprints.len() < CAPACITY_PER_SHARD {
            self.fingerprints.push(fingerprint(hash));
            self.hashes.push((hash, now));
            self.next = self.fingerprints.len();
        } else {
            let oldest = self.next % CAPACITY_PER_SHARD;
            (self.fingerprints[oldest], self.hashes[oldest]) = (fingerprint(hash), (hash, now));
            self.next = oldest + 1;
        }
    }

    pub(super) fn clear(&mut self, hash: u64) {
        // The slot stays in the ring, under a hash that is not this one.
        self.for_each_match(hash, |(hash, _)| *hash = !*hash);
    }

    pub(super) fn contains(&mut self, hash: u64, now: Tick) -> bool {
        let mut found = false;
        self.for_each_match(hash, |(_, set)| found |= now.wrapping_sub(*set) <= TOMBSTONE_LIFETIME);
        found
    }

    fn for_each_match(&mut self, hash: u64, mut f: impl FnMut(&mut (u64, Tick))) {
        let fingerprint = fingerprint(hash);
        // No early exit, so the loop is vectorised.
        if self.fingerprints.iter().fold(false, |any, other| any | (*other == fingerprint)) {
            self.hashes.iter_mut().filter(|(other, _)| *other == hash).for_each(&mut f);
        }
    }
}

/// These bits do not choose the shard.
const fn fingerprint(hash: u64) -> u16 {
    hash as u16
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn g12_tombstones_are_bounded_in_number_and_in_time() {
        let mut tombstones = Tombstones::default();
        for hash in 0..10 * CAPACITY as u64 {
            tombstones.set(hash, 7);
        }
        assert_eq!((tombstones.fingerprints.len(), tombstones.hashes.len()), (CAPACITY_PER_SHARD, CAPACITY_PER_SHARD));
        assert!(tombstones.contains(10 * CAPACITY as u64 - 1, 7 + TOMBSTONE_LIFETIME) && !tombstones.contains(0, 7));
        assert!(!tombstones.contains(10 * CAPACITY as u64 - 1, 8 + TOMBSTONE_LIFETIME));
    }
}
