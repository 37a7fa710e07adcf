//! A worker without HTTP.

use std::pin::pin;

use tokio::sync::mpsc::Receiver;
use tower_session_end::{ActiveSessions, EndReason, ShutdownReport, signal};

/// Takes jobs until SIGTERM or Ctrl-C. Each job is a session.
pub async fn work<J>(sessions: ActiveSessions, mut jobs: Receiver<(String, J)>) -> ShutdownReport
where
    J: Future<Output = ()> + Send + 'static,
{
    let shutdown = sessions.shutdown_on(signal::terminate());
    let worker = async {
        let mut shutdown = pin!(shutdown); // polled from the first moment on: it drives expiry and a registry
        loop {
            let (id, job) = tokio::select! {
                () = &mut shutdown => return,
                () = sessions.closing() => break,
                Some(job) = jobs.recv() => job,
            };
            let Ok(guard) = sessions.guard(id) else { continue };
            tokio::spawn(async move {
                tokio::select! {
                    () = job => drop(guard.end(EndReason::Deleted)),
                    () = guard.closing() => {} // the drain ends the session
                }
            });
        }
        shutdown.await;
    };
    sessions.finish(worker).await.report
}
