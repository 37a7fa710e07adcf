//! A registry that wraps another one and counts the calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tower_session_end::registry::{Applied, Change, Heartbeat, Orphan, Registry, RegistryError};

/// The counts so far.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    applies: AtomicUsize,
    changes: AtomicUsize,
}

impl Calls {
    pub(crate) fn applies(&self) -> usize {
        self.applies.load(Ordering::SeqCst)
    }

    /// In all these calls together.
    pub(crate) fn changes(&self) -> usize {
        self.changes.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
pub(crate) struct Counting<R> {
    inner: R,
    calls: Arc<Calls>,
}

impl<R> Counting<R> {
    pub(crate) const fn new(inner: R, calls: Arc<Calls>) -> Self {
        Self { inner, calls }
    }
}

impl<R: Registry> Registry for Counting<R> {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        self.calls.applies.fetch_add(1, Ordering::SeqCst);
        self.calls.changes.fetch_add(changes.len(), Ordering::SeqCst);
        self.inner.apply(changes).await
    }

    async fn apply_before(&self, changes: Vec<Change>, deadline: Instant) -> Result<Vec<Applied>, RegistryError> {
        self.calls.applies.fetch_add(1, Ordering::SeqCst);
        self.calls.changes.fetch_add(changes.len(), Ordering::SeqCst);
        self.inner.apply_before(changes, deadline).await
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        self.inner.heartbeat().await
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        self.inner.claim_orphans(max).await
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.inner.release_lease().await
    }

    fn lease_is_valid(&self) -> bool {
        self.inner.lease_is_valid()
    }

    fn heartbeat_interval(&self) -> Duration {
        self.inner.heartbeat_interval()
    }
}
