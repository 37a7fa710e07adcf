//! axum-server, with TLS.

use std::{io, net::TcpListener};

use axum::Router;
use axum_server::{Handle, tls_rustls::RustlsConfig};
use tower_session_end::{ActiveSessions, ShutdownReport, signal};

/// Serves until SIGTERM or Ctrl-C.
///
/// # Errors
///
/// Those of the server.
pub async fn serve(
    sessions: ActiveSessions,
    app: Router,
    listener: TcpListener,
    tls: RustlsConfig,
) -> io::Result<ShutdownReport> {
    let (shutdown, handle) = (sessions.shutdown_on(signal::terminate()), Handle::new());
    let server = axum_server::from_tcp_rustls(listener, tls)?.handle(handle.clone());
    tokio::spawn(async move {
        shutdown.await;
        handle.graceful_shutdown(None); // `finish` has the limit
    });
    sessions.finish(server.serve(app.into_make_service())).await.into_result()
}
