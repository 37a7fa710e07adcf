//! A disk that is full: a clear error at start, degraded service later, and nothing is lost.

use std::{future::pending, time::Instant};

use tower_session_end::{ActiveSessions, EndReason, SessionEnd};

use super::support::{PATIENCE, PostgresServer, SHORT, builder, is_installed, with_lease};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_a_disk_that_is_full_for_a_while_loses_nothing() {
    if !is_installed() {
        return;
    }
    // Its log would take the rest.
    let settings = ["fsync=off", "log_min_messages=panic", "autovacuum=off"];
    let Some(mut server) = PostgresServer::start_on_disk(128, &settings) else { return };
    // The first connection writes files of its own.
    server.ask("SELECT 1");
    server.fill_disk();
    let error = builder(&server.url(), "s").connect().await.unwrap_err().to_string();
    assert!(error.contains("No space left on device"), "{error}");
    server.free_disk();

    let (hooked, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let sessions = ActiveSessions::builder()
        .registry(with_lease(&server, "s", 2 * SHORT).await)
        .drain_timeout(PATIENCE)
        .on_session_end(move |end: SessionEnd| {
            let hooked = hooked.clone();
            async move { hooked.send(end.session.id.to_string()).unwrap() }
        })
        .build()
        .unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    assert!(sessions.note("0").recorded().await);
    server.fill_disk();
    let mut count = 1;
    let start = Instant::now();
    while sessions.degradations() == 0 {
        assert!(start.elapsed() < PATIENCE, "{count} sessions had room on a full disk");
        let noted: Vec<_> = (count..count + 100).map(|n| sessions.note(n.to_string())).collect();
        for outcome in noted {
            outcome.recorded().await;
        }
        count += 100;
    }
    assert!(sessions.end("0", EndReason::Deleted));
    server.free_disk();
    if server.try_ask("SELECT 1").is_err() {
        // It has stopped because of the disk.
        server.start_again();
    }
    server.wait_until("SELECT count(*) FROM s.active_sessions", &(count - 1).to_string());
    let report = sessions.drain(EndReason::Shutdown).await;
    assert!(report.is_clean(), "{report}");
    driver.abort();
    let mut ids = Vec::new();
    while let Ok(id) = ended.try_recv() {
        ids.push(id.parse::<usize>().unwrap());
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..count).collect::<Vec<_>>(), "each once");
    server.wait_until("SELECT count(*) FROM s.sessions", "0");
}
