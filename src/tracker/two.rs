//! Two shards at once, for a compaction.

use super::shard::Shard;
use crate::sync::{Mutex, MutexGuard, lock};

/// The locks of two shards, or of one that is both.
pub(super) struct Two<'a> {
    first: MutexGuard<'a, Shard>,
    second: Option<MutexGuard<'a, Shard>>,
}

impl<'a> Two<'a> {
    /// Always in the order of the indices, so that two of these never wait for each other.
    pub(super) fn lock(shards: &'a [Mutex<Shard>], first: usize, second: usize) -> Self {
        if first == second {
            return Self { first: lock(&shards[first]), second: None };
        }
        let low = lock(&shards[first.min(second)]);
        let high = lock(&shards[first.max(second)]);
        if first < second { Self { first: low, second: Some(high) } } else { Self { first: high, second: Some(low) } }
    }

    pub(super) fn first(&mut self) -> &mut Shard {
        &mut self.first
    }

    pub(super) fn second(&mut self) -> &mut Shard {
        self.second.as_mut().unwrap_or(&mut self.first)
    }
}
