//! One shard of the tracker: the state that its lock guards, and counts that balance at every moment.

use std::sync::Arc;

use hashbrown::{HashMap, HashTable};

use super::{
    generation::{ClaimState, Generation, ParentLink},
    tombstones::{ClaimNumber, Tombstones},
};
use crate::{
    observability::ReleaseCause,
    session::SessionId,
    sync::{Mutex, MutexGuard, lock},
};

/// Tables with this many buckets or fewer are not shrunk.
const MIN_SHRINK_BUCKETS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Shard {
    /// The active generations.
    pub(super) active: HashTable<Arc<Generation>>,
    /// Claimed generations whose hooks have not completed, the latest of each id. The id's next generation starts after
    /// it.
    claimed: HashTable<Arc<Generation>>,
    /// The earlier ones of the same ids, by number.
    claimed_earlier: HashMap<u64, Arc<Generation>>,
    pub(super) tombstones: Tombstones,
    /// Active children, by the id of their parent, which belongs to this shard and need not be active.
    pub(super) children: HashMap<SessionId, Children>,
    /// Generations whose end was aborted.
    pub(super) aborted: Vec<Arc<Generation>>,
    pub(super) counts: Counts,
}

/// Active children of one session, by number.
pub(super) type Children = HashMap<u64, Arc<Generation>>;

/// The states of a tracker's generations. At every moment `starts` is the sum of the others, without `at_work`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) starts: u64,
    pub(crate) active: u64,
    /// Claimed, and the `session_end` has not completed.
    pub(crate) pending_ends: u64,
    pub(crate) ended: u64,
    pub(crate) failed: u64,
    pub(crate) forgotten: u64,
    /// Released by a drain because of `keep_if`.
    pub(crate) kept: u64,
    /// The hooks of the `session_end` were aborted.
    pub(crate) aborted: u64,
    /// Released, and other replicas hold it.
    pub(crate) held_elsewhere: u64,
    /// Ended by another process.
    pub(crate) ended_elsewhere: u64,
    /// Left to the next process.
    pub(crate) handed_over: u64,
    /// Ended by a drain while at work. These are in another count too.
    pub(crate) at_work: u64,
}

impl Counts {
    /// Generations that are neither active nor have an end to come.
    pub(crate) const fn over(&self) -> u64 {
        let released = self.forgotten + self.kept + self.held_elsewhere + self.ended_elsewhere + self.handed_over;
        self.ended + self.failed + released
    }

    /// Generations whose end is not over.
    pub(crate) const fn unfinished(&self) -> u64 {
        self.active + self.pending_ends + self.aborted
    }

    pub(super) fn release(&mut self, cause: ReleaseCause) {
        *match cause {
            ReleaseCause::Forgotten => &mut self.forgotten,
            ReleaseCause::Kept => &mut self.kept,
            ReleaseCause::HeldElsewhere => &mut self.held_elsewhere,
            ReleaseCause::EndedElsewhere => &mut self.ended_elsewhere,
            ReleaseCause::HandedOver => &mut self.handed_over,
        } += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        let Self {
            starts,
            active,
            pending_ends,
            ended,
            failed,
            forgotten,
            kept,
            aborted,
            held_elsewhere,
            ended_elsewhere,
            handed_over,
            at_work,
        } = other;
        self.starts += starts;
        self.active += active;
        self.pending_ends += pending_ends;
        self.ended += ended;
        self.failed += failed;
        self.forgotten += forgotten;
        self.kept += kept;
        self.aborted += aborted;
        self.held_elsewhere += held_elsewhere;
        self.ended_elsewhere += ended_elsewhere;
        self.handed_over += handed_over;
        self.at_work += at_work;
    }
}

impl Shard {
    #[inline]
    pub(super) fn find_active(&self, hash: u64, id: &[u8]) -> Option<&Arc<Generation>> {
        self.active.find(hash, |generation| generation.id.as_bytes() == id)
    }

    /// Inserts an active generation; its id must have none. Returns true if an earlier generation's hooks have not
    /// completed: this one starts after them.
    #[inline]
    pub(super) fn insert(
        &mut self,
        hash: u64,
        generation: &Arc<Generation>,
        rehash: impl Fn(&Arc<Generation>) -> u64,
    ) -> bool {
        let predecessor = self.take_claimed(hash, generation);
        let has_predecessor = predecessor.is_some();
        if let Some(predecessor) = predecessor {
            predecessor.add_successor(generation);
        }
        self.active.insert_unique(hash, Arc::clone(generation), rehash);
        self.counts.starts += 1;
        self.counts.active += 1;
        has_predecessor
    }

    /// The last claimed generation of this id. It is an earlier one from now on.
    #[inline]
    pub(super) fn take_claimed(&mut self, hash: u64, next: &Generation) -> Option<Arc<Generation>> {
        if self.claimed.is_empty() {
            return None;
        }
        let (last, _) = self.claimed.find_entry(hash, |other| other.id == next.id).ok()?.remove();
        self.claimed_earlier.insert(last.number, Arc::clone(&last));
        Some(last)
    }

    /// Inserts a claimed generation. The next generation of its id starts after it, if there is none yet.
    pub(super) fn insert_claimed(
        &mut self,
        hash: u64,
        generation: &Arc<Generation>,
        rehash: impl Fn(&Arc<Generation>) -> u64,
    ) {
        let is_there = |other: &Arc<Generation>| other.id == generation.id;
        if self.active.find(hash, is_there).or_else(|| self.claimed.find(hash, is_there)).is_some() {
            self.claimed_earlier.insert(generation.number, Arc::clone(generation));
        } else {
            self.claimed.insert_unique(hash, Arc::clone(generation), rehash);
        }
    }

    /// Removes a generation from the active ones: the claim. With `keep` it stays in the shard until its hooks have
    /// completed.
    #[inline]
    pub(super) fn claim(
        &mut self,
        hash: u64,
        generation: &Arc<Generation>,
        keep: bool,
        rehash: impl Fn(&Arc<Generation>) -> u64,
    ) {
        if let Ok(slot) = self.active.find_entry(hash, |other| Arc::ptr_eq(other, generation)) {
            let (generation, _) = slot.remove();
            if keep {
                self.claimed.insert_unique(hash, generation, rehash);
            }
            self.counts.active -= 1;
        }
    }

    /// As [`claim`](Self::claim) with `keep`, for all active generations: the whole table is moved at once, if
    /// possible. The caller still claims each of them.
    pub(super) fn claim_all(&mut self, rehash: impl Fn(&Arc<Generation>) -> u64) -> Vec<Arc<Generation>> {
        let all: Vec<_> = self.active.iter().cloned().collect();
        if self.claimed.is_empty() {
            self.claimed = std::mem::take(&mut self.active);
        } else {
            for generation in self.active.drain() {
                self.claimed.insert_unique(rehash(&generation), generation, &rehash);
            }
        }
        self.counts.active -= all.len() as u64;
        all
    }

    /// Returns the memory of a burst. A table shrinks when it is less than 1/16 full, so a removal costs less than one
    /// move on average.
    pub(super) fn shrink(&mut self, rehash: impl Fn(&Arc<Generation>) -> u64) {
        for table in [&mut self.active, &mut self.claimed] {
            if table.num_buckets() > MIN_SHRINK_BUCKETS && table.len() < table.num_buckets() / 16 {
                table.shrink_to(2 * table.len(), &rehash);
            }
        }
    }

    /// Removes a claimed generation whose hooks have completed.
    pub(super) fn remove(&mut self, hash: u64, generation: &Arc<Generation>) {
        if let Ok(slot) = self.claimed.find_entry(hash, |other| Arc::ptr_eq(other, generation)) {
            slot.remove();
        } else {
            self.claimed_earlier.remove(&generation.number);
        }
    }

    pub(super) fn active(&self) -> impl Iterator<Item = &Arc<Generation>> {
        self.active.iter()
    }

    /// Whether a claimed generation has hooks that have not completed.
    pub(super) fn has_claimed(&self) -> bool {
        !self.claimed.is_empty() || !self.claimed_earlier.is_empty()
    }

    /// Every generation of `id`, active or claimed.
    pub(super) fn generations(&self, hash: u64, id: &SessionId) -> impl Iterator<Item = &Arc<Generation>> {
        let is_meant = |generation: &Arc<Generation>| generation.id == *id;
        let earlier = self.claimed_earlier.values().filter(move |generation| generation.id == *id);
        self.active.find(hash, is_meant).into_iter().chain(self.claimed.find(hash, is_meant)).chain(earlier)
    }

    /// Generations whose `session_end` has not completed.
    pub(super) fn pending_ends(&self) -> impl Iterator<Item = &Arc<Generation>> {
        let claimed = self.claimed.iter().chain(self.claimed_earlier.values());
        claimed.filter(|generation| matches!(generation.claim(), ClaimState::EndPending | ClaimState::Compacted))
    }
}

/// The locks of two shards, which may be the same one.
pub(super) struct ShardPair<'a> {
    first: MutexGuard<'a, Shard>,
    second: Option<MutexGuard<'a, Shard>>,
}

impl<'a> ShardPair<'a> {
    /// Locks in the order of the indices, so two pairs cannot deadlock.
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

    /// The children of `old`, in the first shard, become those of `new`, in the second. So many claims have been made.
    pub(super) fn move_children(&mut self, old: &SessionId, new: &SessionId, since: ClaimNumber) {
        let Some(mut children) = self.first.children.remove(old) else { return };
        for child in children.values() {
            child.with_extra(|extra| extra.parent = Some(ParentLink { parent: new.clone(), since }));
        }
        // It may have been a child of `old`. A session is not its own child.
        for (_, child) in children.extract_if(|_, child| child.id == *new) {
            child.with_extra(|extra| extra.parent = None);
        }
        self.second().children.entry(new.clone()).or_default().extend(children);
    }

    pub(super) fn second(&mut self) -> &mut Shard {
        self.second.as_mut().unwrap_or(&mut self.first)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::cell::Cell;

    use super::{super::SHARDS, *};
    use crate::session::Session;

    /// The share of one shard at ten million sessions, plus seven standard deviations.
    const MANY: usize = 10_000_000 / SHARDS + 500;

    #[test]
    fn no_step_moves_more_than_4096_entries_while_a_shard_grows_and_shrinks() {
        let (moved, most) = (Cell::new(0), Cell::new(0));
        let rehash = |generation: &Arc<Generation>| {
            moved.set(moved.get() + 1);
            hash(generation)
        };
        let step = |shard: &mut Shard, step: &mut dyn FnMut(&mut Shard)| {
            moved.set(0);
            step(shard);
            most.set(most.get().max(moved.get()));
        };
        let mut shard = Shard::default();
        let entries: Vec<_> = (0..MANY as u64).map(generation).collect();
        for generation in &entries {
            step(&mut shard, &mut |shard| assert!(!shard.insert(hash(generation), generation, rehash)));
        }
        let grown = shard.active.num_buckets();
        assert!(grown > MANY && (1000..=4096).contains(&most.get()), "{grown} buckets, {} moved", most.get());
        for generation in &entries {
            step(&mut shard, &mut |shard| {
                shard.claim(hash(generation), generation, true, rehash);
                shard.shrink(rehash);
            });
        }
        for generation in &entries {
            step(&mut shard, &mut |shard| {
                shard.remove(hash(generation), generation);
                shard.shrink(rehash);
            });
        }
        assert!(most.get() <= 4096, "{} moved", most.get());
        assert_eq!((shard.active.len(), shard.claimed.len()), (0, 0));
        assert!(shard.active.num_buckets().max(shard.claimed.num_buckets()) <= MIN_SHRINK_BUCKETS);
    }

    fn generation(number: u64) -> Arc<Generation> {
        Arc::new(Generation::new(Session::try_from(number.to_string()).unwrap(), number, 0, None))
    }

    fn hash(generation: &Arc<Generation>) -> u64 {
        generation.number.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}
