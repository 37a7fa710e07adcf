//! A holder that renews its lease in the background.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{Applied, Change, Orphan, Registry, done, same, same_all};

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
        let mut all = Vec::new();
        loop {
            let some = self.claim_orphans(7).await;
            if some.is_empty() {
                all.sort_by_key(|orphan: &Orphan| orphan.record.generation);
                return all;
            }
            all.extend(some);
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
