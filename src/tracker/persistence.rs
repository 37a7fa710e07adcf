//! What the registry's answers come to: a recorded birth goes on to its start, a recorded claim to its end.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    Tracker,
    effects::Effects,
    generation::{AfterStart, ClaimState, Generation, PendingEnd, RecordState, Stage},
    order::{AfterUnlock, Outcome},
    outbox::OutboxEntry,
    shard::Shard,
};
use crate::{
    observability::ReleaseCause,
    registry::{EndRecord, Record},
    session::GenerationId,
    sync::lock,
};

impl Tracker {
    /// To be called under the lock, for a newcomer: its start waits for the record.
    pub(super) fn record_start(&self, generation: &Arc<Generation>) {
        if let Some(outbox) = &self.outbox {
            generation.wait_for_record();
            outbox.push(OutboxEntry::Hold(Arc::clone(generation)));
        }
    }

    /// To be called under the lock.
    pub(super) fn record_details(&self, generation: &Arc<Generation>) {
        if let Some(outbox) = &self.outbox {
            outbox.push(OutboxEntry::Update(Arc::clone(generation)));
        }
    }

    /// A hold is written, or given up: `state` says which. With `joined`, an older generation goes on here.
    pub(crate) fn on_hold_recorded(&self, generation: &Arc<Generation>, state: RecordState, joined: Option<&Record>) {
        let mut after_unlock = AfterUnlock::default();
        {
            let mut shard = self.shard(self.hash_of(generation));
            let waited = generation.set_record_state(state) == RecordState::Pending;
            if let Some(record) = joined {
                generation.join_record(record);
            }
            if waited && generation.release_predecessor() {
                self.start(&mut shard, generation, &mut after_unlock);
            }
        }
        generation.notify_recorded();
        self.apply_after_unlock(after_unlock);
    }

    /// The end of a claimed generation is ours to deliver.
    pub(crate) fn resolve_owned(&self, generation: &Arc<Generation>, end: PendingEnd) {
        self.resolve(generation, AfterStart::RunEnd(end));
    }

    /// It is not: nothing is delivered here. A start that is under way is awaited all the same.
    pub(crate) fn resolve_released(&self, generation: &Arc<Generation>, cause: ReleaseCause) {
        self.resolve(generation, AfterStart::Release(cause));
    }

    fn resolve(&self, generation: &Arc<Generation>, action: AfterStart) {
        let mut after_unlock = AfterUnlock::default();
        if let AfterStart::RunEnd(end) = &action {
            after_unlock.effects.ended(generation, end);
        }
        self.complete_or_defer(&mut self.shard(self.hash_of(generation)), generation, action, &mut after_unlock);
        self.apply_after_unlock(after_unlock);
    }

    pub(super) fn release_claimed(
        &self,
        shard: &mut Shard,
        generation: &Arc<Generation>,
        cause: ReleaseCause,
        after_unlock: &mut AfterUnlock,
    ) {
        let counts = &mut shard.counts;
        counts.pending_ends -= 1;
        counts.release(cause);
        if !generation.is_given_up() {
            after_unlock.drained |= self.decrement_awaited();
        }
        generation.set_claim(ClaimState::Forgotten);
        after_unlock.effects.released(generation, cause);
        if let Some(recovery) = generation.recovery() {
            recovery.on_released();
        }
        self.retire(shard, generation, after_unlock);
    }

    pub(super) fn record_end_done(&self, generation: &Arc<Generation>, outcome: Outcome) {
        if let Some(outbox) = &self.outbox {
            if let Some(recovery) = generation.recovery() {
                recovery.on_outcome(outcome);
            }
            // One that was torn from the middle is delivered again, by whoever comes after us.
            if outcome != Outcome::Aborted {
                outbox.push(OutboxEntry::Delivered(Arc::clone(generation)));
            }
        }
    }

    /// The lease was over, and others have ended what was held: what is active goes on as new generations. What may
    /// never have come to the registry has been ended by nobody: it is held again, under its own name.
    pub(crate) fn restart_all(&self) {
        let now = self.clock.wall(self.clock.now());
        let mut effects = Effects::default();
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.pending_ends().filter(|generation| generation.record_state() == RecordState::Held).for_each(
                |generation| {
                    generation.set_record_state(RecordState::TakenOver);
                },
            );
            let active: Vec<_> =
                shard.active().filter(|generation| generation.record_state() == RecordState::Held).cloned().collect();
            for generation in &active {
                shard.counts.starts += 1;
                shard.counts.ended_elsewhere += 1;
                effects.restarted();
                self.restart(generation, now);
            }
        }
        self.emit(&effects);
    }

    fn restart(&self, generation: &Arc<Generation>, now: SystemTime) {
        let number = self.next_number();
        generation.restart_as(GenerationId::new(self.instance, number), now);
        if generation.stage() == Stage::Starting {
            // Its start is under way, and is the start of this one too.
            generation.set_record_state(RecordState::None);
            self.rehold(generation);
        } else {
            generation.set_stage(Stage::Waiting);
            self.record_start(generation);
        }
    }

    /// The registry has lost its memory: everything is to be held again before it is believed.
    pub(crate) fn mark_records_uncertain(&self) {
        for shard in &self.shards {
            let shard = lock(shard);
            for generation in shard
                .active()
                .chain(shard.pending_ends())
                .filter(|generation| generation.record_state() == RecordState::Held)
            {
                generation.set_record_state(RecordState::Uncertain);
            }
        }
        self.rehold_unrecorded();
    }

    /// Holds whatever is active and not on record.
    pub(crate) fn rehold_unrecorded(&self) {
        for shard in &self.shards {
            let shard = lock(shard);
            let missing = |generation: &&Arc<Generation>| {
                matches!(generation.record_state(), RecordState::None | RecordState::Uncertain)
            };
            shard.active().filter(missing).for_each(|generation| self.rehold(generation));
        }
    }

    fn rehold(&self, generation: &Arc<Generation>) {
        if let Some(outbox) = &self.outbox {
            outbox.push(OutboxEntry::Hold(Arc::clone(generation)));
        }
    }

    /// What is to be written of this generation.
    pub(crate) fn record_of(&self, generation: &Generation) -> Record {
        let started_at =
            generation.registry_view(|view| view.started_at).unwrap_or_else(|| self.clock.wall(generation.started_at));
        Record::new(generation.session(), self.generation_id(generation), started_at)
    }

    pub(crate) fn end_record_of(&self, generation: &Generation, end: &PendingEnd) -> EndRecord {
        let next = end.next.as_deref().cloned();
        EndRecord::new(end.reason, next, self.clock.wall(end.at), generation.requests())
    }

    /// When a generation began, how long it lasted, and how many requests it saw.
    pub(crate) fn start_duration_requests(
        &self,
        generation: &Generation,
        end: &PendingEnd,
    ) -> (SystemTime, Duration, u64) {
        let started_here = || {
            let duration = Duration::from_nanos(end.at.saturating_sub(generation.started_at));
            (self.clock.wall(generation.started_at), duration, generation.requests())
        };
        if self.outbox.is_none() {
            return started_here();
        }
        let elsewhere = generation.registry_view(|view| {
            let ended_at = view.ended_at.unwrap_or_else(|| self.clock.wall(end.at));
            let duration = ended_at.duration_since(view.started_at).unwrap_or_default();
            (view.started_at, duration, view.requests.unwrap_or_else(|| generation.requests()))
        });
        elsewhere.unwrap_or_else(started_here)
    }
}
