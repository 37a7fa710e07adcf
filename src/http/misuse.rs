//! A layer that is taken for the handle; see `handle::misuse`.

use super::SessionLayer;
use crate::handle::IsHandle;

#[doc(hidden)]
#[allow(clippy::must_use_candidate, reason = "it is never called")]
impl SessionLayer {
    pub fn shutdown_on<F, S>(&self, _: F) -> S
    where
        for<'a> Self: IsHandle,
    {
        self.uncallable()
    }
}
