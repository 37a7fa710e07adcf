//! The tracker's side of the registry: queued records, and the steps that follow the answers. A recorded session
//! starts; a recorded claim ends.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    Origin, Tracker,
    clock::nanos,
    generation::{AfterStart, ClaimState, Generation, PendingEnd, RecordState, Scope, Stage},
    order::{AfterUnlock, Outcome},
    outbox::OutboxEntry,
    shard::Shard,
};
use crate::{
    observability::ReleaseCause,
    registry::{EndRecord, Record},
    session::{EndReason, GenerationId, Phase, SessionId},
    sync::{Ordering, lock},
};

impl Tracker {
    /// This process holds the record of the generation. `joined` is the record, if another process had started the
    /// session.
    pub(crate) fn on_held(&self, generation: &Arc<Generation>, joined: Option<&Record>) {
        self.open_start(generation, |generation| {
            generation.set_record_state(RecordState::Held);
            if let Some(record) = joined {
                generation.join_record(record);
            }
        });
    }

    /// The generation starts without its record.
    pub(crate) fn start_unrecorded(&self, generation: &Arc<Generation>) {
        self.open_start(generation, |_| {});
    }

    /// Changes the record's state under the shard's lock. A start that has waited for the record runs.
    fn open_start(&self, generation: &Arc<Generation>, change: impl FnOnce(&Generation)) {
        let mut after_unlock = AfterUnlock::default();
        {
            let mut shard = self.shard(self.hash_of(generation));
            change(generation);
            self.run_waiting_start(&mut shard, generation, &mut after_unlock);
        }
        self.apply_after_unlock(after_unlock);
    }

    pub(super) fn run_waiting_start(
        &self,
        shard: &mut Shard,
        generation: &Arc<Generation>,
        after_unlock: &mut AfterUnlock,
    ) {
        if generation.stop_waiting_for_record() && generation.release_predecessor() {
            self.start(shard, generation, after_unlock);
        }
        generation.notify_recorded();
    }

    /// Another process has ended this generation, or forgotten it, `age` ago. Here it is released, and its streams and its
    /// children end. If the host has noted it again since, it goes on as a new generation.
    pub(crate) fn on_gone(&self, id: &SessionId, generation_id: GenerationId, age: Option<Duration>) {
        let hash = self.hash(id.as_bytes());
        let mut after_unlock = AfterUnlock::default();
        {
            let mut shard = self.shard(hash);
            let is_meant = |generation: &&Arc<Generation>| self.generation_id(generation) == generation_id;
            let Some(generation) = shard.generations(hash, id).find(is_meant).cloned() else { return };
            let now = self.clock.now();
            let ended_at = age.map(|age| now.saturating_sub(nanos(age)));
            if !generation.is_active() {
                // The answer to its end will say so.
                generation.set_record_state(RecordState::TakenOver);
            } else if let Some(at) = ended_at
                && generation.is_noted_since(at)
                && self.phase() < Phase::Closing
            {
                self.end_earlier_children(&mut shard, &generation, at, &mut after_unlock);
                after_unlock.listeners.append(&mut generation.take_listeners());
                self.renew(&mut shard, &generation, self.clock.wall(now), &mut after_unlock);
            } else {
                self.claim_gone(&mut shard, hash, &generation, &mut after_unlock);
            }
        }
        self.apply_after_unlock(after_unlock);
    }

    /// Claims an active generation that another process has ended.
    fn claim_gone(&self, shard: &mut Shard, hash: u64, generation: &Arc<Generation>, after_unlock: &mut AfterUnlock) {
        generation.set_record_state(RecordState::TakenOver);
        self.remove_active(shard, hash, generation, ClaimState::EndPending, true, after_unlock);
        shard.counts.pending_ends += 1;
        if !generation.is_given_up() {
            self.awaited.fetch_add(1, Ordering::SeqCst);
        }
        if !shard.children.is_empty() {
            let end = self.pending_end(EndReason::Unknown, Scope::Here);
            self.end_children(shard, generation, &end, false, after_unlock);
        }
        self.complete_or_defer(shard, generation, AfterStart::Release(ReleaseCause::EndedElsewhere), after_unlock);
        if generation.waits_for_record() {
            generation.skip_start(&self.record_of(generation));
            self.run_waiting_start(shard, generation, after_unlock);
        }
    }

    /// This process delivers the end of a claimed generation.
    pub(crate) fn resolve_owned(&self, generation: &Arc<Generation>, end: PendingEnd) {
        self.resolve(generation, AfterStart::RunEnd(end));
    }

    /// This process does not deliver the end of a claimed generation. A running start is awaited first. If the start still
    /// waits for the record, no hook is called.
    pub(crate) fn resolve_released(&self, generation: &Arc<Generation>, cause: ReleaseCause) {
        self.resolve(generation, AfterStart::Release(cause));
        self.skip_start(generation);
    }

    /// A claimed generation that waits for its record goes on without a start.
    pub(crate) fn skip_start(&self, generation: &Arc<Generation>) {
        if generation.waits_for_record() {
            let record = self.record_of(generation);
            self.open_start(generation, |generation| generation.skip_start(&record));
        }
    }

    /// The lease has expired, and other processes have ended every generation with a record. Active ones go on as new
    /// generations. A generation that has started and whose record may not exist keeps its id: no other process may have
    /// seen it, and its end would be lost.
    pub(crate) fn restart_all(&self) {
        let now = self.clock.wall(self.clock.now());
        let is_recovered = |generation: &&Arc<Generation>| match generation.record_state() {
            RecordState::Held => true,
            RecordState::Sent => generation.waits_for_record(),
            RecordState::None | RecordState::Unsent | RecordState::TakenOver => false,
        };
        for shard in &self.shards {
            let mut after_unlock = AfterUnlock::default();
            {
                let mut shard = lock(shard);
                for generation in shard.pending_ends().filter(is_recovered) {
                    if generation.waits_for_record() {
                        // Nobody ends it if its record was not written. Its end is queued, and records it first.
                        let started_at = self.clock.wall(generation.started_at);
                        generation.restart_as(GenerationId::new(self.instance, self.next_number()), started_at);
                        generation.set_record_state(RecordState::Unsent);
                    } else {
                        generation.set_record_state(RecordState::TakenOver);
                    }
                }
                let active: Vec<_> = shard.active().filter(is_recovered).cloned().collect();
                for generation in &active {
                    self.renew(&mut shard, generation, now, &mut after_unlock);
                }
            }
            self.apply_after_unlock(after_unlock);
        }
    }

    /// The registry has lost its records: each generation is held again before an answer about it counts.
    pub(crate) fn mark_records_lost(&self) {
        for shard in &self.shards {
            let shard = lock(shard);
            for generation in shard
                .active()
                .chain(shard.pending_ends())
                .filter(|generation| generation.record_state() == RecordState::Held)
            {
                generation.set_record_state(RecordState::Sent);
            }
        }
        self.rehold_unrecorded();
    }

    /// Queues a hold for every active generation whose record may not exist.
    pub(crate) fn rehold_unrecorded(&self) {
        for shard in &self.shards {
            let shard = lock(shard);
            let missing = |generation: &&Arc<Generation>| {
                matches!(generation.record_state(), RecordState::Unsent | RecordState::Sent)
            };
            for generation in shard.active().filter(missing) {
                // A process that has made the id in the outage may not have recorded it yet.
                generation.find_again();
                self.rehold(generation);
            }
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
    pub(super) fn record_start(&self, generation: &Arc<Generation>, origin: Origin) {
        if let Some(outbox) = &self.outbox {
            generation.wait_for_record(origin);
            outbox.push(OutboxEntry::Hold(Arc::clone(generation)));
        }
    }

    /// Must be called under the shard's lock.
    pub(super) fn record_details(&self, generation: &Arc<Generation>) {
        if let Some(outbox) = &self.outbox
            && generation.queue_update()
        {
            outbox.push(OutboxEntry::Update(Arc::clone(generation)));
        }
    }

    pub(super) fn record_end_done(&self, generation: &Arc<Generation>, outcome: Outcome) {
        if let Some(outbox) = &self.outbox {
            if let Some(recovery) = generation.recovery() {
                recovery.on_outcome(outcome);
            }
            // Otherwise the record stays: the end is delivered again, by this process or by the next one.
            if outcome == Outcome::Ended && generation.record_state().is_on_record() {
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

    /// Others have ended an active generation: it goes on as a new one, whose start waits for the registry.
    fn renew(&self, shard: &mut Shard, generation: &Arc<Generation>, now: SystemTime, after_unlock: &mut AfterUnlock) {
        let owes_start = generation.stage() == Stage::Waiting && !generation.waits_for_record();
        if owes_start || generation.stage() == Stage::Starting {
            // The start belongs to the old generation. The end of the start renews it.
            generation.set_record_state(RecordState::TakenOver);
            return;
        }
        shard.counts.starts += 1;
        shard.counts.ended_elsewhere += 1;
        after_unlock.effects.restarted();
        let number = self.next_number();
        generation.restart_as(GenerationId::new(self.instance, number), now);
        if generation.waits_for_record() {
            generation.set_not_found();
            return self.rehold(generation);
        }
        generation.set_stage(Stage::Waiting);
        self.record_start(generation, Origin::Carried);
        // The registry has said that its record is gone.
        generation.set_not_found();
    }

    /// Must be called when a start has completed. Another process may have ended the generation meanwhile.
    pub(super) fn renew_if_taken_over(
        &self,
        shard: &mut Shard,
        generation: &Arc<Generation>,
        after_unlock: &mut AfterUnlock,
    ) {
        if self.outbox.is_some() && generation.is_active() && generation.record_state() == RecordState::TakenOver {
            self.renew(shard, generation, self.clock.wall(self.clock.now()), after_unlock);
        }
    }

    /// Must be called when the registry has answered the claim of a generation. After the registry has lost its records, a later
    /// generation of this process may have joined the same record. It goes on as a new one.
    pub(crate) fn renew_joined(&self, claimed: &Arc<Generation>) {
        let (hash, generation_id) = (self.hash_of(claimed), self.generation_id(claimed));
        let mut after_unlock = AfterUnlock::default();
        {
            let mut shard = self.shard(hash);
            let joined = shard.find_active(hash, claimed.id.as_bytes()).cloned();
            if let Some(joined) = joined.filter(|joined| self.generation_id(joined) == generation_id) {
                self.renew(&mut shard, &joined, self.clock.wall(self.clock.now()), &mut after_unlock);
            }
        }
        self.apply_after_unlock(after_unlock);
    }

    fn rehold(&self, generation: &Arc<Generation>) {
        if let Some(outbox) = &self.outbox {
            outbox.push(OutboxEntry::Hold(Arc::clone(generation)));
        }
    }
}
