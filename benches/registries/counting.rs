//! A registry that wraps another one and counts the calls.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tower_session_end::registry::{Applied, Change, Heartbeat, Orphan, Registry, RegistryError};

/// The counts so far.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    all: AtomicUsize,
    applies: AtomicUsize,
    changes: AtomicUsize,
    /// How long each heartbeat took, in milliseconds.
    heartbeats: Mutex<Vec<f64>>,
}

impl Calls {
    /// Of every method that calls the store.
    #[allow(dead_code, reason = "not each benchmark needs it")]
    pub(crate) fn all(&self) -> usize {
        self.all.load(Ordering::SeqCst)
    }

    /// How long each heartbeat took, in milliseconds.
    #[allow(dead_code, reason = "not each benchmark needs it")]
    pub(crate) fn heartbeats(&self) -> Vec<f64> {
        self.heartbeats.lock().expect("no holder panics").clone()
    }

    #[allow(dead_code, reason = "not each benchmark needs it")]
    pub(crate) fn applies(&self) -> usize {
        self.applies.load(Ordering::SeqCst)
    }

    /// In all these calls together.
    #[allow(dead_code, reason = "not each benchmark needs it")]
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

    fn count(&self, changes: &[Change]) {
        self.calls.all.fetch_add(1, Ordering::SeqCst);
        self.calls.applies.fetch_add(1, Ordering::SeqCst);
        self.calls.changes.fetch_add(changes.len(), Ordering::SeqCst);
    }
}

impl<R: Registry> Registry for Counting<R> {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        self.count(&changes);
        self.inner.apply(changes).await
    }

    async fn apply_before(&self, changes: Vec<Change>, deadline: Instant) -> Result<Vec<Applied>, RegistryError> {
        self.count(&changes);
        self.inner.apply_before(changes, deadline).await
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        self.calls.all.fetch_add(1, Ordering::SeqCst);
        let begun = Instant::now();
        let answer = self.inner.heartbeat().await;
        self.calls.heartbeats.lock().expect("no holder panics").push(begun.elapsed().as_secs_f64() * 1e3);
        answer
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        self.calls.all.fetch_add(1, Ordering::SeqCst);
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
