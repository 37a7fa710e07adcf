//! Claims: the only way to remove a generation from the active ones, with an end or silently.

use std::sync::Arc;

use super::{
    Tracker,
    generation::{Generation, PendingEnd, Scope},
    order::AfterUnlock,
    shard::Shard,
};
use crate::{observability::ReleaseCause, session::EndReason};

impl Tracker {
    #[inline]
    pub(super) fn pending_end(&self, reason: EndReason, scope: Scope) -> PendingEnd {
        PendingEnd { reason, next: None, at: self.clock.now(), scope, redelivery: None }
    }

    /// Ends exactly this generation. Returns false if it has been claimed already.
    pub(crate) fn claim(&self, generation: &Arc<Generation>, reason: EndReason, scope: Scope) -> bool {
        self.claim_if(generation, reason, scope, |_| true)
    }

    /// As [`claim`](Self::claim), if `condition` holds under the lock.
    pub(super) fn claim_if(
        &self,
        generation: &Arc<Generation>,
        reason: EndReason,
        scope: Scope,
        condition: impl FnOnce(&Generation) -> bool,
    ) -> bool {
        self.claim_exactly(generation, condition, |shard, hash, after_unlock| {
            self.claim_with_end(shard, hash, generation, self.pending_end(reason, scope), after_unlock);
        })
    }

    /// Calls `claim` for exactly this generation under its shard's lock, if it is active and `condition` holds there.
    /// Returns whether it did.
    pub(super) fn claim_exactly(
        &self,
        generation: &Arc<Generation>,
        condition: impl FnOnce(&Generation) -> bool,
        claim: impl FnOnce(&mut Shard, u64, &mut AfterUnlock),
    ) -> bool {
        // Without the lock first: a generation never becomes active again.
        if !generation.is_active() {
            return false;
        }
        let mut after_unlock = AfterUnlock::default();
        let is_claimed = {
            let hash = self.hash_of(generation);
            let mut shard = self.shard(hash);
            let is_meant = generation.is_active() && condition(generation);
            if is_meant {
                claim(&mut shard, hash, &mut after_unlock);
            }
            is_meant
        };
        self.apply_after_unlock(after_unlock);
        is_claimed
    }

    /// Ends the active generation of `id`. Returns false if there is none.
    pub(crate) fn end(&self, id: &[u8], reason: EndReason) -> bool {
        let hash = self.hash(id);
        let mut after_unlock = AfterUnlock::default();
        let ended = {
            let mut shard = self.shard(hash);
            let generation = shard.find_active(hash, id).cloned();
            generation.is_some_and(|generation| {
                let end = self.pending_end(reason, Scope::Everywhere);
                self.claim_with_end(&mut shard, hash, &generation, end, &mut after_unlock);
                true
            })
        };
        self.apply_after_unlock(after_unlock);
        ended
    }

    /// Claims the active generation of `id` silently. Returns false if there is none.
    pub(crate) fn forget(&self, id: &[u8]) -> bool {
        let hash = self.hash(id);
        let mut after_unlock = AfterUnlock::default();
        let forgotten = {
            let mut shard = self.shard(hash);
            let generation = shard.find_active(hash, id).cloned();
            generation.is_some_and(|generation| {
                self.claim_silently(&mut shard, hash, &generation, ReleaseCause::Forgotten, &mut after_unlock);
                true
            })
        };
        self.apply_after_unlock(after_unlock);
        forgotten
    }
}
