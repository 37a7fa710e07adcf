//! Claims: the one way out of the active, with an end or in silence.

use std::sync::Arc;

use super::{
    Tracker,
    chain::Released,
    clock::Clock,
    entry::{Ending, Entry, Scope},
};
use crate::session::EndReason;

/// Who ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The host has declared it over.
    Host,
    /// We have found it out.
    Us,
    /// This process lets go of it; other replicas may go on.
    LettingGo,
}

impl Tracker {
    #[inline]
    pub(super) fn ending(&self, reason: EndReason, scope: Scope) -> Ending {
        Ending { reason, next: None, at: self.clock.now(), scope }
    }

    /// Ends this very generation; false if somebody else has claimed it. What [`By::Host`] declares leaves a
    /// tombstone.
    pub(crate) fn claim(&self, entry: &Arc<Entry>, reason: EndReason, by: By) -> bool {
        self.claim_if(entry, reason, by, |_| true)
    }

    /// As [`claim`](Self::claim), if `condition` holds under the lock.
    pub(super) fn claim_if(
        &self,
        entry: &Arc<Entry>,
        reason: EndReason,
        by: By,
        condition: impl FnOnce(&Entry) -> bool,
    ) -> bool {
        // Most late comers need no lock.
        if !entry.is_active() {
            return false;
        }
        let mut released = Released::default();
        let claimed = {
            let hash = self.hash_of(entry);
            let mut shard = self.shard(hash);
            entry.is_active() && condition(entry) && {
                let scope = if by == By::LettingGo { Scope::Here } else { Scope::Everywhere };
                let ending = self.ending(reason, scope);
                if by == By::Host {
                    shard.tombstones.set(hash, Clock::tick(ending.at));
                }
                self.owe(&mut shard, hash, entry, ending, &mut released);
                true
            }
        };
        self.release(released);
        claimed
    }

    /// Ends the present generation of `id`; false if there is none.
    pub(crate) fn end(&self, id: &[u8], reason: EndReason) -> bool {
        let hash = self.hash(id);
        let mut released = Released::default();
        let ended = {
            let mut shard = self.shard(hash);
            let entry = shard.find_active(hash, id).cloned();
            entry.is_some_and(|entry| {
                let ending = self.ending(reason, Scope::Everywhere);
                shard.tombstones.set(hash, Clock::tick(ending.at));
                self.owe(&mut shard, hash, &entry, ending, &mut released);
                true
            })
        };
        self.release(released);
        ended
    }

    /// Claims the present generation of `id` silently; false if there is none.
    pub(crate) fn forget(&self, id: &[u8]) -> bool {
        let hash = self.hash(id);
        let mut released = Released::default();
        let forgotten = {
            let mut shard = self.shard(hash);
            let entry = shard.find_active(hash, id).cloned();
            entry.is_some_and(|entry| {
                shard.tombstones.set(hash, Clock::tick(self.clock.now()));
                self.disown(&mut shard, hash, &entry, false, &mut released);
                true
            })
        };
        self.release(released);
        forgotten
    }
}
