//! The worker thread: everything that can block runs here, one job after the other.

use std::sync::mpsc::Receiver;

use tokio::sync::oneshot;

use super::{
    error::Failure,
    holder::Holder,
    recovery::{ClaimedOrphans, Recovery},
};
use crate::registry::{Applied, Change, RegistryError};

pub(super) type Reply<T> = oneshot::Sender<Result<T, RegistryError>>;

pub(super) enum Job {
    Apply(Vec<Change>, Reply<Vec<Applied>>),
    Heartbeat(Reply<()>),
    ClaimOrphans(usize, Reply<ClaimedOrphans>),
    ReleaseLease(Reply<()>),
}

impl Job {
    /// Whether its caller still waits. If not, the job is skipped: the call will be repeated.
    fn is_wanted(&self) -> bool {
        !match self {
            Self::Apply(_, reply) => reply.is_closed(),
            Self::ClaimOrphans(_, reply) => reply.is_closed(),
            Self::Heartbeat(reply) | Self::ReleaseLease(reply) => reply.is_closed(),
        }
    }
}

/// Runs until the holder releases its lease, or the registry is dropped.
pub(super) fn run(mut holder: Holder, jobs: &Receiver<Job>) {
    let mut recovery = Recovery::default();
    let mut next = None;
    while let Some(job) = next.take().or_else(|| jobs.recv().ok()) {
        if !job.is_wanted() {
            continue;
        }
        // The caller may have gone away: send errors are ignored.
        match job {
            Job::Apply(changes, reply) => next = apply(&mut holder, &mut recovery, jobs, changes, reply),
            Job::Heartbeat(reply) => {
                let result = holder.heartbeat().inspect_err(|failure| recovery.on_failure(failure));
                drop(reply.send(result.map_err(Into::into)));
            }
            Job::ClaimOrphans(max, reply) => {
                let result = recovery.claim_orphans(&mut holder, max);
                let result = result.inspect_err(|failure| recovery.on_failure(failure));
                drop(reply.send(result.map_err(Into::into)));
            }
            Job::ReleaseLease(reply) => {
                // Frees the locks of the leases under recovery, before another holder hears of it.
                drop(recovery);
                drop(reply.send(holder.release_lease().map_err(Into::into)));
                return;
            }
        }
    }
}

/// One transaction for the call, and for those that wait behind it. Returns the job after them.
fn apply(
    holder: &mut Holder,
    recovery: &mut Recovery,
    jobs: &Receiver<Job>,
    changes: Vec<Change>,
    reply: Reply<Vec<Applied>>,
) -> Option<Job> {
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
            recovery.on_failure(&failure);
            for reply in replies {
                let _ = reply.send(Err(Failure::clone(&failure).into()));
            }
        }
    }
    next
}
