//! What the registry's answers come to: a recorded birth goes on to its start, a recorded claim to its end.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    Tracker,
    chain::{Outcome, Released},
    entry::{Claim, Due, Ending, Entry, Recorded, Stage},
    ledger::Op,
    shard::Shard,
    taking_over::NotOurs,
    telling::Telling,
};
use crate::{
    registry::{EndRecord, Record},
    session::EventId,
    sync::lock,
};

impl Tracker {
    /// To be called under the lock, for a newcomer: its start waits for the record.
    pub(super) fn record_birth(&self, entry: &Arc<Entry>) {
        if let Some(ledger) = &self.ledger {
            entry.wait_for_record();
            ledger.push(Op::Hold(Arc::clone(entry)));
        }
    }

    /// To be called under the lock.
    pub(super) fn record_details(&self, entry: &Arc<Entry>) {
        if let Some(ledger) = &self.ledger {
            ledger.push(Op::Update(Arc::clone(entry)));
        }
    }

    /// A hold is written, or given up: `state` says which. With `joined`, an older generation goes on here.
    pub(crate) fn held(&self, entry: &Arc<Entry>, state: Recorded, joined: Option<&Record>) {
        let mut released = Released::default();
        {
            let mut shard = self.shard(self.hash_of(entry));
            let waited = entry.set_recorded(state) == Recorded::Pending;
            if let Some(record) = joined {
                entry.join(record);
            }
            if waited && entry.predecessor_is_over() {
                self.begin(&mut shard, entry, &mut released);
            }
        }
        entry.tell_recorded();
        self.release(released);
    }

    /// The end of a claimed generation is ours to deliver.
    pub(crate) fn is_ours(&self, entry: &Arc<Entry>, ending: Ending) {
        self.is_due(entry, Due::End(ending));
    }

    /// It is not: nothing is delivered here. A start that is under way is awaited all the same.
    pub(crate) fn is_not_ours(&self, entry: &Arc<Entry>, why: NotOurs) {
        self.is_due(entry, Due::NotOurs(why));
    }

    fn is_due(&self, entry: &Arc<Entry>, due: Due) {
        let mut released = Released::default();
        if let Due::End(ending) = &due {
            released.telling.ended(entry, ending);
        }
        self.finish_or_park(&mut self.shard(self.hash_of(entry)), entry, due, &mut released);
        self.release(released);
    }

    pub(super) fn is_elsewhere(&self, shard: &mut Shard, entry: &Arc<Entry>, why: NotOurs, released: &mut Released) {
        let counts = &mut shard.counts;
        counts.owed -= 1;
        match why {
            NotOurs::Others => counts.others += 1,
            NotOurs::Gone => counts.gone += 1,
            NotOurs::HandedOver => counts.handed_over += 1,
        }
        if !entry.is_given_up() {
            released.quiet |= self.no_longer_awaited();
        }
        entry.set_claim(Claim::Forgotten);
        released.telling.let_go(entry, why.how());
        if let Some(recovery) = entry.recovery() {
            recovery.is_elsewhere();
        }
        self.over(shard, entry, released);
    }

    pub(super) fn record_over(&self, entry: &Arc<Entry>, outcome: Outcome) {
        if let Some(ledger) = &self.ledger {
            if let Some(recovery) = entry.recovery() {
                recovery.count(outcome);
            }
            // One that was torn from the middle is delivered again, by whoever comes after us.
            if outcome != Outcome::Aborted {
                ledger.push(Op::Over(Arc::clone(entry)));
            }
        }
    }

    /// The lease was over, and others have ended what was held: what is active goes on as new generations. What may
    /// never have come to the registry has been ended by nobody: it is held again, under its own name.
    pub(crate) fn renew_all(&self) {
        let now = self.clock.wall(self.clock.now());
        let mut telling = Telling::default();
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.owed().filter(|entry| entry.recorded() == Recorded::Held).for_each(|entry| {
                entry.set_recorded(Recorded::Taken);
            });
            let active: Vec<_> = shard.active().filter(|entry| entry.recorded() == Recorded::Held).cloned().collect();
            for entry in &active {
                shard.counts.births += 1;
                shard.counts.gone += 1;
                telling.renewed();
                self.renew(entry, now);
            }
        }
        self.tell(&telling);
    }

    fn renew(&self, entry: &Arc<Entry>, now: SystemTime) {
        let generation = self.number();
        entry.renew(EventId::new(self.instance, generation), now);
        if entry.stage() == Stage::Starting {
            // Its start is under way, and is the start of this one too.
            entry.set_recorded(Recorded::Not);
            self.hold_again(entry);
        } else {
            entry.set_stage(Stage::Waiting);
            self.record_birth(entry);
        }
    }

    /// The registry has lost its memory: everything is to be held again before it is believed.
    pub(crate) fn doubt_all(&self) {
        for shard in &self.shards {
            let shard = lock(shard);
            for entry in shard.active().chain(shard.owed()).filter(|entry| entry.recorded() == Recorded::Held) {
                entry.set_recorded(Recorded::Doubtful);
            }
        }
        self.hold_the_rest();
    }

    /// Holds whatever is active and not on record.
    pub(crate) fn hold_the_rest(&self) {
        for shard in &self.shards {
            let shard = lock(shard);
            let missing = |entry: &&Arc<Entry>| matches!(entry.recorded(), Recorded::Not | Recorded::Doubtful);
            shard.active().filter(missing).for_each(|entry| self.hold_again(entry));
        }
    }

    fn hold_again(&self, entry: &Arc<Entry>) {
        if let Some(ledger) = &self.ledger {
            ledger.push(Op::Hold(Arc::clone(entry)));
        }
    }

    /// What is to be written of this generation.
    pub(crate) fn record_of(&self, entry: &Entry) -> Record {
        let started_at = entry.origin(|origin| origin.started_at).unwrap_or_else(|| self.clock.wall(entry.born));
        Record::new(entry.session(), self.event_id(entry), started_at)
    }

    pub(crate) fn end_record_of(&self, entry: &Entry, ending: &Ending) -> EndRecord {
        let next = ending.next.as_deref().cloned();
        EndRecord::new(ending.reason, next, self.clock.wall(ending.at), entry.requests())
    }

    /// When a generation began, how long it lasted, and how many requests it saw.
    pub(crate) fn life_of(&self, entry: &Entry, ending: &Ending) -> (SystemTime, Duration, u64) {
        let born_here = || {
            let duration = Duration::from_nanos(ending.at.saturating_sub(entry.born));
            (self.clock.wall(entry.born), duration, entry.requests())
        };
        if self.ledger.is_none() {
            return born_here();
        }
        let elsewhere = entry.origin(|origin| {
            let ended_at = origin.ended_at.unwrap_or_else(|| self.clock.wall(ending.at));
            let duration = ended_at.duration_since(origin.started_at).unwrap_or_default();
            (origin.started_at, duration, origin.requests.unwrap_or_else(|| entry.requests()))
        });
        elsewhere.unwrap_or_else(born_here)
    }
}
