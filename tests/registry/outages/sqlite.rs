//! A disk that is full, and a file that somebody else has locked.

use std::{future::pending, time::Duration};

use rusqlite::Connection;
use tower_session_end::{EndReason, registry::SqliteRegistry};

use super::support::{ABOUT_250_MS, Dir, handle, request, until};

#[tokio::test(flavor = "multi_thread")]
async fn g17_while_the_file_is_locked_no_request_fails_and_a_birth_waits_250_ms_at_most() {
    let dir = Dir::new();
    let file = dir.0.join("sessions.db");
    let (recorder, sessions) = handle(SqliteRegistry::open(&file).unwrap()).await;
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    request(&sessions, "known").await;

    let other = Connection::open(&file).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let birth = request(&sessions, "first").await;
    assert!(birth < ABOUT_250_MS, "{birth:?}");
    until("degraded", || sessions.is_degraded()).await;
    for n in 0..100 {
        let birth = request(&sessions, &format!("later-{n}")).await;
        assert!(birth < Duration::from_millis(200), "the breaker is open: {birth:?}");
    }
    request(&sessions, "known").await;
    other.execute_batch("ROLLBACK").unwrap();
    until("restored", || !sessions.is_degraded()).await;
    let active = || other.query_row("SELECT count(*) FROM active_sessions", [], |row| row.get::<_, i64>(0)).unwrap();
    until("recorded", || active() == 102).await;
    driver.abort();
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.handed_over), (102, 0), "{report}");
    assert_eq!(recorder.starts().len(), 102);
    recorder.assert_no_generation_ended_twice();
    assert_eq!(active(), 0);
}
