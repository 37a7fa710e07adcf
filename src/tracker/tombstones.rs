//! Ids whose end the host has declared, for a while: a response that still echoes one revives nothing.

use super::{SHARDS, clock::Tick};

/// How many ids all shards remember together, at the least: one shard has more to remember than another.
const CAPACITY: usize = 65_536;

/// How many one shard remembers: twice its share.
const CAPACITY_PER_SHARD: usize = 2 * CAPACITY / SHARDS;

/// For how long, in ticks: 30 s.
pub(super) const TOMBSTONE_LIFETIME: Tick = 3000;

/// The ring of one shard: keyed hashes, and when they were set. A new one takes the place of the oldest.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    /// Some bits of each hash, side by side: nearly every look finds none of them equal.
    fingerprints: Vec<u16>,
    /// The hashes, and since when.
    hashes: Vec<(u64, Tick)>,
    next: usize,
}

impl Tombstones {
    pub(super) fn set(&mut self, hash: u64, now: Tick) {
        // One end may have two reasons to be remembered.
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

    /// The host says that it lives.
    pub(super) fn clear(&mut self, hash: u64) {
        // From here on it is the hash of somebody else.
        self.for_each_match(hash, |(hash, _)| *hash = !*hash);
    }

    pub(super) fn contains(&mut self, hash: u64, now: Tick) -> bool {
        let mut found = false;
        self.for_each_match(hash, |(_, set)| found |= now.wrapping_sub(*set) <= TOMBSTONE_LIFETIME);
        found
    }

    fn for_each_match(&mut self, hash: u64, mut f: impl FnMut(&mut (u64, Tick))) {
        let fingerprint = fingerprint(hash);
        // Without an early exit, so that it is done many at a time.
        if self.fingerprints.iter().fold(false, |any, other| any | (*other == fingerprint)) {
            self.hashes.iter_mut().filter(|(other, _)| *other == hash).for_each(&mut f);
        }
    }
}

/// Bits that do not choose the shard.
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
