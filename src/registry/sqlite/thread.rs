//! The thread: everything that can block is done here, one thing after the other.

use std::sync::mpsc::Receiver;

use tokio::sync::oneshot;

use super::{failure::Failure, holder::Holder, take_over::Handed};
use crate::registry::{Applied, Change, RegistryError};

pub(super) type Reply<T> = oneshot::Sender<Result<T, RegistryError>>;

pub(super) enum Job {
    Apply(Vec<Change>, Reply<Vec<Applied>>),
    Beat(Reply<()>),
    TakeOver(usize, Reply<Handed>),
    Leave(Reply<()>),
}

impl Job {
    /// Whether somebody still waits for it. What nobody waits for is not begun: the call will be repeated.
    fn is_wanted(&self) -> bool {
        !match self {
            Self::Apply(_, reply) => reply.is_closed(),
            Self::TakeOver(_, reply) => reply.is_closed(),
            Self::Beat(reply) | Self::Leave(reply) => reply.is_closed(),
        }
    }
}

/// Until the holder leaves, or the registry is dropped.
pub(super) fn run(mut holder: Holder, jobs: &Receiver<Job>) {
    let mut next = None;
    while let Some(job) = next.take().or_else(|| jobs.recv().ok()) {
        if !job.is_wanted() {
            continue;
        }
        // That nobody waits any more is no news to anybody.
        match job {
            Job::Apply(changes, reply) => next = apply(&mut holder, jobs, changes, reply),
            Job::Beat(reply) => drop(reply.send(holder.heartbeat().map_err(Into::into))),
            Job::TakeOver(max, reply) => drop(reply.send(holder.claim_orphans(max).map_err(Into::into))),
            Job::Leave(reply) => {
                drop(reply.send(holder.leave().map_err(Into::into)));
                return;
            }
        }
    }
}

/// One transaction for the call, and for those that wait behind it. Returns the job after them.
fn apply(holder: &mut Holder, jobs: &Receiver<Job>, changes: Vec<Change>, reply: Reply<Vec<Applied>>) -> Option<Job> {
    let (mut calls, mut replies, mut next) = (vec![changes], vec![reply], None);
    while let Ok(job) = jobs.try_recv() {
        match job {
            job if !job.is_wanted() => {}
            Job::Apply(changes, reply) => {
                calls.push(changes);
                replies.push(reply);
            }
            other => {
                next = Some(other);
                break;
            }
        }
    }
    match holder.apply(&calls) {
        Ok(answers) => {
            for (reply, applied) in replies.into_iter().zip(answers) {
                let _ = reply.send(Ok(applied));
            }
        }
        Err(failure) => {
            for reply in replies {
                let _ = reply.send(Err(Failure::clone(&failure).into()));
            }
        }
    }
    next
}
