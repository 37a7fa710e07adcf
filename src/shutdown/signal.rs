//! What tells a process to stop: [`terminate`] for the usual signals, [`ShutdownRequest`] for everything else.

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

/// A request to stop, as a signal future yields it: why, and what cuts the waiting short.
///
/// Every future whose output converts into a `ShutdownRequest` is a signal: `()` and `Option<_>` mean
/// [`EndReason::Shutdown`]; an [`EndReason`] is the reason itself; an `io::Result<_>` (so `tokio::signal::ctrl_c()`
/// as it is) means `Shutdown` too, and its error is logged; so does a `tokio::sync::oneshot::Receiver`.
///
/// # Examples
///
/// ```
/// use tower_session_end::{ActiveSessions, EndReason, signal::ShutdownRequest};
///
/// # let sessions = ActiveSessions::builder().build().unwrap();
/// let (restart, restarted) = tokio::sync::oneshot::channel::<()>();
/// let (hurry, hurried) = tokio::sync::oneshot::channel::<()>();
/// let shutdown = sessions.shutdown_on(async {
///     let _ = restarted.await;
///     ShutdownRequest::new(EndReason::Restart).forced_by(async {
///         let _ = hurried.await;
///     })
/// });
/// # drop((shutdown, restart, hurry));
/// ```
pub struct ShutdownRequest {
    pub(super) reason: EndReason,
    pub(super) again: Option<SecondSignal>,
}

impl ShutdownRequest {
    /// A request to stop for this reason.
    #[must_use]
    pub const fn new(reason: EndReason) -> Self {
        Self { reason, again: None }
    }

    /// Lets a second signal end all waiting at once: hooks and connections that are not over then are reported as
    /// such. One that panics never comes.
    #[must_use]
    pub fn forced_by(mut self, again: impl Future<Output = ()> + Send + 'static) -> Self {
        self.again = Some(Box::pin(unless_it_panics(again)));
        self
    }
}

/// One that panics never resolves: `finish` polls it, and goes on.
async fn unless_it_panics(again: impl Future<Output = ()> + Send) {
    if CatchPanic::new(Box::pin(again)).await.is_err() {
        tracing::error!(
            name: "session-signal-failed",
            error = "it panicked",
            "the second shutdown signal failed; it is not waited for",
        );
        std::future::pending().await
    }
}

impl fmt::Debug for ShutdownRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, again } = self;
        f.debug_struct("ShutdownRequest").field("reason", reason).field("forced_by", &again.is_some()).finish()
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

/// A `tokio::sync::oneshot::Receiver` is a signal as it is; it stops too when its sender is gone.
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

/// Which signal; tokio's own type.
#[cfg(unix)]
pub use tokio::signal::unix::SignalKind;

/// The signals that end a process: SIGTERM and SIGINT on Unix, Ctrl-C elsewhere, both with [`EndReason::Shutdown`].
/// A second one, of any kind, cuts the waiting short.
///
/// They are registered right here, not at the first poll, so that none is missed while the server starts. One that
/// cannot be registered is logged and left out.
///
/// # Panics
///
/// In a tokio runtime without its I/O driver. Outside of any runtime they are registered at the first poll instead.
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

/// Resolves at the first of its signals; made by [`terminate`].
#[must_use = "futures do nothing unless polled"]
pub struct Terminate {
    sources: imp::Sources,
}

#[cfg(unix)]
impl Terminate {
    /// Adds a signal, or gives one that is there another reason.
    pub fn on(mut self, kind: SignalKind, reason: EndReason) -> Self {
        self.sources.add(kind, reason);
        self
    }
}

impl Future for Terminate {
    type Output = ShutdownRequest;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<ShutdownRequest> {
        let reason = std::task::ready!(self.sources.poll(cx));
        // The same sources go on listening for the second signal.
        let mut sources = std::mem::take(&mut self.sources);
        let again = async move {
            let _ = std::future::poll_fn(|cx| sources.poll(cx)).await;
        };
        Poll::Ready(ShutdownRequest::new(reason).forced_by(again))
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
        /// No stream: not registered yet, or not to be had.
        all: Vec<(SignalKind, EndReason, Option<Signal>)>,
        late: bool,
    }

    impl Sources {
        pub(super) fn usual() -> Self {
            let mut sources = Self { all: Vec::new(), late: Handle::try_current().is_err() };
            sources.add(SignalKind::terminate(), EndReason::Shutdown);
            sources.add(SignalKind::interrupt(), EndReason::Shutdown);
            sources
        }

        pub(super) fn add(&mut self, kind: SignalKind, reason: EndReason) {
            if let Some(known) = self.all.iter_mut().find(|(known, ..)| *known == kind) {
                known.1 = reason;
                return;
            }
            let stream = if self.late { None } else { register(kind) };
            self.all.push((kind, reason, stream));
        }

        pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
            if std::mem::take(&mut self.late) {
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

    /// Ctrl-C, again and again.
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
