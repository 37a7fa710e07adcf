//! A holder that keeps its lease while the kit does something else.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{Applied, Change, Orphan, Registry, done, same, same_all};

pub(super) struct Holder<R: Registry> {
    registry: Arc<R>,
    /// Its one task ends with the holder, also when the kit panics.
    beating: JoinSet<()>,
}

impl<R: Registry> Holder<R> {
    pub(super) fn new(registry: R) -> Self {
        let registry = Arc::new(registry);
        let beats = registry.clone();
        let mut beating = JoinSet::new();
        beating.spawn(async move {
            loop {
                tokio::time::sleep(beats.heartbeat_interval()).await;
                if let Err(error) = beats.heartbeat().await {
                    panic!("a beat failed: {error}");
                }
            }
        });
        Self { registry, beating }
    }

    pub(super) fn registry(&self) -> &R {
        &self.registry
    }

    /// One call, and its answers.
    pub(super) async fn apply(&self, changes: Vec<Change>) -> Vec<Applied> {
        assert!(self.registry.lease_is_valid(), "`lease_is_valid` says no to a holder that beats");
        let count = changes.len();
        match self.registry.apply(changes).await {
            Ok(applied) => {
                same("the number of answers", &applied.len(), &count);
                applied
            }
            Err(error) => panic!("`apply` failed: {error}"),
        }
    }

    /// One change, and what has to come of it.
    pub(super) async fn expect(&self, what: &str, change: Change, expected: Applied) {
        self.expect_all(what, vec![change], vec![expected]).await;
    }

    /// Several in one call.
    pub(super) async fn expect_all(&self, what: &str, changes: Vec<Change>, expected: Vec<Applied>) {
        same_all(what, &self.apply(changes).await, &expected);
    }

    /// One call.
    pub(super) async fn claim_orphans(&self, max: usize) -> Vec<Orphan> {
        match self.registry.claim_orphans(max).await {
            Ok(orphans) => {
                assert!(orphans.len() <= max, "`take_over({max})` claimed {}", orphans.len());
                orphans
            }
            Err(error) => panic!("`claim_orphans` failed: {error}"),
        }
    }

    /// Calls until there is nothing, in the order of the event ids.
    pub(super) async fn take_over_all(&self) -> Vec<Orphan> {
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

    /// Ends the ends.
    pub(super) async fn deliver(&self, orphans: &[Orphan]) {
        let changes = orphans.iter().map(|orphan| done(&orphan.record)).collect();
        self.expect_all("to have done it", changes, vec![Applied::Ok; orphans.len()]).await;
    }

    pub(super) async fn release_lease(self) {
        if let Err(error) = self.into_inner().await.release_lease().await {
            panic!("`leave` failed: {error}");
        }
    }

    /// Stops the beating.
    pub(super) async fn into_inner(self) -> R {
        let Self { registry, mut beating } = self;
        assert!(beating.try_join_next().is_none(), "a beat failed");
        beating.shutdown().await;
        Arc::into_inner(registry).expect("nothing else of the kit has it")
    }
}
