//! A [`Registry`] of any type, behind one pointer; user code, so every call of it is contained.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use super::{Applied, Change, Orphan, Registry, RegistryError};
use crate::panic;

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, RegistryError>> + Send + 'a>>;

/// As [`Registry`], dyn-compatible. A panic is an error like any other.
pub(crate) trait DynRegistry: Send + Sync + 'static {
    fn apply(&self, changes: Vec<Change>) -> Answer<'_, Vec<Applied>>;
    fn heartbeat(&self) -> Answer<'_, ()>;
    fn claim_orphans(&self, max: usize) -> Answer<'_, Vec<Orphan>>;
    fn release_lease(&self) -> Answer<'_, ()>;
    fn lease_is_valid(&self) -> bool;
    fn heartbeat_interval(&self) -> Duration;
}

impl<R: Registry> DynRegistry for R {
    fn apply(&self, changes: Vec<Change>) -> Answer<'_, Vec<Applied>> {
        contained(|| Box::pin(Registry::apply(self, changes)))
    }

    fn heartbeat(&self) -> Answer<'_, ()> {
        contained(|| Box::pin(Registry::heartbeat(self)))
    }

    fn claim_orphans(&self, max: usize) -> Answer<'_, Vec<Orphan>> {
        contained(|| Box::pin(Registry::claim_orphans(self, max)))
    }

    fn release_lease(&self) -> Answer<'_, ()> {
        contained(|| Box::pin(Registry::release_lease(self)))
    }

    fn lease_is_valid(&self) -> bool {
        // Who cannot say is as one who has nothing to say: better an end too many than none.
        catch(|| Registry::lease_is_valid(self)).unwrap_or_else(|error| {
            tracing::warn!(name: "session-registry-panicked", %error, "whether the lease runs cannot be said");
            true
        })
    }

    fn heartbeat_interval(&self) -> Duration {
        Registry::heartbeat_interval(self)
    }
}

fn catch<T>(f: impl FnOnce() -> T) -> Result<T, RegistryError> {
    panic::catch(f).map_err(|panic| RegistryError::unavailable(format!("panicked: {panic}")))
}

fn contained<'a, T: Send + 'a>(call: impl FnOnce() -> Answer<'a, T>) -> Answer<'a, T> {
    match catch(call) {
        Ok(answer) => Box::pin(Contained(Some(answer))),
        Err(error) => Box::pin(std::future::ready(Err(error))),
    }
}

/// The call, its polls and its drop, contained.
struct Contained<'a, T>(Option<Answer<'a, T>>);

impl<T> Future for Contained<'_, T> {
    type Output = Result<T, RegistryError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(answer) = &mut self.0 else { return Poll::Pending };
        catch(|| answer.as_mut().poll(cx)).unwrap_or_else(|error| Poll::Ready(Err(error)))
    }
}

impl<T> Drop for Contained<'_, T> {
    fn drop(&mut self) {
        let answer = self.0.take();
        // What it panicked with is of no interest any more.
        let _ = catch(|| drop(answer));
    }
}
