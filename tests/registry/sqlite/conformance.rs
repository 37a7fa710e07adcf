//! The conformance kit.

use std::{path::PathBuf, time::Duration};

use tower_session_end::{
    GenerationId,
    registry::{
        Applied, Change, Heartbeat, Orphan, Registry, RegistryError, SqliteRegistry,
        conformance::{Store, check},
    },
};

use super::support::{Dir, is_locked, until};

/// A holder whose lease is known.
pub(crate) struct Held {
    registry: SqliteRegistry,
    lease: PathBuf,
}

impl Registry for Held {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        self.registry.apply(changes).await
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        self.registry.heartbeat().await
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        self.registry.claim_orphans(max).await
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.registry.release_lease().await
    }

    fn heartbeat_interval(&self) -> Duration {
        // Much more often than anybody would.
        Duration::from_millis(20)
    }
}

impl Store for Dir {
    type Holder = Held;

    async fn holder(&self) -> Held {
        let before = if self.leases().exists() { self.lease_files() } else { Vec::new() };
        let registry = self.open();
        let lease = self.lease_files().into_iter().find(|lease| !before.contains(lease)).unwrap();
        Held { registry, lease }
    }

    /// As SIGKILL would: the lock goes, and nothing else is done.
    async fn kill(&self, Held { registry, lease }: Held) {
        drop(registry);
        until("the lease of a dead holder is lost", || !is_locked(&lease));
    }

    async fn redeliver(&self, holder: &Held, generation: GenerationId) -> bool {
        holder.registry.redeliver(generation).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_every_promise_of_the_trait() {
    check(&Dir::new()).await;
}

#[tokio::test]
async fn keeps_them_on_one_thread_too() {
    check(&Dir::new()).await;
}
