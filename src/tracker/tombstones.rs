//! Ids whose end the host has declared, for a while: a response that still echoes one revives nothing.

use std::collections::VecDeque;

use super::{SHARDS, clock::Tick};

/// How many ids all shards remember together.
const IDS: usize = 65_536;

/// For how long, in ticks: 30 s.
pub(super) const TICKS: Tick = 3000;

/// The ring of one shard: keyed hashes, the latest last.
#[derive(Debug, Default)]
pub(super) struct Tombstones(VecDeque<(u64, Tick)>);

impl Tombstones {
    pub(super) fn set(&mut self, hash: u64, now: Tick) {
        // One end may have two reasons to be remembered.
        if let Some((_, set)) = self.0.back_mut().filter(|(last, _)| *last == hash) {
            *set = now;
            return;
        }
        if self.0.len() == IDS / SHARDS {
            self.0.pop_front();
        }
        self.0.push_back((hash, now));
    }

    /// The host says that it lives.
    pub(super) fn clear(&mut self, hash: u64) {
        self.0.retain(|(other, _)| *other != hash);
    }

    pub(super) fn has(&mut self, hash: u64, now: Tick) -> bool {
        while self.0.front().is_some_and(|(_, set)| now.wrapping_sub(*set) > TICKS) {
            self.0.pop_front();
        }
        self.0.iter().any(|(other, _)| *other == hash)
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
        assert_eq!(tombstones.0.len() * SHARDS, IDS);
        assert!(tombstones.has(10 * IDS as u64 - 1, 7 + TICKS) && !tombstones.has(0, 7));
        assert!(!tombstones.has(10 * IDS as u64 - 1, 8 + TICKS));
        assert!(tombstones.0.is_empty());
    }
}
