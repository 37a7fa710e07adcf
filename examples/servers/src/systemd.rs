//! A unit of systemd, with `Type=notify`.

use std::io;

use axum::Router;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tower_session_end::{ActiveSessions, ShutdownReport, signal};

/// Serves until SIGTERM or Ctrl-C, and says so to systemd. Outside of a unit, nothing is said.
///
/// # Errors
///
/// Those of the server, and of the socket of systemd.
pub async fn serve(sessions: ActiveSessions, app: Router, listener: TcpListener) -> io::Result<ShutdownReport> {
    let signals = signal::terminate(); // handled from here on, so before systemd may send one
    let stop = async {
        let request = signals.await;
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        request
    };
    let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(stop));
    sd_notify::notify(&[NotifyState::Ready])?; // the socket listens already
    sessions.finish(server).await.into_result()
}
