//! Claims: the one way out of the active, with an end or in silence.

use std::sync::Arc;

use super::{
    Tracker,
    clock::Clock,
    generation::{Generation, PendingEnd, Scope},
    order::AfterUnlock,
};
use crate::{observability::ReleaseCause, session::EndReason};

/// Who ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndedBy {
    /// The host declared it over: its end leaves a tombstone.
    Host,
    /// This crate, by a rule of its own (a guard was dropped after a request, say).
    Policy,
    /// This process releases it; other replicas may go on.
    Detach,
}

impl Tracker {
    #[inline]
    pub(super) fn ending(&self, reason: EndReason, scope: Scope) -> PendingEnd {
        PendingEnd { reason, next: None, at: self.clock.now(), scope }
    }

    /// Ends this very generation; false if somebody else has claimed it. What [`EndedBy::Host`] declares leaves a
    /// tombstone.
    pub(crate) fn claim(&self, generation: &Arc<Generation>, reason: EndReason, by: EndedBy) -> bool {
        self.claim_if(generation, reason, by, |_| true)
    }

    /// As [`claim`](Self::claim), if `condition` holds under the lock.
    pub(super) fn claim_if(
        &self,
        generation: &Arc<Generation>,
        reason: EndReason,
        by: EndedBy,
        condition: impl FnOnce(&Generation) -> bool,
    ) -> bool {
        // Most late comers need no lock.
        if !generation.is_active() {
            return false;
        }
        let mut after = AfterUnlock::default();
        let claimed = {
            let hash = self.hash_of(generation);
            let mut shard = self.shard(hash);
            generation.is_active() && condition(generation) && {
                let scope = if by == EndedBy::Detach { Scope::Here } else { Scope::Everywhere };
                let ending = self.ending(reason, scope);
                if by == EndedBy::Host {
                    shard.tombstones.set(hash, Clock::tick(ending.at));
                }
                self.claim_with_end(&mut shard, hash, generation, ending, &mut after);
                true
            }
        };
        self.apply_deferred(after);
        claimed
    }

    /// Ends the present generation of `id`; false if there is none.
    pub(crate) fn end(&self, id: &[u8], reason: EndReason) -> bool {
        let hash = self.hash(id);
        let mut after = AfterUnlock::default();
        let ended = {
            let mut shard = self.shard(hash);
            let generation = shard.find_active(hash, id).cloned();
            generation.is_some_and(|generation| {
                let ending = self.ending(reason, Scope::Everywhere);
                shard.tombstones.set(hash, Clock::tick(ending.at));
                self.claim_with_end(&mut shard, hash, &generation, ending, &mut after);
                true
            })
        };
        self.apply_deferred(after);
        ended
    }

    /// Claims the present generation of `id` silently; false if there is none.
    pub(crate) fn forget(&self, id: &[u8]) -> bool {
        let hash = self.hash(id);
        let mut after = AfterUnlock::default();
        let forgotten = {
            let mut shard = self.shard(hash);
            let generation = shard.find_active(hash, id).cloned();
            generation.is_some_and(|generation| {
                shard.tombstones.set(hash, Clock::tick(self.clock.now()));
                self.claim_silently(&mut shard, hash, &generation, ReleaseCause::Forgotten, &mut after);
                true
            })
        };
        self.apply_deferred(after);
        forgotten
    }
}
