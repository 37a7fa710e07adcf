//! The kit finds what is broken.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use tower_session_end::{
    EndReason, GenerationId,
    registry::{
        Applied, Change, Heartbeat, Orphan, Registry, RegistryError,
        conformance::{Store, check},
    },
};

use super::{conformance::Held, support::Dir};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    ClaimsTwice,
    ClaimsDieWithTheClaimer,
    LosesUntoldClaims,
    LosesTheFirstReason,
    IgnoresMax,
    RepeatsAreGone,
    AnswersInReverse,
    OneByOne,
    CutsDetails,
}

/// A good registry behind a bad layer.
struct Broken {
    inner: Held,
    fault: Fault,
    /// What somebody was told before.
    told: Arc<Mutex<Vec<Orphan>>>,
    ended: Mutex<BTreeSet<GenerationId>>,
}

impl Broken {
    fn bend(&self, change: &mut Change) {
        match (self.fault, change) {
            (Fault::CutsDetails, Change::Hold { record, .. }) => {
                record.session.key = record.session.key.take().map(|key| key.replace('\0', ""));
            }
            (Fault::LosesTheFirstReason, Change::End { end, .. }) => end.reason = EndReason::Unknown,
            _ => {}
        }
    }

    async fn each(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        let mut answers = Vec::new();
        for change in changes {
            answers.extend(self.inner.apply(vec![change]).await?);
        }
        Ok(answers)
    }
}

impl Registry for Broken {
    async fn apply(&self, mut changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        changes.iter_mut().for_each(|change| self.bend(change));
        if self.fault == Fault::OneByOne {
            return self.each(changes).await;
        }
        let mut answers = self.inner.apply(changes.clone()).await?;
        if self.fault == Fault::AnswersInReverse {
            answers.reverse();
        }
        for (change, answer) in changes.iter().zip(&mut answers) {
            if self.fault == Fault::RepeatsAreGone
                && let Change::End { generation, .. } | Change::Release { generation, .. } = change
                && matches!(answer, Applied::Owned { .. })
                && !self.ended.lock().unwrap().insert(*generation)
            {
                *answer = Applied::Gone;
            }
        }
        Ok(answers)
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        self.inner.heartbeat().await
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        let orphans = self.inner.claim_orphans(if self.fault == Fault::IgnoresMax { 1000 } else { max }).await?;
        match self.fault {
            Fault::ClaimsTwice => {
                let mut told = self.told.lock().unwrap();
                return Ok(if orphans.is_empty() {
                    std::mem::take(&mut told)
                } else {
                    told.clone_from(&orphans);
                    orphans
                });
            }
            Fault::ClaimsDieWithTheClaimer => {
                let done = orphans.iter().map(|orphan| Change::Delivered { generation: orphan.record.generation });
                self.inner.apply(done.collect()).await?;
            }
            Fault::LosesUntoldClaims => tokio::time::sleep(Duration::from_millis(5)).await,
            _ => {}
        }
        Ok(orphans)
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.inner.release_lease().await
    }

    fn heartbeat_interval(&self) -> Duration {
        self.inner.heartbeat_interval()
    }
}

struct BrokenStore {
    dir: Dir,
    fault: Fault,
    told: Arc<Mutex<Vec<Orphan>>>,
}

impl Store for BrokenStore {
    type Holder = Broken;

    async fn holder(&self) -> Broken {
        let inner = self.dir.holder().await;
        Broken { inner, fault: self.fault, told: Arc::clone(&self.told), ended: Mutex::default() }
    }

    async fn kill(&self, holder: Broken) {
        self.dir.kill(holder.inner).await;
    }
}

#[tokio::test]
async fn the_kit_finds_what_is_broken() {
    let faults = [
        (Fault::ClaimsTwice, "claims after another holder's `Delivered`"),
        (Fault::ClaimsDieWithTheClaimer, "a claim of a dead recoverer"),
        (Fault::LosesUntoldClaims, "each orphan once, after dropped `claim_orphans` calls"),
        (Fault::LosesTheFirstReason, "details of claims"),
        (Fault::IgnoresMax, "`claim_orphans(7)` returned"),
        (Fault::RepeatsAreGone, "the same release by the last again"),
        (Fault::AnswersInReverse, "a compaction"),
        (Fault::OneByOne, "changes were applied"),
        (Fault::CutsDetails, "unchanged details"),
    ];
    for (fault, complaint) in faults {
        let store = BrokenStore { dir: Dir::new(), fault, told: Arc::default() };
        let checked = tokio::spawn(async move { check(&store).await }).await;
        let Err(panicked) = checked else { panic!("{fault:?}: the kit is content") };
        let panic = panicked.into_panic();
        let panic = panic.downcast::<String>().expect("a message");
        assert!(panic.contains(complaint), "{fault:?}: {panic}");
    }
}
