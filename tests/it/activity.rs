//! What keeps a session from eviction and idle expiry.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::{Recorder, say};
use tokio::time::{Instant, sleep};
use tower_session_end::{ActiveSessions, ActiveSessionsBuilder};

/// A handle with a recorder.
fn with(set: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder) -> (Recorder, ActiveSessions) {
    let recorder = Recorder::default();
    let sessions = set(recorder.builder()).build().unwrap();
    (recorder, sessions)
}

#[test]
fn g13_a_guarded_session_is_never_evicted() {
    let sessions = ActiveSessions::builder().max_sessions(1).build().unwrap();
    let bad = Arc::new(AtomicUsize::new(0));
    let t: Vec<_> = (0..4)
        .map(|t| {
            let (sessions, bad) = (sessions.clone(), bad.clone());
            std::thread::spawn(move || {
                for i in 0..2_000 {
                    let id = format!("{t}-{i}");
                    let guard = sessions.guard(id.as_str()).unwrap();
                    if !sessions.contains(&id) {
                        bad.fetch_add(1, Ordering::SeqCst);
                    }
                    drop(guard);
                }
            })
        })
        .collect();
    for t in t {
        t.join().unwrap();
    }
    assert_eq!(bad.load(Ordering::SeqCst), 0, "guards whose session was evicted under them");
}

#[tokio::test(start_paused = true)]
async fn g13_no_session_expires_before_its_time() {
    let (recorder, sessions) = with(|builder| builder.idle_timeout(Duration::from_secs(160)));
    let layer = sessions.layer();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    tokio::task::yield_now().await;
    sessions.note("a");
    sleep(Duration::from_millis(19_900)).await; // 9.9 s after the driver's last step
    say(&layer, &[("x-session-id", "a")], &[("x-session-id", "a")]).await;
    let heard = Instant::now();
    while sessions.contains("a") {
        sleep(Duration::from_millis(100)).await;
    }
    driver.abort();
    let _ = recorder;
    assert!(heard.elapsed() >= Duration::from_secs(160), "expired after {:?} of silence", heard.elapsed());
}

#[test]
fn g13_thousands_of_guards_on_one_session_count() {
    let sessions = ActiveSessions::builder().max_sessions(1).build().unwrap();
    let guards: Vec<_> = (0..4096).map(|_| sessions.guard("room").unwrap()).collect();
    sessions.note("other");
    assert!(sessions.contains("room"), "evicted under {} guards", guards.len());
}
