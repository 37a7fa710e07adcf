//! Methods of the handle that a layer does not have; see `handle::misuse`.

use super::SessionLayer;
use crate::handle::IsHandle;

#[doc(hidden)]
#[allow(clippy::must_use_candidate, reason = "it is never called")]
impl SessionLayer {
    pub fn note<S, N>(&self, _: S) -> N
    where
        for<'a> Self: IsHandle,
    {
        self.uncallable()
    }

    pub fn shutdown_on<F, S>(&self, _: F) -> S
    where
        for<'a> Self: IsHandle,
    {
        self.uncallable()
    }

    pub fn finish<S, R>(&self, _: S) -> R
    where
        for<'a> Self: IsHandle,
    {
        self.uncallable()
    }
}
