//! A standby: it is no place for a registry, until it takes the place of its primary.

use std::{future::pending, time::Instant};

use tower_session_end::{ActiveSessions, EndReason, SessionEnd};

use super::support::{PATIENCE, PostgresServer, SHORT, builder, is_installed, with_lease};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_a_standby_that_takes_over_has_what_was_recorded() {
    if !is_installed() {
        return;
    }
    let primary = PostgresServer::start(&["fsync=off"]);
    let mut standby = primary.standby();
    primary.ask("ALTER SYSTEM SET synchronous_standby_names = '*'");
    primary.ask("SELECT pg_reload_conf()");
    primary.wait_until("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'", "1");
    let registry = with_lease(&primary, "s", 2 * SHORT).await;

    let error = builder(&standby.url(), "s").connect().await.unwrap_err().to_string();
    assert!(error.contains("read-only"), "{error}");

    let (hooked, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let sessions = ActiveSessions::builder()
        .registry(registry)
        .drain_timeout(PATIENCE)
        .on_session_end(move |end: SessionEnd| {
            let hooked = hooked.clone();
            async move { hooked.send(end.session.id.to_string()).unwrap() }
        })
        .build()
        .unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    for id in ["before", "ended"] {
        assert!(sessions.note(id).recorded().await);
    }
    // Whatever the primary has answered is on the standby.
    let take_over = tokio::task::spawn_blocking(move || {
        standby.take_over(primary);
        standby
    });
    let start = Instant::now();
    // If it is quick, no call fails.
    while sessions.degradations() == 0 && !take_over.is_finished() {
        assert!(start.elapsed() < 2 * PATIENCE, "nothing was noticed");
        sessions.note("between").recorded().await;
        sessions.end("between", EndReason::Deleted);
    }
    sessions.note("between");
    sessions.end("ended", EndReason::Deleted);
    let standby = take_over.await.unwrap();
    standby.wait_until("SELECT string_agg(id, ' ' ORDER BY id) FROM s.active_sessions", "before between");
    let mut ids = Vec::new();
    while ids.last().is_none_or(|id| id != "ended") {
        ids.push(tokio::time::timeout(PATIENCE, ended.recv()).await.expect("an end that never comes").unwrap());
    }
    assert!(sessions.note("after").recorded().await);
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended - report.already_ending, report.is_clean()), (3, true), "{report}");
    driver.abort();
    standby.wait_until("SELECT count(*) FROM s.sessions", "0");
}
