//! What the user plugs in: a trait, closures, a tower service, or a batch function.

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

/// A consumer of session events: the first of the three doors for hooks, and the one with a name and both events.
///
/// Register it with [`ActiveSessionsBuilder::hook`](crate::ActiveSessionsBuilder::hook).
///
/// The hooks of one session run in order, over generations too: an end never before its start is over, and the start
/// of a session that is noted again never before its last end is over. Those of different sessions run at the same
/// time. A hook that panics or errs is reported and disturbs nobody else.
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
///         println!("hello {}", start.session.id);
///         Ok(())
///     }
///
///     async fn session_end(&self, end: SessionEnd) -> Result<(), BoxError> {
///         if !end.reason.may_resume() {
///             println!("{} is over", end.session.id);
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
    /// Called when a session was noted. Does nothing unless you say otherwise.
    ///
    /// # Errors
    ///
    /// What you return is logged; the session goes on.
    fn session_start(&self, start: SessionStart) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = start;
        async { Ok(()) }
    }

    /// Called once for each generation of a session that ended.
    ///
    /// # Errors
    ///
    /// What you return counts as delivered and failed: it is logged and reported, and not tried again.
    fn session_end(&self, end: SessionEnd) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// How logs and reports call this hook. The type's name unless you say otherwise.
    fn name(&self) -> &str {
        type_name::<Self>()
    }
}

/// A shared hook is the same hook.
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

/// What the future of a hook closure may yield: `()`, or a `Result<(), E>` with any error.
#[diagnostic::on_unimplemented(
    message = "a hook's future yields `()` or `Result<(), E>`, not `{Self}`",
    label = "this future is no hook",
    note = "`E` is anything that converts into `Box<dyn Error + Send + Sync>`"
)]
pub trait HookOutput: private::Sealed {
    /// The one form that the caller of a hook sees.
    ///
    /// # Errors
    ///
    /// That of the hook.
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

/// A hook for one kind of event, whichever door it came through.
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

/// A hook for many ends at once.
pub(crate) struct Batch {
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

    /// From here on every call is measured.
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

/// The name of a closure: the place where it was registered.
pub(crate) fn call_site_name(what: &str, location: &Location<'_>) -> String {
    let file = location.file().rsplit(['/', '\\']).next().unwrap_or_default();
    format!("{what} at {file}:{}", location.line())
}

/// Both events of a [`SessionHook`], which its two registrations share.
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

/// The lock is for services that are not `Sync`; it is held for a clone.
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
