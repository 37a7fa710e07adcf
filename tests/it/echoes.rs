//! Heads that name an id which was noted and ended before.

use crate::support::{Recorder, UnderWay, answer, ask, say};
use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, EndReason};

/// A handle with a recorder.
fn with(set: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder) -> (Recorder, ActiveSessions) {
    let recorder = Recorder::default();
    let sessions = set(recorder.builder()).build().unwrap();
    (recorder, sessions)
}

#[tokio::test]
async fn g12_the_head_of_a_session_whose_guard_has_ended_it_revives_nothing() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    let request = UnderWay::begin(&layer, ask(&[]));
    // The handler gives the session to a job with a guard; the job is over before the head leaves.
    let guard = sessions.guard("job").unwrap();
    assert!(guard.end(EndReason::Deleted));
    let _ = request.answer(answer(200, &[("x-session-id", "job")]));
    assert!(!sessions.contains("job"), "revived by the echo of its own response");
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["job deleted"]);
}

#[tokio::test]
async fn g08_a_session_that_was_noted_and_drained_before_its_head_left_is_one() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    let request = UnderWay::begin(&layer, ask(&[]));
    sessions.note("new"); // as the docs advise, in the handler
    let _drain = sessions.drain(EndReason::Shutdown).await;
    let _ = request.answer(answer(200, &[("x-session-id", "new")]));
    let _ = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(recorder.ended(), ["new shutdown"]);
}

#[tokio::test]
async fn g12_the_hosts_own_note_takes_the_tombstone_away() {
    let (_r, sessions) = with(|builder| builder.max_sessions(1));
    let layer = sessions.layer();
    sessions.note("a");
    sessions.end("a", EndReason::Reset);
    sessions.note("a"); // the host overrides
    sessions.note("b"); // evicts a
    assert!(!sessions.contains("a"));
    // The client goes on with `a`.
    say(&layer, &[("x-session-id", "a")], &[("x-session-id", "a")]).await;
    assert!(sessions.contains("a"), "an eviction left a tombstone after all");
}
