//! What the registry's answers come to: a recorded birth goes on to its start, a recorded claim to its end.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::Notify;

use super::{
    Tracker,
    chain::{Outcome, Released},
    entry::{Claim, Due, Ending, Entry, Recorded, Scope, Stage},
    ledger::Op,
    shard::Shard,
    telling::Telling,
};
use crate::{
    observability::LetGo,
    registry::{EndRecord, Orphan, Record},
    session::{EventId, SessionId},
    sync::{AtomicUsize, Ordering, lock},
};

/// Why a claimed end is not delivered here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotOurs {
    /// Other replicas still hold the session.
    Others,
    /// Somebody else has ended it.
    Gone,
    /// The registry is out of reach: whoever comes after us finds it there.
    HandedOver,
}

impl NotOurs {
    const fn how(self) -> LetGo {
        match self {
            Self::Others => LetGo::HeldByOthers,
            Self::Gone => LetGo::EndedByOthers,
            Self::HandedOver => LetGo::HandedOver,
        }
    }
}

/// How the ends that one recovery has found come out.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    pub(crate) found: AtomicUsize,
    pub(crate) ended: AtomicUsize,
    pub(crate) failed: AtomicUsize,
    /// Tried too often: nobody delivers them any more.
    pub(crate) given_up: AtomicUsize,
    /// Let go of: whoever comes after us delivers them.
    elsewhere: AtomicUsize,
    /// Told when one more is over.
    pub(crate) over: Notify,
}

impl Recovery {
    /// Those that were not delivered, for now or by us.
    pub(crate) fn left(&self) -> usize {
        let over = self.ended.load(Ordering::SeqCst) + self.failed.load(Ordering::SeqCst);
        self.found.load(Ordering::SeqCst).saturating_sub(over)
    }

    /// Those that are worth waiting for.
    pub(crate) fn running(&self) -> usize {
        self.left().saturating_sub(self.elsewhere.load(Ordering::SeqCst))
    }

    fn count(&self, outcome: Outcome) {
        match outcome {
            Outcome::Ended => &self.ended,
            Outcome::Failed => &self.failed,
            Outcome::Aborted => &self.elsewhere,
        }
        .fetch_add(1, Ordering::SeqCst);
        self.over.notify_waiters();
    }

    fn is_elsewhere(&self) {
        self.count(Outcome::Aborted);
    }
}

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
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
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

    /// Takes over an end that somebody else has left behind.
    pub(crate) fn adopt(&self, orphan: Orphan, recovery: &Arc<Recovery>) {
        let Orphan { record, end, .. } = orphan;
        let hash = self.hash(record.session.id.as_bytes());
        let now = self.clock.now();
        let ending =
            Ending { reason: end.reason, next: end.next.clone().map(Box::new), at: now, scope: Scope::Everywhere };
        let mut released = Released::default();
        {
            let mut shard = self.shard(hash);
            let is_it = |entry: &&Arc<Entry>| self.event_id(entry) == record.event_id;
            let own = shard.generations(hash, &record.session.id).find(is_it).cloned();
            let (entry, is_joined) = match own {
                // It goes on here, and a holder that is gone has ended it for all.
                Some(own) if own.is_active() => {
                    self.leave(&mut shard, &own, Claim::Owed, now, &mut released);
                    shard.counts.owed += 1;
                    own.set_recorded(Recorded::Held);
                    let is_joined = own.is_joined();
                    (own, is_joined)
                }
                // It ends here, and the claim that is on its way will find the end to be ours.
                Some(own) if own.is_owed_here() => return,
                // We have let go of it ourselves, and are not through with its start.
                own => {
                    let generation = self.generations.fetch_add(1, Ordering::Relaxed);
                    let entry = Arc::new(Entry::orphan(record.session.clone(), generation, now));
                    if let Some(own) = own {
                        own.precede(&entry);
                        entry.set_stage(Stage::Waiting);
                    }
                    shard.adopt(hash, &entry, |entry| self.hash_of(entry));
                    (entry, true)
                }
            };
            entry.end_elsewhere(&record, &end, is_joined, Arc::clone(recovery));
            recovery.found.fetch_add(1, Ordering::SeqCst);
            if !entry.is_given_up() {
                self.awaited.fetch_add(1, Ordering::SeqCst);
            }
            released.telling.recovered();
            released.telling.ended(&entry, &ending);
            self.finish_or_park(&mut shard, &entry, Due::End(ending), &mut released);
        }
        self.release(released);
    }

    /// Whether this generation is one of ours that is not over.
    pub(crate) fn has(&self, id: &SessionId, event_id: EventId) -> bool {
        let hash = self.hash(id.as_bytes());
        self.shard(hash).generations(hash, id).any(|entry| self.event_id(entry) == event_id)
    }

    /// It was tried often enough.
    pub(crate) fn forget_orphan(&self, orphan: &Orphan) {
        if let Some(ledger) = &self.ledger {
            ledger.push(Op::GivenUp(orphan.record.session.id.clone(), orphan.record.event_id));
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

impl Shard {
    /// Takes in a generation that is owed already. It comes before the next generation of its id, if there is none yet.
    fn adopt(&mut self, hash: u64, entry: &Arc<Entry>, rehash: impl Fn(&Arc<Entry>) -> u64) {
        self.counts.births += 1;
        self.counts.owed += 1;
        self.insert_owed(hash, entry, rehash);
    }
}
