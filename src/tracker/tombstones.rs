//! Ids whose end the host has declared, for a while: a response that still echoes one revives nothing.

use std::collections::VecDeque;

use super::{SHARDS, clock::Tick};

/// How many ids all shards remember together, at the least: one shard has more to remember than another.
const IDS: usize = 65_536;

/// How many one shard remembers: twice its share.
const IDS_A_SHARD: usize = 2 * IDS / SHARDS;

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
        if self.0.len() == IDS_A_SHARD {
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
