//! hyper, by the parts in hyper-util, on a Unix socket. A TCP listener serves as well.

use std::{pin::pin, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::net::UnixListener;
use tower_session_end::{ActiveSessions, ShutdownReport, signal};

/// Serves until SIGTERM or Ctrl-C. `app` may be any Tower service that is `Clone`.
pub async fn serve(sessions: ActiveSessions, app: Router, listener: UnixListener) -> ShutdownReport {
    let shutdown = sessions.shutdown_on(signal::terminate());
    let server = async {
        let (mut shutdown, connections) = (pin!(shutdown), GracefulShutdown::new());
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()); // for its limit on half a request head
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut shutdown => break,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await; // too many open files
                continue;
            };
            let service = TowerToHyperService::new(app.clone());
            let connection = http.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
            // A task of its own: if `finish` drops this future at its deadline, it still sends the last answers.
            tokio::spawn(connections.watch(connection));
        }
        drop(listener);
        connections.shutdown().await;
    };
    sessions.finish(server).await.report
}
