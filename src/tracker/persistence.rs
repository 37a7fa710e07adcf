//! The tracker's side of the registry: queued records, and the steps that follow the answers. A recorded session
//! starts; a recorded claim ends.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    Tracker,
    effects::Effects,
    generation::{AfterStart, ClaimState, Generation, PendingEnd, RecordState, Scope, Stage},
    order::{AfterUnlock, Outcome},
    outbox::OutboxEntry,
    shard::Shard,
};
use crate::{
    observability::ReleaseCause,
    registry::{EndRecord, Record},
    session::{EndReason, GenerationId},
    sync::lock,
};

impl Tracker {
    /// A hold was answered, or the wait for it was given up. `joined` is the record of the id, if another process had
    /// started the session.
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

    /// This process delivers the end of a claimed generation.
    pub(crate) fn resolve_owned(&self, generation: &Arc<Generation>, end: PendingEnd) {
        self.resolve(generation, AfterStart::RunEnd(end));
    }

    /// This process does not deliver the end of a claimed generation. A running start is awaited first.
    pub(crate) fn resolve_released(&self, generation: &Arc<Generation>, cause: ReleaseCause) {
        self.resolve(generation, AfterStart::Release(cause));
    }

    /// The lease has expired, and other processes have ended every generation with a record. Active ones go on as new
    /// generations. A generation whose record is uncertain keeps its id: no other process may have seen it.
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

    /// The registry has lost its records: each generation is held again before an answer about it counts.
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

    /// Queues a hold for every active generation that has no record, or an uncertain one.
    pub(crate) fn rehold_unrecorded(&self) {
        for shard in &self.shards {
            let shard = lock(shard);
            let missing = |generation: &&Arc<Generation>| {
                matches!(generation.record_state(), RecordState::None | RecordState::Uncertain)
            };
            shard.active().filter(missing).for_each(|generation| self.rehold(generation));
        }
    }

    pub(crate) fn record_of(&self, generation: &Generation) -> Record {
        let started_at =
            generation.registry_view(|view| view.started_at).unwrap_or_else(|| self.clock.wall(generation.started_at));
        Record::new(generation.session(), self.generation_id(generation), started_at)
    }

    pub(crate) fn end_record_of(&self, generation: &Generation, end: &PendingEnd) -> EndRecord {
        let next = end.next.as_deref().cloned();
        EndRecord::new(end.reason, next, self.clock.wall(end.at), generation.requests())
    }

    /// The start time, the duration and the requests of a generation.
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

    /// Queues the record of a new generation, whose start waits for it. Must be called under the shard's lock.
    pub(super) fn record_start(&self, generation: &Arc<Generation>) {
        if let Some(outbox) = &self.outbox {
            generation.wait_for_record();
            outbox.push(OutboxEntry::Hold(Arc::clone(generation)));
        }
    }

    /// Must be called under the shard's lock.
    pub(super) fn record_details(&self, generation: &Arc<Generation>) {
        if let Some(outbox) = &self.outbox {
            outbox.push(OutboxEntry::Update(Arc::clone(generation)));
        }
    }

    pub(super) fn record_end_done(&self, generation: &Arc<Generation>, outcome: Outcome) {
        if let Some(outbox) = &self.outbox {
            if let Some(recovery) = generation.recovery() {
                recovery.on_outcome(outcome);
            }
            // The record of an aborted end stays, so the next process delivers it.
            if outcome != Outcome::Aborted {
                outbox.push(OutboxEntry::Delivered(Arc::clone(generation)));
            }
        }
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

    fn resolve(&self, generation: &Arc<Generation>, action: AfterStart) {
        let mut after_unlock = AfterUnlock::default();
        if let AfterStart::RunEnd(end) = &action {
            after_unlock.effects.ended(generation, end);
        }
        {
            let mut shard = self.shard(self.hash_of(generation));
            let has_ended = match &action {
                AfterStart::RunEnd(end) => (end.scope == Scope::Here).then_some(end.reason),
                AfterStart::Release(ReleaseCause::EndedElsewhere) => Some(EndReason::Unknown),
                AfterStart::Release(_) | AfterStart::Nothing => None,
            };
            // A claim with this scope has left its children to the registry's answer.
            if let Some(reason) = has_ended.filter(|_| !shard.children.is_empty()) {
                let end = self.pending_end(reason, Scope::Here);
                self.end_children(&mut shard, generation, &end, false, &mut after_unlock);
            }
            self.complete_or_defer(&mut shard, generation, action, &mut after_unlock);
        }
        self.apply_after_unlock(after_unlock);
    }

    fn restart(&self, generation: &Arc<Generation>, now: SystemTime) {
        let number = self.next_number();
        generation.restart_as(GenerationId::new(self.instance, number), now);
        if generation.stage() == Stage::Starting {
            // The running start counts as the start of the new generation.
            generation.set_record_state(RecordState::None);
            self.rehold(generation);
        } else {
            generation.set_stage(Stage::Waiting);
            self.record_start(generation);
        }
    }

    fn rehold(&self, generation: &Arc<Generation>) {
        if let Some(outbox) = &self.outbox {
            outbox.push(OutboxEntry::Hold(Arc::clone(generation)));
        }
    }
}
