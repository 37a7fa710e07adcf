//! The order of hooks: a generation's end after its start, and its start after the ends before it.
//!
//! Every step is taken under the lock of the generation's shard. What the end of one generation sets free in another
//! shard is collected and released once that lock is gone, so no step ever holds two locks.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{
    Tracker,
    clock::{Clock, Nanos},
    entry::{Claim, Due, Ending, Entry, Stage},
    ledger::Op,
    queue::Job,
    shard::Shard,
    telling::Telling,
    tombstones::TICKS,
};
use crate::{
    observability::LetGo,
    session::{EndReason, Phase},
    sync::Ordering,
};

/// What a step under a lock sets free, for when the lock is gone.
#[derive(Default)]
pub(super) struct Released {
    /// Jobs that go to the queue together, before the lock is gone: with `None`, each goes there at once.
    pub(super) jobs: Option<Vec<Job>>,
    /// Generations whose start waited for an end that is over now.
    entries: Vec<Arc<Entry>>,
    /// Streams that waited for a claim.
    pub(super) streams: Vec<CancellationToken>,
    /// Whoever waits for the end of it all has to look.
    pub(super) quiet: bool,
    /// What has happened.
    pub(super) telling: Telling,
}

impl Released {
    #[inline]
    fn is_nothing(&self) -> bool {
        self.entries.is_empty() && self.streams.is_empty() && !self.quiet && self.telling.is_nothing()
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
    pub(super) fn begin(&self, shard: &mut Shard, entry: &Arc<Entry>, released: &mut Released) {
        if self.has_start && !(self.ledger.is_some() && entry.is_joined()) {
            entry.set_stage(Stage::Starting);
            self.queue.push(Job::Start(Arc::clone(entry)));
        } else {
            self.start_is_over(shard, entry, released);
        }
    }

    #[inline]
    fn start_is_over(&self, shard: &mut Shard, entry: &Arc<Entry>, released: &mut Released) {
        entry.set_stage(Stage::Started);
        // Parked by its claimer, who has left it among the claimed ones.
        if !entry.is_active()
            && let Some(parked) = entry.unpark()
        {
            self.finish(shard, entry, parked, released);
        }
    }

    /// Claims an active generation whose `session_end` is now owed.
    #[inline]
    pub(super) fn owe(
        &self,
        shard: &mut Shard,
        hash: u64,
        entry: &Arc<Entry>,
        ending: Ending,
        released: &mut Released,
    ) {
        let is_compaction = ending.reason == EndReason::Compaction;
        let claim = if is_compaction { Claim::Compacted } else { Claim::Owed };
        if self.leave(shard, hash, entry, claim, ending.at, released) {
            // No hook is to be called.
            shard.counts.ended += 1;
            released.telling.ended(entry, &ending);
            return;
        }
        shard.counts.owed += 1;
        if !entry.is_given_up() {
            self.awaited.fetch_add(1, Ordering::SeqCst);
        }
        match &self.ledger {
            // Whether it is ours to deliver, the registry says.
            Some(ledger) => ledger.push(Op::Claimed(Arc::clone(entry), ending)),
            None => {
                released.telling.ended(entry, &ending);
                self.finish_or_park(shard, entry, Due::End(ending), released);
            }
        }
    }

    /// Claims an active generation silently.
    pub(super) fn disown(&self, shard: &mut Shard, hash: u64, entry: &Arc<Entry>, kept: bool, released: &mut Released) {
        if kept {
            shard.counts.kept += 1;
            released.telling.let_go(entry, LetGo::Kept);
        } else {
            shard.counts.forgotten += 1;
            released.telling.let_go(entry, LetGo::Forgotten);
        }
        let is_over = self.leave(shard, hash, entry, Claim::Forgotten, self.clock.now(), released);
        if let Some(ledger) = &self.ledger {
            ledger.push(Op::Disowned(Arc::clone(entry), kept));
        }
        if !is_over {
            self.finish_or_park(shard, entry, Due::Nothing, released);
        }
    }

    /// Takes a generation out of the active ones. True if it has no hooks to come: then it is over.
    #[inline]
    pub(super) fn leave(
        &self,
        shard: &mut Shard,
        hash: u64,
        entry: &Arc<Entry>,
        claim: Claim,
        now: Nanos,
        released: &mut Released,
    ) -> bool {
        debug_assert!(entry.is_active(), "a generation is claimed once");
        // Where there is a registry, that has the last word.
        let is_over =
            self.ledger.is_none() && entry.stage() >= Stage::Started && (claim == Claim::Forgotten || !self.has_end);
        entry.set_claim(claim);
        shard.claim(hash, entry, !is_over, |entry| self.hash_of(entry));
        released.telling.left();
        if is_over {
            entry.set_stage(Stage::Over);
        }
        entry.with_any_rare(|rare| {
            if claim != Claim::Compacted {
                released.streams.append(&mut rare.listeners);
            }
            if is_over {
                released.entries.append(&mut rare.successors);
            }
        });
        let stops = self.phase() >= Phase::Closing;
        if stops && entry.requests() == 0 {
            // Noted in a handler, maybe, and the head with its id has yet to leave: that is no other session.
            let now = Clock::tick(now);
            if now.wrapping_sub(Clock::tick(entry.born)) <= TICKS {
                shard.tombstones.set(hash, now);
            }
        }
        self.totals.claimed.fetch_add(1, Ordering::SeqCst);
        released.quiet |= stops && self.len() == 0;
        if is_over {
            self.shrink(shard);
        }
        is_over
    }

    #[inline]
    pub(super) fn finish_or_park(&self, shard: &mut Shard, entry: &Arc<Entry>, due: Due, released: &mut Released) {
        if entry.stage() < Stage::Started {
            entry.park(due);
        } else {
            self.finish(shard, entry, due, released);
        }
    }

    /// Its start is over and it is claimed: its end is due, or nothing is.
    fn finish(&self, shard: &mut Shard, entry: &Arc<Entry>, due: Due, released: &mut Released) {
        match due {
            Due::End(ending) if self.has_end => {
                entry.set_stage(Stage::EndQueued);
                let job = Job::End(Arc::clone(entry), ending);
                match &mut released.jobs {
                    Some(jobs) => jobs.push(job),
                    None => self.queue.push(job),
                }
            }
            Due::End(_) => self.end_is_over(shard, entry, Outcome::Ended, released),
            Due::NotOurs(why) => self.is_elsewhere(shard, entry, why, released),
            Due::Nothing => self.over(shard, entry, released),
        }
    }

    fn end_is_over(&self, shard: &mut Shard, entry: &Arc<Entry>, outcome: Outcome, released: &mut Released) {
        let counts = &mut shard.counts;
        counts.owed -= 1;
        match outcome {
            Outcome::Ended => counts.ended += 1,
            Outcome::Failed => counts.failed += 1,
            Outcome::Aborted => {
                counts.aborted += 1;
                shard.aborted.push(Arc::clone(entry));
            }
        }
        self.record_over(entry, outcome);
        if !entry.is_given_up() {
            released.quiet |= self.no_longer_awaited();
        }
        self.over(shard, entry, released);
    }

    pub(super) fn over(&self, shard: &mut Shard, entry: &Arc<Entry>, released: &mut Released) {
        entry.set_stage(Stage::Over);
        shard.remove(self.hash_of(entry), entry);
        self.shrink(shard);
        released.entries.append(&mut entry.take_successors());
    }

    /// Not in a stop: what is left of the tables goes soon, and the moves are the drain's time.
    #[inline]
    fn shrink(&self, shard: &mut Shard) {
        if self.phase() < Phase::Closing {
            shard.shrink(|entry| self.hash_of(entry));
        }
    }

    /// Lets go on what waited for ends that are over now; says whether any of it did.
    #[inline]
    pub(super) fn release(&self, released: Released) -> bool {
        if released.is_nothing() { false } else { self.release_all(released) }
    }

    #[inline(never)]
    fn release_all(&self, mut released: Released) -> bool {
        let any = !released.entries.is_empty();
        while let Some(entry) = released.entries.pop() {
            let mut shard = self.shard(self.hash_of(&entry));
            if entry.predecessor_is_over() {
                self.begin(&mut shard, &entry, &mut released);
            }
        }
        // After all of it: where nobody is to be told, a start and an end are over at once.
        released.streams.drain(..).for_each(|stream| stream.cancel());
        if released.quiet {
            self.quiet.notify_waiters();
        }
        self.tell(&released.telling);
        any
    }

    /// To be called once for every [`Job::Start`], when its hooks are over. True if that may have queued a job.
    pub(crate) fn started(&self, entry: &Arc<Entry>) -> bool {
        let mut released = Released::default();
        self.start_is_over(&mut self.shard(self.hash_of(entry)), entry, &mut released);
        self.release(released) || !entry.is_active()
    }

    /// To be called once for every [`Job::End`], when its hooks are over. True if that may have queued a job, or a change
    /// to write.
    pub(crate) fn ended(&self, entry: &Arc<Entry>, outcome: Outcome) -> bool {
        let mut released = Released::default();
        self.end_is_over(&mut self.shard(self.hash_of(entry)), entry, outcome, &mut released);
        self.release(released) || self.ledger.is_some()
    }
}
