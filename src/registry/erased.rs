//! A [`Registry`] of any type, behind one pointer.

use std::{future::Future, pin::Pin, time::Duration};

use super::{Applied, Change, Orphan, Registry, RegistryError};

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, RegistryError>> + Send + 'a>>;

/// As [`Registry`], dyn-compatible.
pub(crate) trait ErasedRegistry: Send + Sync + 'static {
    fn apply(&self, changes: Vec<Change>) -> Answer<'_, Vec<Applied>>;
    fn beat(&self) -> Answer<'_, ()>;
    fn take_over(&self, max: usize) -> Answer<'_, Vec<Orphan>>;
    fn leave(&self) -> Answer<'_, ()>;
    fn is_current(&self) -> bool;
    fn beat_every(&self) -> Duration;
}

impl<R: Registry> ErasedRegistry for R {
    fn apply(&self, changes: Vec<Change>) -> Answer<'_, Vec<Applied>> {
        Box::pin(Registry::apply(self, changes))
    }

    fn beat(&self) -> Answer<'_, ()> {
        Box::pin(Registry::beat(self))
    }

    fn take_over(&self, max: usize) -> Answer<'_, Vec<Orphan>> {
        Box::pin(Registry::take_over(self, max))
    }

    fn leave(&self) -> Answer<'_, ()> {
        Box::pin(Registry::leave(self))
    }

    fn is_current(&self) -> bool {
        Registry::is_current(self)
    }

    fn beat_every(&self) -> Duration {
        Registry::beat_every(self)
    }
}
