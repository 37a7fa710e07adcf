//! The builder's methods that register hooks.

use std::{
    future::Future,
    panic::Location,
    sync::{Arc, Mutex},
};

use tower_service::Service;

use super::ActiveSessionsBuilder;
use crate::{
    error::BoxError,
    hooks::{Batch, ClosureHook, HookOutput, Named, ServiceHook, SessionHook, TraitHook, call_site_name},
    session::{SessionEnd, SessionStart},
};

impl ActiveSessionsBuilder {
    /// Registers a [`SessionHook`].
    ///
    /// Hooks add up: each of them gets every event, and all of them run at the same time. An event is over when all of
    /// its hooks are.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// struct Log;
    ///
    /// impl SessionHook for Log {
    ///     async fn session_end(&self, end: SessionEnd) -> Result<(), BoxError> {
    ///         println!("{} ended", end.session.id);
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let sessions = ActiveSessions::builder().hook(Log).build()?;
    /// # Ok::<(), BuildError>(())
    /// ```
    pub fn hook(mut self, hook: impl SessionHook) -> Self {
        let hook = Arc::new(hook);
        let name = hook.name().to_owned();
        self.hooks.start.push(Named::new(name.clone(), Box::new(TraitHook(Arc::clone(&hook)))));
        self.hooks.end.push(Named::new(name, Box::new(TraitHook(hook))));
        self
    }

    /// Registers a closure that is called with every session that starts. Its future returns `()` or a `Result<(), E>`.
    ///
    /// An error is logged, and the session stays active.
    ///
    /// ```
    /// # use tower_session_end::*;
    /// let sessions = ActiveSessions::builder()
    ///     .on_session_start(async |start: SessionStart| println!("{} started", start.session.id))
    ///     .build()?;
    /// # Ok::<(), BuildError>(())
    /// ```
    #[track_caller]
    pub fn on_session_start<F, Fut>(mut self, f: F) -> Self
    where
        F: Fn(SessionStart) -> Fut + Send + Sync + 'static, // to capture: { let db = db.clone(); async move {..} }
        Fut: Future<Output: HookOutput> + Send + 'static,
    {
        let name = call_site_name("on_session_start", Location::caller());
        self.hooks.start.push(Named::new(name, Box::new(ClosureHook(f))));
        self
    }

    /// Registers a closure that is called with every session that ends. Its future returns `()` or a `Result<(), E>`.
    ///
    /// An error is logged and reported. With a registry the end is delivered to this hook again; see
    /// [`redeliver_failed`](Self::redeliver_failed). In logs and reports
    /// the hook's name is its call site.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, SessionEnd};
    /// # #[derive(Clone)] struct Db;
    /// # impl Db { async fn complete(&self, _: &SessionEnd) -> std::io::Result<()> { Ok(()) } }
    /// # let db = Db;
    /// let sessions = ActiveSessions::builder()
    ///     .on_session_end(move |end: SessionEnd| {
    ///         let db = db.clone();
    ///         async move { db.complete(&end).await }
    ///     })
    ///     .build()?;
    /// # Ok::<(), tower_session_end::BuildError>(())
    /// ```
    #[track_caller]
    pub fn on_session_end<F, Fut>(mut self, f: F) -> Self
    where
        F: Fn(SessionEnd) -> Fut + Send + Sync + 'static, // to capture: { let db = db.clone(); async move {..} }
        Fut: Future<Output: HookOutput> + Send + 'static,
    {
        let name = call_site_name("on_session_end", Location::caller());
        self.hooks.end.push(Named::new(name, Box::new(ClosureHook(f))));
        self
    }

    /// Registers a Tower service that is called with every session that ends. So timeouts, retries, rate and
    /// concurrency limits can be layers of Tower.
    ///
    /// Each call is made on a clone of the service, once that clone is ready. The response is dropped; an error counts
    /// as that of a [hook](Self::on_session_end).
    ///
    /// ```
    /// use tower::service_fn;
    /// use tower_session_end::{ActiveSessions, SessionEnd};
    ///
    /// let post = service_fn(async |end: SessionEnd| Ok::<_, std::io::Error>(end.session.id));
    /// let sessions = ActiveSessions::builder().session_end_service(post).build()?;
    /// # Ok::<(), tower_session_end::BuildError>(())
    /// ```
    #[track_caller]
    pub fn session_end_service<S>(mut self, service: S) -> Self
    where
        S: Service<SessionEnd, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    {
        let name = call_site_name("session_end_service", Location::caller());
        self.hooks.end.push(Named::new(name, Box::new(ServiceHook(Mutex::new(service)))));
        self
    }

    /// Registers a closure that is called with several ended sessions at once: those that ended while the last batch
    /// ran, up to `max`. So one database transaction writes thousands of rows.
    ///
    /// One batch runs at a time. If it returns an error, all of its sessions count as failed. While it hangs, the next
    /// batch does not start. [`build`](Self::build) returns an error if `max` is 0.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, SessionEnd};
    /// let sessions = ActiveSessions::builder()
    ///     .on_session_end_batch(1000, async |ends: Vec<SessionEnd>| {
    ///         println!("one transaction for {} rows", ends.len());
    ///     })
    ///     .build()?;
    /// # Ok::<(), tower_session_end::BuildError>(())
    /// ```
    #[track_caller]
    pub fn on_session_end_batch<F, Fut>(mut self, max: usize, f: F) -> Self
    where
        F: Fn(Vec<SessionEnd>) -> Fut + Send + Sync + 'static, // to capture: { let db = db.clone(); async move {..} }
        Fut: Future<Output: HookOutput> + Send + 'static,
    {
        let name = call_site_name("on_session_end_batch", Location::caller());
        self.hooks.batch.push(Batch { max, hook: Named::new(name, Box::new(ClosureHook(f))) });
        self
    }
}
