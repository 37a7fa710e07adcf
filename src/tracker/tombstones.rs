//! Ids whose end the host has declared, for a while: a response that still echoes one revives nothing.

use super::{SHARDS, clock::Tick};

/// How many ids all shards remember together, at the least: one shard has more to remember than another.
const IDS: usize = 65_536;

/// How many one shard remembers: twice its share.
const IDS_A_SHARD: usize = 2 * IDS / SHARDS;

/// For how long, in ticks: 30 s.
pub(super) const TICKS: Tick = 3000;

/// The ring of one shard: keyed hashes, and when they were set. A new one takes the place of the oldest.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    /// The lower halves of the hashes, side by side: nearly every look finds none of them equal.
    halves: Vec<u32>,
    /// The upper halves, and since when.
    rest: Vec<(u32, Tick)>,
    next: usize,
}

impl Tombstones {
    pub(super) fn set(&mut self, hash: u64, now: Tick) {
        let (half, rest) = (hash as u32, ((hash >> 32) as u32, now));
        // One end may have two reasons to be remembered.
        if let Some(last) = self.next.checked_sub(1)
            && self.is(last, hash)
        {
            self.rest[last] = rest;
            return;
        }
        if self.halves.len() < IDS_A_SHARD {
            self.halves.push(half);
            self.rest.push(rest);
            self.next = self.halves.len();
        } else {
            let oldest = self.next % IDS_A_SHARD;
            (self.halves[oldest], self.rest[oldest]) = (half, rest);
            self.next = oldest + 1;
        }
    }

    /// The host says that it lives.
    pub(super) fn clear(&mut self, hash: u64) {
        // From here on it is the hash of somebody else.
        self.each(hash, |(upper, _)| *upper = !*upper);
    }

    pub(super) fn has(&mut self, hash: u64, now: Tick) -> bool {
        let mut has = false;
        self.each(hash, |(_, set)| has |= now.wrapping_sub(*set) <= TICKS);
        has
    }

    fn is(&self, index: usize, hash: u64) -> bool {
        self.halves[index] == hash as u32 && self.rest[index].0 == (hash >> 32) as u32
    }

    fn each(&mut self, hash: u64, mut f: impl FnMut(&mut (u32, Tick))) {
        let half = hash as u32;
        // Without an early exit, so that it is done many at a time.
        if self.halves.iter().fold(false, |any, other| any | (*other == half)) {
            for index in 0..self.halves.len() {
                if self.is(index, hash) {
                    f(&mut self.rest[index]);
                }
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn g12_tombstones_are_bounded_in_number_and_in_time() {
        let mut tombstones = Tombstones::default();
        for hash in 0..10 * IDS as u64 {
            tombstones.set(hash, 7);
        }
        assert_eq!((tombstones.halves.len(), tombstones.rest.len()), (IDS_A_SHARD, IDS_A_SHARD));
        assert!(tombstones.has(10 * IDS as u64 - 1, 7 + TICKS) && !tombstones.has(0, 7));
        assert!(!tombstones.has(10 * IDS as u64 - 1, 8 + TICKS));
    }
}
