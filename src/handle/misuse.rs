//! Mistakes that the compiler explains. The methods and the impl here cannot be called: they need a trait that has no
//! implementation, so a call is an error of the compiler with the trait's message.
//!
//! `for<'a>` lets a bound stand that can never hold.

use tower_layer::Layer;

use super::{ActiveSessions, ActiveSessionsBuilder};

/// Never implemented.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not the handle",
    label = "only an `ActiveSessions` has this method",
    note = "the builder makes the handle, and the handle makes the layer: `let sessions = ActiveSessions::builder().build()?;`, then `sessions.layer()`"
)]
pub trait IsHandle {
    /// The body of a method that cannot be called.
    fn uncallable<T>(&self) -> T;
}

/// Never implemented.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a layer",
    label = "this is no layer",
    note = "the handle makes its layer: `.layer(sessions.layer())`"
)]
pub trait IsLayer<S> {
    /// The body of a method that cannot be called.
    fn uncallable(&self) -> S;
}

#[doc(hidden)]
impl<S> Layer<S> for ActiveSessions
where
    Self: IsLayer<S>,
{
    type Service = S;

    fn layer(&self, _: S) -> S {
        self.uncallable()
    }
}

/// The first methods of the handle that are called after `build`. The compiler's own error for the others names the type.
#[doc(hidden)]
#[allow(clippy::must_use_candidate, reason = "it is never called")]
impl ActiveSessionsBuilder {
    pub fn layer<L>(&self) -> L
    where
        for<'a> Self: IsHandle,
    {
        self.uncallable()
    }

    pub fn layer_with<P, L>(&self, _: P) -> L
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
}
