//! `axum::serve` on a Unix socket.

use std::io;

use axum::Router;
use tokio::net::UnixListener;
use tower_session_end::{ActiveSessions, ShutdownReport, signal};

/// Serves until SIGTERM or Ctrl-C.
///
/// # Errors
///
/// Those of the server.
pub async fn serve(sessions: ActiveSessions, app: Router, listener: UnixListener) -> io::Result<ShutdownReport> {
    let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signal::terminate()));
    sessions.finish(server).await.into_result()
}
