//! A [`Registry`] of any type behind one pointer. It may be user code, so the panics of every call are caught.

use std::{
    future::ready,
    pin::Pin,
    time::{Duration, Instant},
};

use super::{Applied, Change, Heartbeat, Orphan, Registry, RegistryError};
use crate::panic::{CatchPanic, Panic, catch};

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, RegistryError>> + Send + 'a>>;

/// As [`Registry`], dyn-compatible. A panic is an error like any other.
pub(crate) trait DynRegistry: Send + Sync + 'static {
    fn apply_before(&self, changes: Vec<Change>, deadline: Instant) -> Answer<'_, Vec<Applied>>;
    fn heartbeat(&self) -> Answer<'_, Heartbeat>;
    fn claim_orphans(&self, max: usize) -> Answer<'_, Vec<Orphan>>;
    fn release_lease(&self) -> Answer<'_, ()>;
    fn transaction_hook(&self) -> Option<&str>;
    fn lease_is_valid(&self) -> bool;
    fn heartbeat_interval(&self) -> Duration;
}

impl<R: Registry> DynRegistry for R {
    fn apply_before(&self, changes: Vec<Change>, deadline: Instant) -> Answer<'_, Vec<Applied>> {
        guarded(|| Box::pin(Registry::apply_before(self, changes, deadline)))
    }

    fn heartbeat(&self) -> Answer<'_, Heartbeat> {
        guarded(|| Box::pin(Registry::heartbeat(self)))
    }

    fn claim_orphans(&self, max: usize) -> Answer<'_, Vec<Orphan>> {
        guarded(|| Box::pin(Registry::claim_orphans(self, max)))
    }

    fn release_lease(&self) -> Answer<'_, ()> {
        guarded(|| Box::pin(Registry::release_lease(self)))
    }

    fn transaction_hook(&self) -> Option<&str> {
        Registry::transaction_hook(self)
    }

    fn lease_is_valid(&self) -> bool {
        // If it panics, assume that the lease is valid: a duplicate end is better than a lost one.
        catch(|| Registry::lease_is_valid(self)).unwrap_or_else(|panic| {
            tracing::warn!(
                name: "session-registry-panicked",
                error = %panic,
                "`Registry::lease_is_valid` panicked; the lease is assumed to be valid",
            );
            true
        })
    }

    fn heartbeat_interval(&self) -> Duration {
        Registry::heartbeat_interval(self)
    }
}

fn guarded<'a, T: Send + 'a>(call: impl FnOnce() -> Answer<'a, T>) -> Answer<'a, T> {
    let panicked = |panic: Panic| RegistryError::unavailable(format!("panicked: {panic}"));
    match catch(call) {
        Ok(answer) => {
            Box::pin(async move { CatchPanic::new(answer).await.unwrap_or_else(|panic| Err(panicked(panic))) })
        }
        Err(panic) => Box::pin(ready(Err(panicked(panic)))),
    }
}
