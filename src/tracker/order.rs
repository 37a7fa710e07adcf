//! The order of hooks: a generation's end after its start, and its start after the ends before it.
//!
//! Every step is taken under the lock of the generation's shard. What the end of one generation sets free in another
//! shard is collected and released once that lock is gone, so no step ever holds two locks.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{
    Tracker,
    clock::{Clock, Nanos},
    effects::Effects,
    generation::{AfterStart, Claim, Generation, PendingEnd, Stage},
    outbox::OutboxEntry,
    queue::Job,
    shard::Shard,
    tombstones::TICKS,
};
use crate::{
    observability::ReleaseCause,
    session::{EndReason, Phase},
    sync::Ordering,
};

/// What a step under a lock sets free, for when the lock is gone.
#[derive(Default)]
pub(super) struct AfterUnlock {
    /// Jobs that go to the queue together, before the lock is gone: with `None`, each goes there at once.
    pub(super) jobs: Option<Vec<Job>>,
    /// Generations whose start waited for an end that is over now.
    entries: Vec<Arc<Generation>>,
    /// Streams that waited for a claim.
    pub(super) streams: Vec<CancellationToken>,
    /// Whoever waits for the end of it all has to look.
    pub(super) drained: bool,
    /// What has happened.
    pub(super) effects: Effects,
}

impl AfterUnlock {
    #[inline]
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.streams.is_empty() && !self.drained && self.effects.is_empty()
    }
}

/// How the hooks of an end came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every hook is over and none of them erred.
    Ended,
    /// Every hook is over and at least one erred, panicked or took too long.
    Failed,
    /// A hook was torn from the middle, because its runtime went away.
    Aborted,
}

impl Tracker {
    /// Every end before it is over: its start may run.
    #[inline]
    pub(super) fn start(&self, shard: &mut Shard, generation: &Arc<Generation>, after: &mut AfterUnlock) {
        if self.has_start && !(self.outbox.is_some() && generation.is_joined()) {
            generation.set_stage(Stage::Starting);
            self.queue.push(Job::Start(Arc::clone(generation)));
        } else {
            self.start_is_over(shard, generation, after);
        }
    }

    #[inline]
    fn start_is_over(&self, shard: &mut Shard, generation: &Arc<Generation>, after: &mut AfterUnlock) {
        generation.set_stage(Stage::Started);
        // Parked by its claimer, who has left it among the claimed ones.
        if !generation.is_active()
            && let Some(deferred) = generation.take_deferred()
        {
            self.finish(shard, generation, deferred, after);
        }
    }

    /// Claims an active generation whose `session_end` is now owed.
    #[inline]
    pub(super) fn claim_with_end(
        &self,
        shard: &mut Shard,
        hash: u64,
        generation: &Arc<Generation>,
        ending: PendingEnd,
        after: &mut AfterUnlock,
    ) {
        let is_compaction = ending.reason == EndReason::Compaction;
        let claim = if is_compaction { Claim::Compacted } else { Claim::Owed };
        if self.remove_active(shard, hash, generation, claim, ending.at, after) {
            // No hook is to be called.
            shard.counts.ended += 1;
            after.effects.ended(generation, &ending);
            return;
        }
        shard.counts.owed += 1;
        if !generation.is_given_up() {
            self.awaited.fetch_add(1, Ordering::SeqCst);
        }
        match &self.outbox {
            // Whether it is ours to deliver, the registry says.
            Some(outbox) => outbox.push(OutboxEntry::End(Arc::clone(generation), ending)),
            None => {
                after.effects.ended(generation, &ending);
                self.complete_or_defer(shard, generation, AfterStart::RunEnd(ending), after);
            }
        }
    }

    /// Claims an active generation silently.
    pub(super) fn claim_silently(
        &self,
        shard: &mut Shard,
        hash: u64,
        generation: &Arc<Generation>,
        cause: ReleaseCause,
        after: &mut AfterUnlock,
    ) {
        shard.counts.release(cause);
        after.effects.released(generation, cause);
        let is_over = self.remove_active(shard, hash, generation, Claim::Forgotten, self.clock.now(), after);
        if let Some(outbox) = &self.outbox {
            outbox.push(OutboxEntry::Release(Arc::clone(generation), cause));
        }
        if !is_over {
            self.complete_or_defer(shard, generation, AfterStart::Nothing, after);
        }
    }

    /// Takes a generation out of the active ones. True if it has no hooks to come: then it is over.
    #[inline]
    pub(super) fn remove_active(
        &self,
        shard: &mut Shard,
        hash: u64,
        generation: &Arc<Generation>,
        claim: Claim,
        now: Nanos,
        after: &mut AfterUnlock,
    ) -> bool {
        debug_assert!(generation.is_active(), "a generation is claimed once");
        // Where there is a registry, that has the last word.
        let is_over = self.outbox.is_none()
            && generation.stage() >= Stage::Started
            && (claim == Claim::Forgotten || !self.has_end);
        generation.set_claim(claim);
        shard.claim(hash, generation, !is_over, |generation| self.hash_of(generation));
        after.effects.left();
        if is_over {
            generation.set_stage(Stage::Over);
        }
        generation.with_existing_extra(|extra| {
            if claim != Claim::Compacted {
                after.streams.append(&mut extra.listeners);
            }
            if is_over {
                after.entries.append(&mut extra.successors);
            }
        });
        let stops = self.phase() >= Phase::Closing;
        if stops && generation.requests() == 0 {
            // NoteOutcome in a handler, maybe, and the head with its id has yet to leave: that is no other session.
            let now = Clock::tick(now);
            if now.wrapping_sub(Clock::tick(generation.started_at)) <= TICKS {
                shard.tombstones.set(hash, now);
            }
        }
        self.totals.claimed.fetch_add(1, Ordering::SeqCst);
        after.drained |= stops && self.len() == 0;
        if is_over {
            self.shrink(shard);
        }
        is_over
    }

    #[inline]
    pub(super) fn complete_or_defer(
        &self,
        shard: &mut Shard,
        generation: &Arc<Generation>,
        due: AfterStart,
        after: &mut AfterUnlock,
    ) {
        if generation.stage() < Stage::Started {
            generation.defer(due);
        } else {
            self.finish(shard, generation, due, after);
        }
    }

    /// Its start is over and it is claimed: its end is due, or nothing is.
    fn finish(&self, shard: &mut Shard, generation: &Arc<Generation>, due: AfterStart, after: &mut AfterUnlock) {
        match due {
            AfterStart::RunEnd(ending) if self.has_end => {
                generation.set_stage(Stage::EndQueued);
                let job = Job::End(Arc::clone(generation), ending);
                match &mut after.jobs {
                    Some(jobs) => jobs.push(job),
                    None => self.queue.push(job),
                }
            }
            AfterStart::RunEnd(_) => self.end_is_over(shard, generation, Outcome::Ended, after),
            AfterStart::Release(why) => self.count_released(shard, generation, why, after),
            AfterStart::Nothing => self.retire(shard, generation, after),
        }
    }

    fn end_is_over(&self, shard: &mut Shard, generation: &Arc<Generation>, outcome: Outcome, after: &mut AfterUnlock) {
        let counts = &mut shard.counts;
        counts.owed -= 1;
        match outcome {
            Outcome::Ended => counts.ended += 1,
            Outcome::Failed => counts.failed += 1,
            Outcome::Aborted => {
                counts.aborted += 1;
                shard.aborted.push(Arc::clone(generation));
            }
        }
        self.record_over(generation, outcome);
        if !generation.is_given_up() {
            after.drained |= self.no_longer_awaited();
        }
        self.retire(shard, generation, after);
    }

    pub(super) fn retire(&self, shard: &mut Shard, generation: &Arc<Generation>, after: &mut AfterUnlock) {
        generation.set_stage(Stage::Over);
        shard.remove(self.hash_of(generation), generation);
        self.shrink(shard);
        after.entries.append(&mut generation.take_successors());
    }

    /// Not in a stop: what is left of the tables goes soon, and the moves are the drain's time.
    #[inline]
    fn shrink(&self, shard: &mut Shard) {
        if self.phase() < Phase::Closing {
            shard.shrink(|generation| self.hash_of(generation));
        }
    }

    /// Lets go on what waited for ends that are over now; says whether any of it did.
    #[inline]
    pub(super) fn apply_deferred(&self, after: AfterUnlock) -> bool {
        if after.is_empty() { false } else { self.apply_deferred_all(after) }
    }

    #[inline(never)]
    fn apply_deferred_all(&self, mut after: AfterUnlock) -> bool {
        let any = !after.entries.is_empty();
        while let Some(generation) = after.entries.pop() {
            let mut shard = self.shard(self.hash_of(&generation));
            if generation.release_predecessor() {
                self.start(&mut shard, &generation, &mut after);
            }
        }
        // After all of it: where nobody is to be told, a start and an end are over at once.
        after.streams.drain(..).for_each(|stream| stream.cancel());
        if after.drained {
            self.drained.notify_waiters();
        }
        self.emit(&after.effects);
        any
    }

    /// To be called once for every [`Job::Start`], when its hooks are over. True if that may have queued a job.
    pub(crate) fn on_start_done(&self, generation: &Arc<Generation>) -> bool {
        let mut after = AfterUnlock::default();
        self.start_is_over(&mut self.shard(self.hash_of(generation)), generation, &mut after);
        self.apply_deferred(after) || !generation.is_active()
    }

    /// To be called once for every [`Job::End`], when its hooks are over. True if that may have queued a job, or a change
    /// to write.
    pub(crate) fn on_end_done(&self, generation: &Arc<Generation>, outcome: Outcome) -> bool {
        let mut after = AfterUnlock::default();
        self.end_is_over(&mut self.shard(self.hash_of(generation)), generation, outcome, &mut after);
        self.apply_deferred(after) || self.outbox.is_some()
    }
}
