//! The worker thread: everything that can block runs here, one job after the other.

use std::{
    collections::VecDeque,
    sync::mpsc::{Receiver, TryRecvError},
};

use rusqlite::{
    Transaction, TransactionBehavior,
    TransactionBehavior::{Deferred, Immediate},
};
use tokio::sync::oneshot;

use super::{
    dead_letters,
    error::Failure,
    holder::Holder,
    recovery::{ClaimedOrphans, Recovery, Step},
};
use crate::{
    registry::{Applied, Change, DeadLetter, Heartbeat, RegistryError},
    session::GenerationId,
};

/// How many pages one call of `claim_orphans` reads without a result. Other jobs run between them.
const PAGES_PER_CALL: u32 = 4;

pub(super) type Reply<T> = oneshot::Sender<Result<T, RegistryError>>;

pub(super) enum Job {
    Apply(Vec<Change>, Reply<Vec<Applied>>),
    Heartbeat(Reply<Heartbeat>),
    /// The orphans, and how many pages this call has read.
    ClaimOrphans(usize, u32, Reply<ClaimedOrphans>),
    ReleaseLease(Reply<()>),
    DeadLetters {
        after: i64,
        limit: usize,
        reply: Reply<dead_letters::Page<DeadLetter>>,
    },
    Redeliver(GenerationId, Reply<bool>),
    RedeliverAfter {
        after: i64,
        reply: Reply<dead_letters::Page<()>>,
    },
}

impl Job {
    /// Whether its caller still waits. If not, the job is skipped: the call will be repeated.
    fn is_wanted(&self) -> bool {
        !match self {
            Self::Apply(_, reply) => reply.is_closed(),
            Self::Heartbeat(reply) => reply.is_closed(),
            Self::ClaimOrphans(.., reply) => reply.is_closed(),
            Self::ReleaseLease(reply) => reply.is_closed(),
            Self::DeadLetters { reply, .. } => reply.is_closed(),
            Self::Redeliver(_, reply) => reply.is_closed(),
            Self::RedeliverAfter { reply, .. } => reply.is_closed(),
        }
    }
}

/// The state of the thread.
pub(super) struct Worker {
    holder: Holder,
    recovery: Recovery,
    jobs: Receiver<Job>,
    /// Taken from the queue, or to be continued. A job that continues stands behind those that have come meanwhile.
    next: VecDeque<Job>,
    /// A failure that changed this holder, and that its caller did not wait for. The next call returns it.
    unheard: Option<Failure>,
    /// A recovery has pages left. The next heartbeat asks to be repeated at once.
    is_unfinished: bool,
}

impl Worker {
    pub(super) fn new(holder: Holder, jobs: Receiver<Job>) -> Self {
        let (recovery, next) = (Recovery::default(), VecDeque::new());
        Self { holder, recovery, jobs, next, unheard: None, is_unfinished: false }
    }

    /// Runs until the holder releases its lease, or the last handle is dropped.
    pub(super) fn run(mut self) {
        while let Some(job) = self.take() {
            if !job.is_wanted() {
                continue;
            }
            match job {
                Job::Apply(changes, reply) => self.apply(changes, reply),
                Job::Heartbeat(reply) => {
                    let result = self.checked(Self::heartbeat);
                    self.answer(reply, result);
                }
                Job::ClaimOrphans(max, pages, reply) => self.claim_orphans(max, pages, reply),
                Job::ReleaseLease(reply) => {
                    drop(reply.send(self.holder.release_lease().map_err(Into::into)));
                    return;
                }
                Job::DeadLetters { after, limit, reply } => {
                    self.operate(reply, Deferred, |tx| dead_letters::list(tx, after, limit));
                }
                Job::Redeliver(generation, reply) => {
                    self.operate(reply, Immediate, |tx| dead_letters::redeliver(tx, generation))
                }
                Job::RedeliverAfter { after, reply } => {
                    self.operate(reply, Immediate, |tx| dead_letters::redeliver_after(tx, after));
                }
            }
        }
    }

    /// The next job; waits for one. None once the last handle was dropped.
    fn take(&mut self) -> Option<Job> {
        loop {
            match self.jobs.try_recv() {
                Ok(job) => self.push(job),
                Err(TryRecvError::Disconnected) if self.next.is_empty() => return None,
                Err(_) => break,
            }
        }
        self.next.pop_front().or_else(|| self.jobs.recv().ok())
    }

    /// Jobs that continue stay behind.
    fn push(&mut self, job: Job) {
        let continues = |job: &Job| matches!(job, Job::ClaimOrphans(_, pages, _) if *pages > 0);
        let at = self.next.iter().position(continues).unwrap_or(self.next.len());
        self.next.insert(at, job);
    }

    /// Runs a call of the holder, unless an earlier failure has to be returned first.
    fn checked<T>(&mut self, call: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<T, Failure> {
        if let Some(failure) = self.unheard.take() {
            return Err(failure);
        }
        call(self).inspect_err(|failure| self.recovery.on_failure(failure))
    }

    fn answer<T>(&mut self, reply: Reply<T>, result: Result<T, Failure>) {
        let failure = result.as_ref().err().cloned();
        if reply.send(result.map_err(Into::into)).is_err() {
            self.keep_unheard(failure);
        }
    }

    /// The caller has gone away. It has to learn that this holder is a new one.
    fn keep_unheard(&mut self, failure: Option<Failure>) {
        if let Some(failure @ (Failure::Fenced | Failure::DataLost)) = failure {
            self.unheard = Some(failure);
        }
    }

    fn heartbeat(&mut self) -> Result<Heartbeat, Failure> {
        let mut heartbeat = self.holder.heartbeat()?;
        // After another error the next heartbeat tries again.
        if let Err(failure @ (Failure::Fenced | Failure::DataLost)) = self.recovery.remove_adopted(&mut self.holder) {
            return Err(failure);
        }
        heartbeat.has_more |= std::mem::take(&mut self.is_unfinished);
        Ok(heartbeat)
    }

    fn claim_orphans(&mut self, max: usize, pages: u32, reply: Reply<ClaimedOrphans>) {
        match self.checked(|worker| worker.recovery.claim_orphans(&mut worker.holder, max)) {
            Ok(Step::Unfinished) if pages + 1 < PAGES_PER_CALL => {
                self.next.push_back(Job::ClaimOrphans(max, pages + 1, reply));
            }
            Ok(Step::Unfinished) => {
                self.is_unfinished = true;
                self.answer(reply, Ok(ClaimedOrphans::default()));
            }
            Ok(Step::Found(orphans)) => self.answer(reply, Ok(orphans)),
            Err(failure) => self.answer(reply, Err(failure)),
        }
    }

    fn operate<T>(
        &self,
        reply: Reply<T>,
        behavior: TransactionBehavior,
        f: impl Fn(&Transaction<'_>) -> rusqlite::Result<T>,
    ) {
        drop(reply.send(self.holder.as_operator(behavior, f).map_err(Into::into)));
    }

    /// One transaction for the call, and for those that wait behind it.
    fn apply(&mut self, changes: Vec<Change>, reply: Reply<Vec<Applied>>) {
        let (mut calls, mut replies) = (vec![changes], vec![reply]);
        while let Some(Job::Apply(..)) = self.next.front() {
            let Some(Job::Apply(changes, reply)) = self.next.pop_front() else { break };
            if !reply.is_closed() {
                calls.push(changes);
                replies.push(reply);
            }
        }
        match self.checked(|worker| worker.holder.apply(&calls, |n| !replies[n].is_closed())) {
            Ok(answers) => {
                for (reply, applied) in replies.into_iter().zip(answers) {
                    self.answer(reply, Ok(applied));
                }
            }
            Err(failure) => {
                let mut is_heard = false;
                for reply in replies {
                    is_heard |= reply.send(Err(Failure::clone(&failure).into())).is_ok();
                }
                if !is_heard {
                    self.keep_unheard(Some(failure));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::{
        super::testing::{Dir, holds},
        *,
    };

    /// 6,000 sessions of a dead holder, which a living one shares.
    fn shared(dir: &Dir) -> Holder {
        let (mut living, mut dead) = (dir.holder(), dir.holder());
        for from in (0..6000).step_by(1000) {
            dead.apply(&[holds(from..from + 1000)], |_| true).unwrap();
            living.apply(&[holds(from..from + 1000)], |_| true).unwrap();
        }
        living
    }

    #[test]
    fn changes_that_come_during_a_recovery_are_applied_between_its_pages() {
        let dir = Dir::new();
        let (jobs, queue) = mpsc::channel();
        let mut worker = Worker::new(shared(&dir), queue);
        let (reply, mut orphans) = oneshot::channel();
        jobs.send(Job::ClaimOrphans(256, 0, reply)).unwrap();
        for page in 0..PAGES_PER_CALL {
            let Some(Job::ClaimOrphans(max, pages, reply)) = worker.take() else { panic!("the call goes on") };
            assert_eq!(pages, page);
            worker.claim_orphans(max, pages, reply);
            let (reply, mut answers) = oneshot::channel();
            jobs.send(Job::Apply(holds(7000..7001), reply)).unwrap();
            let Some(Job::Apply(changes, reply)) = worker.take() else { panic!("the changes come first") };
            worker.apply(changes, reply);
            assert_eq!(answers.try_recv().unwrap().unwrap(), [Applied::Created]);
        }
        assert!(orphans.try_recv().unwrap().unwrap().take().is_empty());
        assert!(worker.next.is_empty());
        assert!(worker.heartbeat().unwrap().has_more, "pages are left");
        assert!(!worker.heartbeat().unwrap().has_more, "asks once");
    }
}
