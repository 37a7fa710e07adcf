//! Ids that come with a request, and that the host answers to.

use std::time::Duration;

use tower_session_end::McpProtocol;

use super::{ID, STATUSES, say, with};
use crate::support::Recorder;

#[tokio::test(start_paused = true)]
async fn an_id_that_the_host_confirms_is_a_birth_with_or_without_adoption() {
    for adopt in [false, true] {
        let (recorder, sessions, layer) = with(McpProtocol::new().adopt(adopt));
        say(&layer, "POST", &[(ID, "resumed")], 200, &[(ID, "resumed")]).await;
        assert!(sessions.contains("resumed"));
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["resumed shutdown"]);
    }
}

#[tokio::test(start_paused = true)]
async fn adoption_is_off_by_default() {
    for protocol in [McpProtocol::new(), McpProtocol::default(), McpProtocol::new().adopt(true).adopt(false)] {
        let (_, sessions, layer) = with(protocol);
        say(&layer, "POST", &[(ID, "a")], 200, &[]).await;
        assert!(sessions.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn adoption_notes_the_id_of_a_request_that_succeeded() {
    for (method, status) in [("POST", 200), ("POST", 202), ("GET", 200)] {
        let (recorder, sessions, layer) = with(McpProtocol::new().adopt(true));
        say(&layer, method, &[(ID, "a")], status, &[]).await;
        assert!(sessions.contains("a"));
        say(&layer, method, &[(ID, "a")], status, &[]).await;
        say(&layer, "DELETE", &[(ID, "a")], 200, &[]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
        assert_eq!(recorder.started(), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn adoption_notes_no_id_of_a_request_that_failed_and_none_beside_another() {
    let (recorder, sessions, layer) = with(McpProtocol::new().adopt(true));
    for status in STATUSES.into_iter().filter(|status| !(200..300).contains(status)) {
        say(&layer, "POST", &[(ID, "a")], status, &[]).await;
    }
    say(&layer, "POST", &[], 200, &[]).await;
    say(&layer, "POST", &[(ID, "a"), (ID, "b")], 200, &[]).await;
    assert!(sessions.is_empty());
    // The host's word counts, and what it says of no session: neither is the client's.
    say(&layer, "POST", &[(ID, "a")], 200, &[(ID, "new")]).await;
    say(&layer, "POST", &[(ID, "a")], 200, &[(ID, "ambiguous"), (ID, "ambiguous-too")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["new shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn a_session_of_before_a_restart_is_adopted_and_ends_again_as_another_event() {
    let mut ends = Vec::new();
    for _ in 0..2 {
        let (recorder, sessions, layer) = with(McpProtocol::new().adopt(true));
        say(&layer, "POST", &[(ID, "a")], 200, &[]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
        ends.extend(recorder.ends());
    }
    assert_ne!(ends[0].generation, ends[1].generation);
}

#[tokio::test(start_paused = true)]
async fn g13_a_session_that_was_idle_for_us_alone_is_adopted_when_it_is_used_again() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(Duration::from_secs(60)).build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(std::future::pending::<()>()));
    let layer = sessions.layer_with(McpProtocol::new().adopt(true));
    say(&layer, "POST", &[], 200, &[(ID, "a")]).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(sessions.is_empty());
    say(&layer, "POST", &[(ID, "a")], 200, &[]).await;
    assert!(sessions.contains("a"));
    driver.abort();
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a idle", "a shutdown"]);
}
