//! Hooks: the trait and the adapters for closures, tower services and batch functions; the pool that runs them.

mod batch;
mod call;
mod pool;
mod watchdog;
mod worker;

use std::{
    any::type_name,
    fmt,
    future::{Future, poll_fn},
    panic::Location,
    pin::Pin,
    sync::{Mutex, PoisonError},
};

use tower_service::Service;

pub use self::call::{HookError, HookFailure};
pub(crate) use self::pool::{Persistence, Pool, PoolConfig};
use crate::{
    error::BoxError,
    observability::HookMeter,
    session::{SessionEnd, SessionStart},
};

/// A named hook for both session events.
///
/// Register it with [`ActiveSessionsBuilder::hook`](crate::ActiveSessionsBuilder::hook). Closures and tower services
/// are registered with other methods of the builder.
///
/// The hooks of one session run in order: an end after its start has completed, and the start of a session that is
/// noted again after its last end has completed. Hooks of different sessions run concurrently. A hook that returns an
/// error or panics is logged and reported, and other hooks run as usual.
///
/// # Cancel safety
///
/// A hook's future is dropped when the hook timeout expires, at the end of
/// [`finish`](crate::ActiveSessions::finish), or when its runtime shuts down.
///
/// # Examples
///
/// ```
/// use tower_session_end::{ActiveSessions, BoxError, SessionEnd, SessionHook, SessionStart};
///
/// struct Archive;
///
/// impl SessionHook for Archive {
///     async fn session_start(&self, start: SessionStart) -> Result<(), BoxError> {
///         println!("{} started", start.session.id);
///         Ok(())
///     }
///
///     async fn session_end(&self, end: SessionEnd) -> Result<(), BoxError> {
///         if !end.reason.may_resume() {
///             println!("{} ended", end.session.id);
///         }
///         Ok(())
///     }
///
///     fn name(&self) -> &str {
///         "archive"
///     }
/// }
///
/// let sessions = ActiveSessions::builder().hook(Archive).build()?;
/// # Ok::<(), tower_session_end::BuildError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a session hook",
    label = "needs `impl SessionHook`",
    note = "for a closure use `.on_session_end(..)` or `.on_session_start(..)`, for a tower service `.session_end_service(..)`"
)]
pub trait SessionHook: Send + Sync + 'static {
    /// Called once for each generation of a session that starts. The default does nothing.
    ///
    /// # Errors
    ///
    /// An error is logged. The session stays active.
    fn session_start(&self, start: SessionStart) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = start;
        async { Ok(()) }
    }

    /// Called once for each generation of a session that ends.
    ///
    /// # Errors
    ///
    /// An error counts as a failed delivery. It is logged and reported. With a registry the end is delivered to this hook
    /// again; see [`redeliver_failed`](crate::ActiveSessionsBuilder::redeliver_failed).
    fn session_end(&self, end: SessionEnd) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// The name of this hook in logs, metrics and reports. The default is the type's name.
    fn name(&self) -> &str {
        type_name::<Self>()
    }
}

/// Calls the shared hook.
impl<H: SessionHook> SessionHook for std::sync::Arc<H> {
    async fn session_start(&self, start: SessionStart) -> Result<(), BoxError> {
        H::session_start(self, start).await
    }

    async fn session_end(&self, end: SessionEnd) -> Result<(), BoxError> {
        H::session_end(self, end).await
    }

    fn name(&self) -> &str {
        H::name(self)
    }
}

/// The output of a hook closure's future: `()`, or `Result<(), E>` with any error type.
#[diagnostic::on_unimplemented(
    message = "a hook's future yields `()` or `Result<(), E>`, not `{Self}`",
    label = "this future is no hook",
    note = "`E` is anything that converts into `Box<dyn Error + Send + Sync>`"
)]
pub trait HookOutput: private::Sealed {
    /// Converts the output into a result.
    ///
    /// # Errors
    ///
    /// Returns the error of the hook.
    fn into_result(self) -> Result<(), BoxError>;
}

impl HookOutput for () {
    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl<E: Into<BoxError>> HookOutput for Result<(), E> {
    fn into_result(self) -> Result<(), BoxError> {
        self.map_err(Into::into)
    }
}

mod private {
    pub trait Sealed {}
    impl Sealed for () {}
    impl<E> Sealed for Result<(), E> {}
}

pub(crate) type HookFuture<'a> = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send + 'a>>;

/// A hook for one kind of event, after its adapter.
pub(crate) trait Hook<E>: Send + Sync {
    fn call(&self, event: E) -> HookFuture<'_>;
}

pub(crate) struct Named<H: ?Sized> {
    pub(crate) name: String,
    pub(crate) meter: HookMeter,
    pub(crate) hook: Box<H>,
}

impl<H: ?Sized> Named<H> {
    pub(crate) const fn new(name: String, hook: Box<H>) -> Self {
        Self { name, meter: HookMeter::none(), hook }
    }

    fn register_metrics(&mut self, kind: &'static str) {
        self.meter = HookMeter::new(kind, &self.name);
    }
}

pub(crate) type Hooks<E> = Vec<Named<dyn Hook<E>>>;

/// A hook that takes many ends in one call.
pub(crate) struct Batch {
    /// The most ends of one call.
    pub(crate) max: usize,
    pub(crate) hook: Named<dyn Hook<Vec<SessionEnd>>>,
}

/// Every hook of a handle.
#[derive(Default)]
pub(crate) struct HookSet {
    pub(crate) start: Hooks<SessionStart>,
    pub(crate) end: Hooks<SessionEnd>,
    pub(crate) batch: Vec<Batch>,
}

impl HookSet {
    pub(crate) fn has_end(&self) -> bool {
        !self.end.is_empty() || !self.batch.is_empty()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start.is_empty() && !self.has_end()
    }

    /// Registers the metrics of every hook.
    pub(crate) fn with_metrics(mut self) -> Self {
        self.start.iter_mut().for_each(|hook| hook.register_metrics("start"));
        self.end.iter_mut().for_each(|hook| hook.register_metrics("end"));
        self.batch.iter_mut().for_each(|batch| batch.hook.register_metrics("batch"));
        self
    }
}

impl fmt::Debug for HookSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, end, batch } = self;
        f.debug_struct("HookSet")
            .field("start", &start.iter().map(|hook| &hook.name).collect::<Vec<_>>())
            .field("end", &end.iter().map(|hook| &hook.name).collect::<Vec<_>>())
            .field("batch", &batch.iter().map(|batch| (&batch.hook.name, batch.max)).collect::<Vec<_>>())
            .finish()
    }
}

/// The name of a hook without a name of its own: the file and line of its registration.
pub(crate) fn call_site_name(what: &str, location: &Location<'_>) -> String {
    let file = location.file().rsplit(['/', '\\']).next().unwrap_or_default();
    format!("{what} at {file}:{}", location.line())
}

/// A [`SessionHook`], shared by its registrations for both events.
pub(crate) struct TraitHook<H>(pub(crate) std::sync::Arc<H>);

impl<H: SessionHook> Hook<SessionStart> for TraitHook<H> {
    fn call(&self, event: SessionStart) -> HookFuture<'_> {
        Box::pin(self.0.session_start(event))
    }
}

impl<H: SessionHook> Hook<SessionEnd> for TraitHook<H> {
    fn call(&self, event: SessionEnd) -> HookFuture<'_> {
        Box::pin(self.0.session_end(event))
    }
}

pub(crate) struct ClosureHook<F>(pub(crate) F);

impl<E, F, Fut> Hook<E> for ClosureHook<F>
where
    F: Fn(E) -> Fut + Send + Sync,
    Fut: Future<Output: HookOutput> + Send + 'static,
{
    fn call(&self, event: E) -> HookFuture<'_> {
        let future = (self.0)(event);
        Box::pin(async move { future.await.into_result() })
    }
}

/// The mutex allows services that are not `Sync`. It is held only while the service is cloned.
pub(crate) struct ServiceHook<S>(pub(crate) Mutex<S>);

impl<S> Hook<SessionEnd> for ServiceHook<S>
where
    S: Service<SessionEnd, Error: Into<BoxError>, Future: Send> + Clone + Send,
{
    fn call(&self, event: SessionEnd) -> HookFuture<'_> {
        let mut service = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move {
            poll_fn(|cx| service.poll_ready(cx)).await.map_err(Into::into)?;
            let response = service.call(event);
            response.await.map(drop).map_err(Into::into)
        })
    }
}
