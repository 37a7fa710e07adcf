//! The order of hooks: a generation's end runs after its start, and its start after the ends of its predecessors.
//!
//! Every step runs under the lock of the generation's shard. A completed end may unblock starts in other shards: these
//! are collected in [`AfterUnlock`] and applied after the lock is released, so no step holds two locks.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{
    Tracker,
    children::ChildStep,
    effects::Effects,
    generation::{AfterStart, ClaimState, Generation, PendingEnd, Scope, Stage},
    outbox::OutboxEntry,
    queue::Job,
    shard::Shard,
};
use crate::{
    observability::ReleaseCause,
    session::{EndReason, Phase},
    sync::Ordering,
};

/// Work that a step under a shard's lock leaves for after the lock.
#[derive(Default)]
pub(super) struct AfterUnlock {
    /// Jobs that are queued together, before the lock is released. With `None`, each job is queued at once.
    pub(super) jobs: Option<Vec<Job>>,
    /// Generations whose start waited for an end that has completed.
    unblocked: Vec<Arc<Generation>>,
    /// Tokens of streams that waited for the claim.
    pub(super) listeners: Vec<CancellationToken>,
    pub(super) children: Vec<ChildStep>,
    /// The drain's condition may hold now.
    pub(super) drained: bool,
    /// Log events and metric deltas.
    pub(super) effects: Effects,
}

impl AfterUnlock {
    #[inline]
    fn is_empty(&self) -> bool {
        self.unblocked.is_empty()
            && self.listeners.is_empty()
            && self.children.is_empty()
            && !self.drained
            && self.effects.is_empty()
    }
}

/// The outcome of the hooks of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every hook returned `Ok`.
    Ended,
    /// Every hook has completed, and at least one returned an error, panicked or timed out.
    Failed,
    /// A hook was dropped before it completed, because its runtime shut down or the handle was closed.
    Aborted,
}

impl Tracker {
    /// Claims an active generation whose `session_end` is delivered here, unless the registry decides otherwise.
    #[inline]
    pub(super) fn claim_with_end(
        &self,
        shard: &mut Shard,
        hash: u64,
        generation: &Arc<Generation>,
        end: PendingEnd,
        after_unlock: &mut AfterUnlock,
    ) {
        let is_compaction = end.reason == EndReason::Compaction;
        let claim = if is_compaction { ClaimState::Compacted } else { ClaimState::EndPending };
        // Without a record that others may have seen, the session ends here. If its hooks have to wait, it is recorded all the same.
        let outbox = self.outbox.as_ref().filter(|outbox| {
            !outbox.may_cancel()
                || !(!generation.has_predecessors() && generation.cancel_record()
                    || outbox.is_overloaded() && self.cancel_waiting(shard, generation, after_unlock))
        });
        // The registry decides whether the session ends, or goes on elsewhere.
        let is_undecided = outbox.is_some() && end.scope == Scope::Here;
        let is_done = self.remove_active(shard, hash, generation, claim, !is_undecided, after_unlock);
        if !is_compaction && !is_undecided && !shard.children.is_empty() {
            self.end_children(shard, generation, &end, is_done, after_unlock);
        }
        if is_done {
            // There is no hook to call.
            shard.counts.ended += 1;
            after_unlock.effects.ended(generation, &end);
            return;
        }
        shard.counts.pending_ends += 1;
        if !generation.is_given_up() {
            self.awaited.fetch_add(1, Ordering::SeqCst);
        }
        match outbox {
            // The registry decides whether this process delivers the end.
            Some(outbox) => outbox.push(OutboxEntry::End(Arc::clone(generation), end)),
            None => {
                after_unlock.effects.ended(generation, &end);
                self.complete_or_defer(shard, generation, AfterStart::RunEnd(end), after_unlock);
            }
        }
    }

    /// Under overload, a session that no other process can hold and whose record was never sent starts and ends without it.
    /// Returns false if another process may hold it.
    #[cold]
    fn cancel_waiting(&self, shard: &mut Shard, generation: &Arc<Generation>, after_unlock: &mut AfterUnlock) -> bool {
        let is_cancelled = generation.cancel_waiting_record();
        if is_cancelled {
            if generation.release_predecessor() {
                self.start(shard, generation, after_unlock);
            }
            generation.notify_recorded();
        }
        is_cancelled
    }

    /// Claims an active generation silently.
    pub(super) fn claim_silently(
        &self,
        shard: &mut Shard,
        hash: u64,
        generation: &Arc<Generation>,
        cause: ReleaseCause,
        after_unlock: &mut AfterUnlock,
    ) {
        shard.counts.release(cause);
        after_unlock.effects.released(generation, cause);
        let is_done = self.remove_active(shard, hash, generation, ClaimState::Forgotten, false, after_unlock);
        if let Some(outbox) = self.outbox.as_ref().filter(|_| !generation.cancel_record()) {
            outbox.push(OutboxEntry::Release(Arc::clone(generation), cause));
        }
        if !is_done {
            self.complete_or_defer(shard, generation, AfterStart::Nothing, after_unlock);
        }
    }

    /// Runs the start of a generation whose predecessors have ended.
    #[inline]
    pub(super) fn start(&self, shard: &mut Shard, generation: &Arc<Generation>, after_unlock: &mut AfterUnlock) {
        if self.has_start && !(self.outbox.is_some() && generation.started_elsewhere()) {
            generation.set_stage(Stage::Starting);
            self.queue.push(Job::Start(Arc::clone(generation)));
        } else {
            self.complete_start(shard, generation, after_unlock);
        }
    }

    /// Must be called once for every [`Job::Start`], when its hooks have completed. Returns true if that may have
    /// queued a job.
    pub(crate) fn on_start_done(&self, generation: &Arc<Generation>) -> bool {
        let mut after_unlock = AfterUnlock::default();
        self.complete_start(&mut self.shard(self.hash_of(generation)), generation, &mut after_unlock);
        self.apply_after_unlock(after_unlock) || !generation.is_active()
    }

    /// Must be called once for every [`Job::End`], when its hooks have completed. Returns true if that may have queued
    /// a job, or an outbox entry.
    pub(crate) fn on_end_done(&self, generation: &Arc<Generation>, outcome: Outcome) -> bool {
        let mut after_unlock = AfterUnlock::default();
        self.complete_end(&mut self.shard(self.hash_of(generation)), generation, outcome, &mut after_unlock);
        self.apply_after_unlock(after_unlock) || self.outbox.is_some()
    }

    #[inline]
    pub(super) fn complete_or_defer(
        &self,
        shard: &mut Shard,
        generation: &Arc<Generation>,
        action: AfterStart,
        after_unlock: &mut AfterUnlock,
    ) {
        if generation.stage() < Stage::Started || awaits_parent(generation, &action) {
            generation.defer(action);
        } else {
            self.run_after_start(shard, generation, action, after_unlock);
        }
    }

    /// Applies what a step has left for after the lock. Returns true if that unblocked a generation.
    #[inline]
    pub(super) fn apply_after_unlock(&self, after_unlock: AfterUnlock) -> bool {
        if after_unlock.is_empty() { false } else { self.apply_after_unlock_slow(after_unlock) }
    }

    #[inline(never)]
    fn apply_after_unlock_slow(&self, mut after_unlock: AfterUnlock) -> bool {
        let mut any = false;
        loop {
            if let Some(generation) = after_unlock.unblocked.pop() {
                any = true;
                let mut shard = self.shard(self.hash_of(&generation));
                if generation.release_predecessor() {
                    match generation.stage() {
                        Stage::Waiting => self.start(&mut shard, &generation, &mut after_unlock),
                        // Its end waited for that of its parent.
                        _ => self.run_deferred(&mut shard, &generation, &mut after_unlock),
                    }
                }
            } else if let Some(step) = after_unlock.children.pop() {
                self.apply_to_child(step, &mut after_unlock);
            } else {
                break;
            }
        }
        // After the loop: without hooks, starts and ends complete in it, which may set `drained` and add effects.
        after_unlock.listeners.drain(..).for_each(|stream| stream.cancel());
        if after_unlock.drained {
            self.drained.notify_waiters();
        }
        self.emit(&after_unlock.effects);
        any
    }

    /// Removes a generation from the active ones. Returns true if it has no hooks left to run. With `is_end`, children
    /// that link later end.
    #[inline]
    pub(super) fn remove_active(
        &self,
        shard: &mut Shard,
        hash: u64,
        generation: &Arc<Generation>,
        claim: ClaimState,
        is_end: bool,
        after_unlock: &mut AfterUnlock,
    ) -> bool {
        debug_assert!(generation.is_active(), "a generation is claimed once");
        // With a registry, the outbox entry decides.
        let is_done = self.outbox.is_none()
            && generation.stage() >= Stage::Started
            && (claim == ClaimState::Forgotten || !self.has_end);
        generation.set_claim(claim);
        shard.claim(hash, generation, !is_done, |generation| self.hash_of(generation));
        after_unlock.effects.removed();
        if is_done {
            generation.set_stage(Stage::Done);
        }
        generation.with_existing_extra(|extra| {
            if claim != ClaimState::Compacted {
                after_unlock.listeners.append(&mut extra.listeners);
            }
            if is_done {
                after_unlock.unblocked.append(&mut extra.successors);
            }
            if extra.parent.is_some() {
                after_unlock.children.push(ChildStep::Unlink(Arc::clone(generation)));
            }
        });
        let is_closing = self.phase() >= Phase::Closing;
        let number = 1 + self.totals.claimed.fetch_add(1, Ordering::SeqCst);
        let is_swept = is_closing && generation.number <= self.last_open_number.load(Ordering::Relaxed);
        shard.tombstones.set(hash, number, is_end && claim == ClaimState::EndPending, is_swept);
        after_unlock.drained |= is_closing && self.len() == 0;
        if is_done {
            self.shrink(shard);
        }
        is_done
    }

    pub(super) fn retire(&self, shard: &mut Shard, generation: &Arc<Generation>, after_unlock: &mut AfterUnlock) {
        generation.set_stage(Stage::Done);
        shard.remove(self.hash_of(generation), generation);
        self.shrink(shard);
        after_unlock.unblocked.append(&mut generation.take_successors());
    }

    #[inline]
    fn complete_start(&self, shard: &mut Shard, generation: &Arc<Generation>, after_unlock: &mut AfterUnlock) {
        generation.set_stage(Stage::Started);
        // Claimed while its start ran: the claim deferred what comes next.
        if !generation.is_active() {
            self.run_deferred(shard, generation, after_unlock);
        } else {
            self.renew_if_taken_over(shard, generation, after_unlock);
        }
    }

    fn run_deferred(&self, shard: &mut Shard, generation: &Arc<Generation>, after_unlock: &mut AfterUnlock) {
        if let Some(deferred) = generation.take_deferred() {
            self.complete_or_defer(shard, generation, deferred, after_unlock);
        }
    }

    /// The next step of a claimed generation whose start has completed.
    fn run_after_start(
        &self,
        shard: &mut Shard,
        generation: &Arc<Generation>,
        action: AfterStart,
        after_unlock: &mut AfterUnlock,
    ) {
        match action {
            AfterStart::RunEnd(end) if self.has_end => {
                generation.set_stage(Stage::EndQueued);
                let job = Job::End(Arc::clone(generation), end);
                match &mut after_unlock.jobs {
                    Some(jobs) => jobs.push(job),
                    None => self.queue.push(job),
                }
            }
            AfterStart::RunEnd(_) => self.complete_end(shard, generation, Outcome::Ended, after_unlock),
            AfterStart::Release(cause) => self.release_claimed(shard, generation, cause, after_unlock),
            AfterStart::Nothing => self.retire(shard, generation, after_unlock),
        }
    }

    fn complete_end(
        &self,
        shard: &mut Shard,
        generation: &Arc<Generation>,
        outcome: Outcome,
        after_unlock: &mut AfterUnlock,
    ) {
        let counts = &mut shard.counts;
        counts.pending_ends -= 1;
        match outcome {
            Outcome::Ended => counts.ended += 1,
            Outcome::Failed => counts.failed += 1,
            Outcome::Aborted => {
                counts.aborted += 1;
                shard.aborted.push(Arc::clone(generation));
            }
        }
        self.record_end_done(generation, outcome);
        if !generation.is_given_up() {
            after_unlock.drained |= self.decrement_awaited();
        }
        self.retire(shard, generation, after_unlock);
    }

    /// Shrinks the shard's tables, except in a shutdown: the process exits soon, and rehashing would use the drain's
    /// budget.
    #[inline]
    fn shrink(&self, shard: &mut Shard) {
        if self.phase() < Phase::Closing {
            shard.shrink(|generation| self.hash_of(generation));
        }
    }
}

/// The end of a child comes after that of its parent.
fn awaits_parent(generation: &Generation, action: &AfterStart) -> bool {
    matches!(action, AfterStart::RunEnd(end) if end.reason == EndReason::Parent) && generation.has_predecessors()
}
