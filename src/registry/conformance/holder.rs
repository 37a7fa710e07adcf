//! A holder that renews its lease in the background.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{Applied, Change, Heartbeat, Orphan, Record, Registry, acknowledge, done, same, same_all};
use crate::session::GenerationId;

pub(super) struct Holder<R: Registry> {
    registry: Arc<R>,
    /// Its one task is aborted with the holder, also when the kit panics.
    heartbeats: JoinSet<()>,
}

impl<R: Registry> Holder<R> {
    pub(super) fn new(registry: R) -> Self {
        let registry = Arc::new(registry);
        let renewing = registry.clone();
        let mut heartbeats = JoinSet::new();
        heartbeats.spawn(async move {
            loop {
                tokio::time::sleep(renewing.heartbeat_interval()).await;
                if let Err(error) = renewing.heartbeat().await {
                    panic!("`heartbeat` failed: {error}");
                }
            }
        });
        Self { registry, heartbeats }
    }

    pub(super) fn registry(&self) -> &R {
        &self.registry
    }

    /// Makes one call and returns its answers.
    pub(super) async fn apply(&self, changes: Vec<Change>) -> Vec<Applied> {
        assert!(self.registry.lease_is_valid(), "`lease_is_valid` is false for a holder with heartbeats");
        let count = changes.len();
        match self.registry.apply(changes).await {
            Ok(applied) => {
                same("the number of answers", &applied.len(), &count);
                applied
            }
            Err(error) => panic!("`apply` failed: {error}"),
        }
    }

    /// Applies one change and checks its answer.
    pub(super) async fn expect(&self, what: &str, change: Change, expected: Applied) {
        self.expect_all(what, vec![change], vec![expected]).await;
    }

    /// Applies several changes in one call and checks their answers.
    pub(super) async fn expect_all(&self, what: &str, changes: Vec<Change>, expected: Vec<Applied>) {
        same_all(what, &self.apply(changes).await, &expected);
    }

    /// Makes one call.
    pub(super) async fn heartbeat(&self) -> Heartbeat {
        match self.registry.heartbeat().await {
            Ok(heartbeat) => heartbeat,
            Err(error) => panic!("`heartbeat` failed: {error}"),
        }
    }

    /// Checks the notices of this holder, 1,000 at most. They are sorted by generation.
    pub(super) async fn expect_notices(&self, what: &str, expected: &[&Record]) {
        let Heartbeat { notices, has_more, .. } = self.heartbeat().await;
        assert!(!has_more, "{what}: `has_more` is true");
        for notice in &notices {
            assert!(notice.age < Duration::from_secs(300), "{what}: the age of {notice:?}");
        }
        let mut found: Vec<_> = notices.iter().map(|notice| (notice.generation, &notice.id)).collect();
        found.sort();
        let expected: Vec<_> = expected.iter().map(|record| (record.generation, &record.session.id)).collect();
        same_all(what, &found, &expected);
    }

    /// Checks the notices of this holder, acknowledges them, and checks that there is none left.
    pub(super) async fn acknowledge(&self, what: &str, expected: &[&Record]) {
        self.expect_notices(what, expected).await;
        let changes = expected.iter().map(|record| acknowledge(record)).collect();
        self.expect_all("`Acknowledge`", changes, vec![Applied::Ok; expected.len()]).await;
        self.expect_notices(&format!("{what}, after `Acknowledge`"), &[]).await;
    }

    /// Makes one call.
    pub(super) async fn claim_orphans(&self, max: usize) -> Vec<Orphan> {
        match self.registry.claim_orphans(max).await {
            Ok(orphans) => {
                assert!(orphans.len() <= max, "`claim_orphans({max})` returned {}", orphans.len());
                orphans
            }
            Err(error) => panic!("`claim_orphans` failed: {error}"),
        }
    }

    /// Claims until the answer is empty. Sorted by generation.
    pub(super) async fn claim_all(&self) -> Vec<Orphan> {
        let mut all: BTreeMap<GenerationId, Orphan> = BTreeMap::new();
        loop {
            let some = self.claim_orphans(7).await;
            if some.is_empty() {
                return all.into_values().collect();
            }
            for orphan in some {
                if let Some(orphan) = all.insert(orphan.record.generation, orphan) {
                    panic!("`claim_orphans` returned an orphan twice: {orphan:?}");
                }
            }
        }
    }

    /// Reports the orphans as delivered.
    pub(super) async fn deliver(&self, orphans: &[Orphan]) {
        let changes = orphans.iter().map(|orphan| done(&orphan.record)).collect();
        self.expect_all("delivered ends", changes, vec![Applied::Ok; orphans.len()]).await;
    }

    pub(super) async fn release_lease(self) {
        if let Err(error) = self.into_inner().await.release_lease().await {
            panic!("`release_lease` failed: {error}");
        }
    }

    /// Stops the heartbeats.
    pub(super) async fn into_inner(self) -> R {
        let Self { registry, mut heartbeats } = self;
        assert!(heartbeats.try_join_next().is_none(), "a heartbeat failed");
        heartbeats.shutdown().await;
        Arc::into_inner(registry).expect("the kit has no other reference")
    }
}
