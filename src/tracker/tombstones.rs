//! Tombstones: ids whose generation was claimed, each with the number of its claim. A response to a request that began
//! before the claim starts no new generation of the id.
//!
//! Why no cache from a crate: each shard's ring is guarded by the shard's lock, which the claim holds anyway. Before a
//! shutdown all rings together take at most 2.3 MB, and a lookup compares 64 fingerprints of 2 bytes.

use super::SHARDS;

/// The claims that all shards remember together, at least.
const CAPACITY: usize = 65_536;

/// Twice the share of one shard, because hashes spread unevenly.
const CAPACITY_PER_SHARD: usize = 2 * CAPACITY / SHARDS;

/// The number of claims so far, at one moment.
pub(crate) type ClaimNumber = u64;

/// The ring of one shard. A new tombstone replaces the oldest.
#[derive(Debug, Default)]
pub(super) struct Tombstones {
    /// 16 bits of each hash, contiguous: most lookups end here.
    fingerprints: Vec<u16>,
    entries: Vec<Tombstone>,
    next: usize,
}

#[derive(Clone, Copy, Debug)]
struct Tombstone {
    /// The keyed hash of the id.
    hash: u64,
    /// The number of the claim times 4, plus [`IS_END`] and [`IS_DOUBT`].
    claim: u64,
}

/// It was an end with a `session_end`, not a compaction.
const IS_END: u64 = 1;
/// It was the end of a doubted session.
const IS_DOUBT: u64 = 2;

impl Tombstones {
    /// With `keep_all`, no tombstone is replaced: a shutdown ends all sessions at once, and the process exits soon.
    pub(super) fn set(&mut self, hash: u64, claim: ClaimNumber, is_end: bool, keep_all: bool) {
        let (fingerprint, entry) = (fingerprint(hash), Tombstone { hash, claim: claim << 2 | u64::from(is_end) });
        if keep_all || self.fingerprints.len() < CAPACITY_PER_SHARD {
            self.fingerprints.push(fingerprint);
            self.entries.push(entry);
        } else {
            let oldest = self.next % self.fingerprints.len();
            (self.fingerprints[oldest], self.entries[oldest]) = (fingerprint, entry);
            self.next = oldest + 1;
        }
    }

    /// Whether a generation of the id was claimed after the first `began` claims.
    pub(super) fn claimed_since(&self, hash: u64, began: ClaimNumber) -> bool {
        self.any(hash, |claim| claim >> 2 > began)
    }

    /// As [`claimed_since`](Self::claimed_since), and it was an end with a `session_end`, not a compaction.
    pub(super) fn ended_since(&self, hash: u64, began: ClaimNumber) -> bool {
        self.any(hash, |claim| claim & IS_END != 0 && claim >> 2 > began)
    }

    /// The last claim of a generation of the id.
    pub(super) fn last_claim(&self, hash: u64) -> Option<ClaimNumber> {
        self.last(hash).map(|claim| claim >> 2)
    }

    /// Marks the last claim of a generation of the id as the end of a doubt.
    pub(super) fn mark_doubt(&mut self, hash: u64) {
        let last = self.entries.iter_mut().filter(|entry| entry.hash == hash).max_by_key(|entry| entry.claim);
        last.into_iter().for_each(|entry| entry.claim |= IS_DOUBT);
    }

    /// Whether the last claim of a generation of the id was the end of a doubt.
    pub(super) fn was_doubted(&self, hash: u64) -> bool {
        self.last(hash).is_some_and(|claim| claim & IS_DOUBT != 0)
    }

    fn last(&self, hash: u64) -> Option<u64> {
        self.entries.iter().filter(|entry| entry.hash == hash).map(|entry| entry.claim).max()
    }

    fn any(&self, hash: u64, condition: impl Fn(u64) -> bool) -> bool {
        let fingerprint = fingerprint(hash);
        // No early exit, so the loop is vectorised.
        self.fingerprints.iter().fold(false, |any, other| any | (*other == fingerprint))
            && self.entries.iter().any(|entry| entry.hash == hash && condition(entry.claim))
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
    fn g12_tombstones_are_bounded_in_number_before_a_shutdown() {
        let mut tombstones = Tombstones::default();
        for hash in 0..10 * CAPACITY as u64 {
            tombstones.set(hash, hash, true, false);
        }
        assert_eq!((tombstones.fingerprints.len(), tombstones.entries.len()), (CAPACITY_PER_SHARD, CAPACITY_PER_SHARD));
        let last = 10 * CAPACITY as u64 - 1;
        assert!(tombstones.claimed_since(last, last - 1) && !tombstones.claimed_since(last, last));
        assert!(!tombstones.claimed_since(0, 0));
        for hash in 0..CAPACITY as u64 {
            tombstones.set(hash, last, false, true);
        }
        assert!((0..CAPACITY as u64).step_by(997).all(|hash| tombstones.claimed_since(hash, last - 1)));
        assert!(!tombstones.ended_since(7, last - 1));
    }
}
