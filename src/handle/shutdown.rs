//! The methods of a handle that shut down, and that wait for hooks.

use std::{
    future::{Future, IntoFuture},
    sync::Arc,
    time::Duration,
};

use super::{ActiveSessions, ClosingFuture};
use crate::{
    session::EndReason,
    shutdown::{
        AcceptUntilSignal, FinishOutput, ShutdownFuture, progress::DrainWatch, report::DrainReport,
        signal::ShutdownRequest,
    },
};

impl ActiveSessions {
    /// Resolves when the phase becomes [`Phase::Closing`](crate::Phase::Closing); at once if it is already. For
    /// streams, sockets and jobs that send a last message in a shutdown.
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped and made again at any time: it misses nothing.
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let sessions = ActiveSessions::builder().build().unwrap();
    /// let socket = tokio::spawn(sessions.closing());
    /// let _ = sessions.drain(EndReason::Shutdown).await;
    /// socket.await.unwrap();
    /// # }
    /// ```
    pub fn closing(&self) -> ClosingFuture {
        ClosingFuture::new(self.inner.shutdown.closing.clone())
    }

    /// Wraps a listener that is shared with another process, so that this one stops accepting at the signal.
    ///
    /// A server accepts until the drain is over: a client that comes while the hooks run is served rather than refused.
    /// If a successor listens on the same address, that is wrong: it is there to serve them. With the wrapped listener
    /// no connection that comes after the signal is accepted, during the lame duck neither. What is accepted already goes
    /// on as usual, and so does the shutdown.
    ///
    /// The signal is the first one of any [`shutdown_on`](Self::shutdown_on) of this handle, or the beginning of a drain.
    /// Then the connections that are ready in the backlog are accepted, at most 1,024; the listener is closed; and its
    /// `accept` does not resolve again.
    ///
    /// * **An inherited socket** (socket activation, or a socket that the parent hands to its child as standard input)
    ///   has one backlog for all processes. Nothing is lost: the successor accepts what this process does not.
    /// * **`SO_REUSEPORT`** gives each process a backlog of its own. What is complete in it is accepted. Linux resets
    ///   connections that are still in the handshake when their listener is closed, unless
    ///   `net.ipv4.tcp_migrate_req` is set.
    ///
    /// With the feature `axum`, the wrapper of any `axum::serve::Listener` is one too. The example `handover` hands a
    /// listener to the next version under load.
    ///
    /// ```no_run
    /// # use tower_session_end::{ActiveSessions, signal};
    /// # async fn run(app: axum::Router, inherited: std::net::TcpListener) -> Result<(), Box<dyn std::error::Error>> {
    /// # let sessions = ActiveSessions::builder().build()?;
    /// inherited.set_nonblocking(true)?;
    /// let listener = sessions.accept_until_signal(tokio::net::TcpListener::from_std(inherited)?);
    /// let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signal::terminate()));
    /// let report = sessions.finish(server).await.into_result()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn accept_until_signal<L>(&self, listener: L) -> AcceptUntilSignal<L> {
        AcceptUntilSignal::new(listener, self.inner.shutdown.signalled.clone())
    }

    /// The future for axum's `with_graceful_shutdown`: it waits for `signal`, runs the session drain, and resolves when
    /// the drain is over. So the connections drain after the sessions.
    ///
    /// At the signal the phase becomes [`Phase::LameDuck`](crate::Phase::LameDuck), for
    /// [`lame_duck_timeout`](crate::ActiveSessionsBuilder::lame_duck_timeout) (0 by default: the phase is skipped).
    /// Then it becomes [`Phase::Closing`](crate::Phase::Closing), and the [drain](Self::drain) takes at most
    /// [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout) (2 s by default). A session that starts in
    /// `Closing` ends at once. If the [`ShutdownRequest`] has a second signal, that resolves this future at once.
    ///
    /// Until the signal, the future also drives idle expiry, and the lease and the recovery of a registry: it has to be
    /// polled. Without a server, spawn `sessions.shutdown_on(std::future::pending::<()>())` for that.
    ///
    /// `signal` is any future whose output converts into a [`ShutdownRequest`]. A signal that panics, or fails, is
    /// logged and shuts down.
    ///
    /// For several servers on one handle, give each its own future. The first signal drains for all, and the connection
    /// drain counts from the last signal. A server that has got no signal by its deadline is dropped by
    /// [`finish`](Self::finish) with the others.
    ///
    /// # Panics
    ///
    /// When polled outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    ///
    /// See [`ShutdownFuture`]: dropping it loses no session.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use tower_session_end::{ActiveSessions, signal};
    ///
    /// # async fn run(app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
    /// let sessions = ActiveSessions::builder().build()?;
    /// let app = app.layer(sessions.layer());
    ///
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signal::terminate()));
    /// let report = sessions.finish(server).await.into_result()?;
    /// println!("{report}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown_on<F>(&self, signal: F) -> ShutdownFuture
    where
        F: Future<Output: Into<ShutdownRequest>> + Send + 'static,
    {
        Arc::clone(&self.inner.shutdown).shutdown_on(signal)
    }

    /// Ends every active session with `reason`, and waits for all `session_end` hooks, those of earlier ends included.
    /// Takes at most [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout) (2 s by default).
    ///
    /// It is the drain of [`shutdown_on`](Self::shutdown_on), for a gateway without a server. The handle stays in
    /// [`Phase::Closing`](crate::Phase::Closing): a session that is noted later ends at once. The report lists the hooks
    /// that are unfinished; they go on in the background.
    ///
    /// Overlapping drains share one outcome, with the reason of the first. A later drain fires nothing twice, and waits
    /// again for unfinished hooks.
    ///
    /// A hook that waits for a drain waits for itself, until the deadline. Spawn the drain instead.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the hooks go on, and the next drain ends the remaining sessions.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// let report = sessions.drain(EndReason::Restart).await;
    /// assert_eq!(report.ended, 1);
    /// assert!(sessions.is_empty());
    /// # }
    /// ```
    pub async fn drain(&self, reason: EndReason) -> DrainReport {
        self.inner.shutdown.drain(reason).await
    }

    /// Waits until no hook runs or is queued, for tests: it ends no session, and what is active stays active. A hook that waits
    /// for an earlier hook, or for the record of its session, is queued.
    ///
    /// It looks at every session, at most once a millisecond, so it is not for production. It has no deadline: with a hook that
    /// hangs it never resolves, and neither does it after a shutdown that has left hooks uncalled. It does not wait for an end whose
    /// hooks have failed and that is to be delivered again, for sessions that start meanwhile, or for changes that a registry has not
    /// written yet.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with a timer, if there is something to wait for.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason, SessionEnd};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tower_session_end::BuildError> {
    /// let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    /// let sessions = ActiveSessions::builder()
    ///     .on_session_end(move |end: SessionEnd| std::future::ready(ended.send(end)))
    ///     .build()?;
    /// sessions.note("a");
    /// sessions.note("b");
    /// sessions.end("a", EndReason::Deleted);
    ///
    /// sessions.hooks_idle().await;
    /// assert_eq!(ends.try_recv().unwrap().session.id, "a");
    /// assert!(ends.try_recv().is_err() && sessions.contains("b"));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn hooks_idle(&self) {
        while !self.inner.tracker.are_hooks_idle() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Watches the drain, for a progress bar or a log: how many sessions have ended, of how many, and until when.
    ///
    /// It may be called at any time. A watch costs nothing until a drain begins, and does not keep the handle alive. It
    /// ends with the shutdown: see [`DrainWatch::changed`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// let mut watch = sessions.drain_progress();
    /// let shown = tokio::spawn(async move {
    ///     let mut last = None;
    ///     while let Some(progress) = watch.changed().await {
    ///         println!("{progress}");
    ///         last = Some(progress);
    ///     }
    ///     last
    /// });
    /// let _ = sessions.drain(EndReason::Shutdown).await;
    /// let last = shown.await.unwrap().unwrap();
    /// assert_eq!((last.ended, last.of), (1, 1));
    /// assert!(last.deadline.is_some());
    /// # }
    /// ```
    pub fn drain_progress(&self) -> DrainWatch {
        self.inner.shutdown.watch()
    }

    /// Runs the server to its end, bounds its connection drain, and returns the report of the shutdown.
    ///
    /// From the signal on it takes at most [`lame_duck_timeout`](crate::ActiveSessionsBuilder::lame_duck_timeout) +
    /// [`drain_timeout`](crate::ActiveSessionsBuilder::drain_timeout) +
    /// [`connection_drain_timeout`](crate::ActiveSessionsBuilder::connection_drain_timeout) (12 s by default), whatever
    /// the connections do. At the deadline, a request without a response head gets 503 and `connection: close`, an
    /// unfinished body ends with an error, and the server is dropped. Sessions that start in the connection drain get
    /// their `session_end` too. Hooks that the drain left unfinished go on in the connection drain; those that still
    /// run when this future is over are dropped.
    ///
    /// If the server ends without a signal, `finish` drains the sessions with [`EndReason::Shutdown`]. Any `IntoFuture`
    /// is a server. For several servers on one handle, call `finish` for each and poll them together: the handle closes
    /// with the last of them.
    ///
    /// With [`keep_if`](crate::ActiveSessionsBuilder::keep_if), `finish` asks about the sessions that the drain had no
    /// time for, until the deadline of the connection drain.
    ///
    /// Code inside `spawn_blocking` cannot be stopped, and dropping a runtime waits for it. If your hooks use it, end
    /// `main` with [`Runtime::shutdown_background`](tokio::runtime::Runtime::shutdown_background) or
    /// `std::process::exit`.
    ///
    /// **After `finish`, exit at once.** If the signals are those of [`signal::terminate`](crate::signal::terminate),
    /// tokio still handles them, so SIGINT and SIGTERM no longer end the process. Before work that takes longer, let a
    /// task [wait for the next one](crate::signal::terminate#after-the-shutdown).
    ///
    /// **The server must not block.** While one poll of it blocks, no deadline is seen; a poll of 1 s is logged. The
    /// usual cause is a listener in blocking mode: call `set_nonblocking(true)` on a `std::net::TcpListener` before
    /// `tokio::net::TcpListener::from_std`.
    ///
    /// # Panics
    ///
    /// When polled outside of a tokio runtime with a timer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the server. The sessions stay active, or their drain stays unfinished:
    /// [`drain`](Self::drain) ends the rest.
    ///
    /// # Examples
    ///
    /// ```
    /// # use tower_session_end::{ActiveSessions, EndReason};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// # let sessions = ActiveSessions::builder().build().unwrap();
    /// sessions.note("a");
    /// let server = async { std::io::Result::Ok(()) }; // ends at once, without a signal
    /// let report = sessions.finish(server).await.into_result()?;
    /// assert!(!report.signalled && report.is_clean());
    /// assert_eq!(report.sessions.ended, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn finish<S: IntoFuture>(&self, server: S) -> impl Future<Output = FinishOutput<S::Output>> + use<S> {
        self.inner.shutdown.finish(server)
    }
}
