//! Signals that shut a process down: [`terminate`] for those of the operating system, [`ShutdownRequest`] for all
//! others.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::oneshot::error::RecvError;

use super::state::SecondSignal;
use crate::{panic::CatchPanic, session::EndReason};

/// A request to shut down: its reason, and optionally a second signal that forces it.
///
/// Every future whose output converts into a `ShutdownRequest` is a signal for
/// [`shutdown_on`](crate::ActiveSessions::shutdown_on):
///
/// | output | reason |
/// |---|---|
/// | `()`, `Option<_>` | [`EndReason::Shutdown`] |
/// | [`EndReason`] | that reason |
/// | `io::Result<_>`, as of `tokio::signal::ctrl_c()` | [`EndReason::Shutdown`]; an error is logged |
/// | `Result<_, RecvError>`, as of a `tokio::sync::oneshot::Receiver` | [`EndReason::Shutdown`], also if the sender was dropped |
///
/// # Examples
///
/// ```
/// use tower_session_end::{ActiveSessions, EndReason, signal::ShutdownRequest};
///
/// # let sessions = ActiveSessions::builder().build().unwrap();
/// let (restart, restarted) = tokio::sync::oneshot::channel::<()>();
/// let (force, forced) = tokio::sync::oneshot::channel::<()>();
/// let shutdown = sessions.shutdown_on(async {
///     let _ = restarted.await;
///     ShutdownRequest::new(EndReason::Restart).forced_by(async {
///         let _ = forced.await;
///     })
/// });
/// # drop((shutdown, restart, force));
/// ```
pub struct ShutdownRequest {
    pub(super) reason: EndReason,
    pub(super) second_signal: Option<SecondSignal>,
}

impl ShutdownRequest {
    /// A request to shut down for this reason, with no second signal.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason, signal::ShutdownRequest};
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let shutdown = sessions.shutdown_on(async { ShutdownRequest::new(EndReason::Restart) });
    /// # drop(shutdown);
    /// ```
    #[must_use]
    pub const fn new(reason: EndReason) -> Self {
        Self { reason, second_signal: None }
    }

    /// Adds the second signal. When `second_signal` resolves, the shutdown no longer waits: the report lists the hooks
    /// that are unfinished, and the open responses. With several `shutdown_on` futures, each that got its signal has to
    /// get a second one.
    ///
    /// The future is polled until the shutdown is over. If it panics, that is logged, and it counts as a signal that
    /// never comes.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_session_end::{ActiveSessions, EndReason, signal::ShutdownRequest};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// let sessions = ActiveSessions::builder().on_session_end(|_| std::future::pending::<()>()).build().unwrap();
    /// sessions.note("hangs");
    ///
    /// let second_signal = tokio::time::sleep(Duration::from_millis(100));
    /// let request = ShutdownRequest::new(EndReason::Restart).forced_by(second_signal);
    /// let shutdown = sessions.shutdown_on(std::future::ready(request));
    /// let report = sessions.finish(shutdown).await.report;
    /// assert!(report.forced);
    /// assert_eq!(report.sessions.unfinished.len(), 1);
    /// # }
    /// ```
    #[must_use]
    pub fn forced_by(mut self, second_signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.second_signal = Some(Box::pin(pending_if_it_panics(second_signal)));
        self
    }
}

/// `finish` polls a second signal, and a panic of it must not end `finish`.
async fn pending_if_it_panics(second_signal: impl Future<Output = ()> + Send) {
    if CatchPanic::new(Box::pin(second_signal)).await.is_err() {
        tracing::error!(
            name: "session-signal-failed",
            error = "it panicked",
            "the future given to `forced_by` panicked; the shutdown cannot be forced any more",
        );
        std::future::pending().await
    }
}

impl fmt::Debug for ShutdownRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, second_signal } = self;
        f.debug_struct("ShutdownRequest").field("reason", reason).field("forced_by", &second_signal.is_some()).finish()
    }
}

impl From<()> for ShutdownRequest {
    fn from((): ()) -> Self {
        Self::new(EndReason::Shutdown)
    }
}

impl From<EndReason> for ShutdownRequest {
    fn from(reason: EndReason) -> Self {
        Self::new(reason)
    }
}

impl<T> From<io::Result<T>> for ShutdownRequest {
    fn from(signal: io::Result<T>) -> Self {
        if let Err(error) = signal {
            super::signal_failed(&error);
        }
        Self::new(EndReason::Shutdown)
    }
}

/// For a `tokio::sync::oneshot::Receiver`. A dropped sender is a signal too.
impl<T> From<Result<T, RecvError>> for ShutdownRequest {
    fn from(_: Result<T, RecvError>) -> Self {
        Self::new(EndReason::Shutdown)
    }
}

impl<T> From<Option<T>> for ShutdownRequest {
    fn from(_: Option<T>) -> Self {
        Self::new(EndReason::Shutdown)
    }
}

/// A signal of the operating system: tokio's type.
#[cfg(unix)]
pub use tokio::signal::unix::SignalKind;

/// The signals that end a process: SIGTERM and SIGINT on Unix, Ctrl-C elsewhere, with [`EndReason::Shutdown`]. A second
/// signal, of any of these kinds, forces the shutdown.
///
/// Within a tokio runtime this call registers them, so that none is missed while the server starts; outside of one, the
/// first poll does. From then on tokio handles these signals, and they no longer end the process by themselves. A
/// signal that cannot be registered is logged and left out.
///
/// # After the shutdown
///
/// tokio handles these signals for the rest of the process. After [`finish`](crate::ActiveSessions::finish) no future waits
/// for them, and a process that does more than to exit cannot be stopped by them. Let a task wait for the next one:
///
/// ```no_run
/// # use tower_session_end::{ActiveSessions, signal};
/// # async fn run(sessions: ActiveSessions, server: impl Future<Output = std::io::Result<()>>) -> std::io::Result<()> {
/// let report = sessions.finish(server).await.into_result()?;
/// let again = signal::terminate(); // made here, so that it does not see the signal of the shutdown
/// tokio::spawn(async {
///     again.await;
///     std::process::exit(1);
/// });
/// // what takes time: to upload the report, to compact a database
/// # let _ = report;
/// # Ok(())
/// # }
/// ```
///
/// # Panics
///
/// Within a tokio runtime without its I/O driver: see
/// [`Builder::enable_io`](tokio::runtime::Builder::enable_io).
///
/// # Examples
///
/// ```
/// # #[cfg(unix)]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use tower_session_end::{ActiveSessions, EndReason, signal};
///
/// let sessions = ActiveSessions::builder().build().unwrap();
/// let shutdown = sessions.shutdown_on(
///     // A deployment that sends SIGUSR1 before it starts the next version.
///     signal::terminate().on(signal::SignalKind::user_defined1(), EndReason::Restart),
/// );
/// # drop(shutdown);
/// # }
/// # #[cfg(not(unix))]
/// # fn main() {}
/// ```
pub fn terminate() -> Terminate {
    Terminate { sources: imp::Sources::usual() }
}

/// Resolves at the first of its signals. Made by [`terminate`].
///
/// # Cancel safety
///
/// Dropping it loses a signal that came and was not polled yet. tokio keeps handling these signals for the rest of the
/// process.
#[must_use = "futures do nothing unless polled"]
pub struct Terminate {
    sources: imp::Sources,
}

#[cfg(unix)]
impl Terminate {
    /// Adds a signal. If `kind` is one of its signals already, the reason is replaced.
    ///
    /// # Panics
    ///
    /// As [`terminate`]. A signal that cannot be handled, as SIGKILL, is logged and left out.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use tower_session_end::{EndReason, signal::{SignalKind, terminate}};
    ///
    /// let signals = terminate()
    ///     .on(SignalKind::hangup(), EndReason::Restart)
    ///     .on(SignalKind::interrupt(), EndReason::Restart); // SIGINT, with another reason
    /// # drop(signals);
    /// # }
    /// ```
    pub fn on(mut self, kind: SignalKind, reason: EndReason) -> Self {
        self.sources.add(kind, reason);
        self
    }
}

impl Future for Terminate {
    type Output = ShutdownRequest;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<ShutdownRequest> {
        let reason = std::task::ready!(self.sources.poll(cx));
        // The same sources listen for the second signal.
        let mut sources = std::mem::take(&mut self.sources);
        let second_signal = async move {
            let _ = std::future::poll_fn(|cx| sources.poll(cx)).await;
        };
        Poll::Ready(ShutdownRequest::new(reason).forced_by(second_signal))
    }
}

impl fmt::Debug for Terminate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminate").finish_non_exhaustive()
    }
}

#[cfg(unix)]
mod imp {
    use std::task::{Context, Poll};

    use tokio::{
        runtime::Handle,
        signal::unix::{Signal, SignalKind, signal},
    };

    use crate::session::EndReason;

    #[derive(Default)]
    pub(super) struct Sources {
        /// `None` if the signal is not registered yet, or cannot be registered.
        all: Vec<(SignalKind, EndReason, Option<Signal>)>,
        register_at_first_poll: bool,
    }

    impl Sources {
        pub(super) fn usual() -> Self {
            let mut sources = Self { all: Vec::new(), register_at_first_poll: Handle::try_current().is_err() };
            sources.add(SignalKind::terminate(), EndReason::Shutdown);
            sources.add(SignalKind::interrupt(), EndReason::Shutdown);
            sources
        }

        pub(super) fn add(&mut self, kind: SignalKind, reason: EndReason) {
            if let Some(known) = self.all.iter_mut().find(|(known, ..)| *known == kind) {
                known.1 = reason;
                return;
            }
            let stream = if self.register_at_first_poll { None } else { register(kind) };
            self.all.push((kind, reason, stream));
        }

        pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
            if std::mem::take(&mut self.register_at_first_poll) {
                for (kind, _, stream) in &mut self.all {
                    *stream = register(*kind);
                }
            }
            for (_, reason, stream) in &mut self.all {
                if let Some(stream) = stream
                    && let Poll::Ready(Some(())) = stream.poll_recv(cx)
                {
                    return Poll::Ready(*reason);
                }
            }
            Poll::Pending
        }
    }

    fn register(kind: SignalKind) -> Option<Signal> {
        signal(kind)
            .inspect_err(|error| super::super::cannot_listen(&format!("signal {}", kind.as_raw_value()), error))
            .ok()
    }
}

#[cfg(not(unix))]
mod imp {
    use std::{
        future::Future,
        io,
        pin::Pin,
        task::{Context, Poll, ready},
    };

    use crate::session::EndReason;

    /// Ctrl-C, any number of times.
    #[derive(Default)]
    pub(super) struct Sources {
        ctrl_c: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>,
    }

    impl Sources {
        pub(super) fn usual() -> Self {
            Self { ctrl_c: Some(Box::pin(tokio::signal::ctrl_c())) }
        }

        pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
            let ctrl_c = self.ctrl_c.get_or_insert_with(|| Box::pin(tokio::signal::ctrl_c()));
            let signal = ready!(ctrl_c.as_mut().poll(cx));
            self.ctrl_c = None;
            match signal {
                Ok(()) => Poll::Ready(EndReason::Shutdown),
                Err(error) => {
                    super::super::cannot_listen("Ctrl-C", &error);
                    self.ctrl_c = Some(Box::pin(std::future::pending()));
                    Poll::Pending
                }
            }
        }
    }
}
