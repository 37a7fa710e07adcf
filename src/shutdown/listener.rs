//! [`AcceptUntilSignal`]: a listener that stops accepting when the shutdown begins, and not when the drain is over.

use std::{
    future::{Future, pending},
    io,
    net::SocketAddr,
    pin::pin,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// The most connections that are taken from the backlog after the signal.
const MAX_BACKLOG: usize = 1024;

/// How long the backlog is looked at. By the end of a sleep the runtime has asked the system for readiness, which may
/// lag behind the backlog.
const LOOK: Duration = Duration::from_millis(2);

/// A listener that accepts until the shutdown begins. Made by
/// [`ActiveSessions::accept_until_signal`](crate::ActiveSessions::accept_until_signal).
///
/// With the feature `axum` it is a `Listener` of `axum::serve`. For a server of its own there is
/// [`accept`](AcceptUntilSignal::accept).
#[derive(Debug)]
#[must_use = "it is to be given to a server"]
pub struct AcceptUntilSignal<L> {
    /// `None` once it has stopped.
    listener: Option<L>,
    signalled: CancellationToken,
    backlog: Backlog,
}

/// What may still be taken after the signal.
#[derive(Debug)]
struct Backlog {
    left: usize,
    until: Option<Instant>,
}

impl<L> AcceptUntilSignal<L> {
    pub(crate) const fn new(listener: L, signalled: CancellationToken) -> Self {
        Self { listener: Some(listener), signalled, backlog: Backlog { left: MAX_BACKLOG, until: None } }
    }

    /// The listener. `None` once it has stopped accepting and is closed.
    ///
    /// ```
    /// # use tower_session_end::ActiveSessions;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let listener = sessions.accept_until_signal(tokio::net::TcpListener::bind("127.0.0.1:0").await?);
    /// println!("listening on {:?}", listener.get_ref().map(|listener| listener.local_addr()));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub const fn get_ref(&self) -> Option<&L> {
        self.listener.as_ref()
    }
}

impl AcceptUntilSignal<TcpListener> {
    /// As [`TcpListener::accept`] until the shutdown begins. Then it does not resolve again, so a loop needs another branch
    /// that ends it: the future of [`shutdown_on`](crate::ActiveSessions::shutdown_on).
    ///
    /// # Errors
    ///
    /// Those of [`TcpListener::accept`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no connection.
    ///
    /// ```
    /// # use std::future::ready;
    /// # use tower_session_end::ActiveSessions;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// let mut listener = sessions.accept_until_signal(tokio::net::TcpListener::bind("127.0.0.1:0").await?);
    /// let mut shutdown = std::pin::pin!(sessions.shutdown_on(ready(())));
    /// loop {
    ///     tokio::select! {
    ///         accepted = listener.accept() => {
    ///             let (stream, _) = accepted?;
    ///             // serve it, for example with hyper
    ///             # drop(stream);
    ///         }
    ///         () = &mut shutdown => break,
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        if let Some(listener) = &self.listener
            && let Some(accepted) = self.backlog.accept(&self.signalled, listener.accept()).await
        {
            return accepted;
        }
        self.listener = None;
        pending().await
    }
}

#[cfg(feature = "axum")]
impl<L: axum::serve::Listener> axum::serve::Listener for AcceptUntilSignal<L> {
    type Io = L::Io;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (L::Io, L::Addr) {
        if let Some(listener) = &mut self.listener
            && let Some(accepted) = self.backlog.accept(&self.signalled, listener.accept()).await
        {
            return accepted;
        }
        self.listener = None;
        pending().await
    }

    fn local_addr(&self) -> io::Result<L::Addr> {
        match &self.listener {
            Some(listener) => listener.local_addr(),
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "the listener is closed: the shutdown has begun")),
        }
    }
}

impl Backlog {
    /// Waits for `accept` until the signal. From then on it gives what is ready. `None` once there is no more.
    async fn accept<T>(&mut self, signalled: &CancellationToken, accept: impl Future<Output = T>) -> Option<T> {
        let mut accept = pin!(accept);
        tokio::select! {
            biased;
            () = signalled.cancelled() => {}
            accepted = accept.as_mut() => return Some(accepted),
        }
        if self.left == 0 {
            return None;
        }
        let until = *self.until.get_or_insert_with(|| Instant::now() + LOOK);
        tokio::select! {
            biased;
            accepted = accept => {
                self.left -= 1;
                Some(accepted)
            }
            () = sleep_until(until) => None,
        }
    }
}
