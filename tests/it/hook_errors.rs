//! Hooks whose error cannot be shown.

use std::{fmt, time::Duration};

use tokio::time::timeout;
use tower_session_end::{ActiveSessions, EndReason};

/// An error whose text is a panic.
#[derive(Debug)]
struct Nasty;
impl fmt::Display for Nasty {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("no text for you")
    }
}
impl std::error::Error for Nasty {}

#[tokio::test(start_paused = true)]
async fn g07_an_error_that_cannot_be_shown_is_a_failure_like_any_other() {
    let _g = tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(std::io::sink).finish());
    let sessions =
        ActiveSessions::builder().on_session_end(|_| async { Err::<(), _>(Box::new(Nasty)) }).build().unwrap();
    sessions.note("a");
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.failed, 1, "{report}");
}

#[tokio::test(start_paused = true)]
async fn g07_an_error_that_cannot_be_shown_fails_its_batch_and_no_more() {
    let _g = tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(std::io::sink).finish());
    let sessions = ActiveSessions::builder()
        .drain_timeout(Duration::MAX)
        .on_session_end_batch(10, |_| async { Err::<(), _>(Box::new(Nasty)) })
        .build()
        .unwrap();
    sessions.note("a");
    sessions.note("b");
    let report =
        timeout(Duration::from_secs(3600), sessions.drain(EndReason::Shutdown)).await.expect("drain never returns");
    assert_eq!(report.failed, 2, "{report}");
}
