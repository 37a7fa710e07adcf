//! The kit finds what is broken.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use tower_session_end::{
    EndReason, GenerationId,
    registry::{
        Applied, Change, Heartbeat, HoldMode, Orphan, Registry, RegistryError,
        conformance::{Store, check},
    },
};

use super::{conformance::Held, support::Dir};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    ClaimsTwice,
    ClaimsDieWithTheClaimer,
    LosesUnreturnedClaims,
    LosesTheFirstReason,
    IgnoresMax,
    RepeatsAreGone,
    AnswersInReverse,
    OneByOne,
    CutsDetails,
    JoinsAlways,
    CountsClaims,
    LosesAttempts,
    DeliversDeadLetters,
    LosesNotices,
    KeepsNotices,
    ForgetsSilently,
}

/// A good registry behind a bad layer.
struct Broken {
    inner: Held,
    fault: Fault,
    /// The orphans of an earlier answer.
    returned: Arc<Mutex<Vec<Orphan>>>,
    ended: Mutex<BTreeSet<GenerationId>>,
}

impl Broken {
    fn bend(&self, change: &mut Change) {
        match (self.fault, change) {
            (Fault::CutsDetails, Change::Hold { record, .. }) => {
                record.session.key = record.session.key.take().map(|key| key.replace('\0', ""));
            }
            (Fault::LosesTheFirstReason, Change::End { end, .. }) => end.reason = EndReason::Unknown,
            (Fault::JoinsAlways, Change::Hold { mode, .. }) => *mode = HoldMode::JoinOrCreate,
            (Fault::LosesAttempts, Change::Attempted { attempts, .. }) => *attempts = 0,
            (Fault::DeliversDeadLetters, change) => {
                if let Change::DeadLetter { generation, .. } = *change {
                    *change = Change::Delivered { generation };
                }
            }
            (Fault::KeepsNotices, change) => {
                if let Change::Acknowledge { generation, .. } = *change {
                    *change = Change::Attempted { generation, attempts: 0 };
                }
            }
            (Fault::ForgetsSilently, change) => {
                if let Change::Forget { id, generation } = change.clone() {
                    *change = Change::Keep { id, generation };
                }
            }
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
        let mut heartbeat = self.inner.heartbeat().await?;
        if self.fault == Fault::LosesNotices {
            heartbeat.notices.clear();
        }
        Ok(heartbeat)
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        let orphans = self.inner.claim_orphans(if self.fault == Fault::IgnoresMax { 1000 } else { max }).await?;
        match self.fault {
            Fault::ClaimsTwice => {
                let mut returned = self.returned.lock().unwrap();
                return Ok(if orphans.is_empty() {
                    std::mem::take(&mut returned)
                } else {
                    returned.clone_from(&orphans);
                    orphans
                });
            }
            Fault::ClaimsDieWithTheClaimer => {
                let done = orphans.iter().map(|orphan| Change::Delivered { generation: orphan.record.generation });
                self.inner.apply(done.collect()).await?;
            }
            Fault::CountsClaims => {
                let counted = |orphan: Orphan| Orphan::new(orphan.record, orphan.end, orphan.attempts + 1);
                return Ok(orphans.into_iter().map(counted).collect());
            }
            Fault::LosesUnreturnedClaims => tokio::time::sleep(Duration::from_millis(5)).await,
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
    returned: Arc<Mutex<Vec<Orphan>>>,
}

impl Store for BrokenStore {
    type Holder = Broken;

    async fn holder(&self) -> Broken {
        let inner = self.dir.holder().await;
        Broken { inner, fault: self.fault, returned: Arc::clone(&self.returned), ended: Mutex::default() }
    }

    async fn kill(&self, holder: Broken) {
        self.dir.kill(holder.inner).await;
    }
}

/// The kit panics, and its message contains this.
async fn finds(faults: &[(Fault, &str)]) {
    for &(fault, complaint) in faults {
        let store = BrokenStore { dir: Dir::new(), fault, returned: Arc::default() };
        let checked = tokio::spawn(async move { check(&store).await }).await;
        let Err(panicked) = checked else { panic!("{fault:?}: the kit finds nothing") };
        let panic = panicked.into_panic();
        let panic = panic.downcast::<String>().expect("a message");
        assert!(panic.contains(complaint), "{fault:?}: {panic}");
    }
}

#[tokio::test]
async fn the_kit_finds_wrong_answers_to_changes() {
    finds(&[
        (Fault::LosesTheFirstReason, "the reason:"),
        (Fault::RepeatsAreGone, "an end of the first, again"),
        (Fault::AnswersInReverse, "ended beside a hold"),
        (Fault::CutsDetails, "unchanged details"),
        (Fault::JoinsAlways, "a second active record of the id"),
        (Fault::LosesNotices, "the notice of another holder's end"),
        (Fault::KeepsNotices, "after `Acknowledge`"),
        (Fault::ForgetsSilently, "an update of a forgotten session"),
    ])
    .await;
}

#[tokio::test]
async fn the_kit_finds_wrong_claims() {
    finds(&[
        (Fault::ClaimsTwice, "`claim_orphans` returned an orphan twice"),
        (Fault::ClaimsDieWithTheClaimer, "a hold of a claim of its own, from a recovery"),
        (Fault::IgnoresMax, "`claim_orphans(7)` returned"),
        (Fault::CountsClaims, "attempts: none, two, and none of lost sessions"),
        (Fault::LosesAttempts, "attempts: none, two, and none of lost sessions"),
        (Fault::DeliversDeadLetters, "dead letters:"),
    ])
    .await;
}

#[tokio::test]
async fn the_kit_finds_what_dropped_calls_leave() {
    finds(&[
        (Fault::LosesUnreturnedClaims, "each orphan once, after dropped `claim_orphans` calls"),
        (Fault::OneByOne, "a part of a dropped call was applied"),
    ])
    .await;
}
