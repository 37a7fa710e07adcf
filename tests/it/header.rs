//! Sessions in headers: what opens, what ends, what compacts, and what does none of it.

use crate::support::{Recorder, answer, ask, exchange, say};
use http::{HeaderName, HeaderValue};
use tower_session_end::{ActiveSessions, HeaderProtocol, Session};

const ID: &str = "x-session-id";
const END: &str = "x-session-end";
const FROM: &str = "x-session-compacted-from";

#[tokio::test(start_paused = true)]
async fn a_101_a_2xx_and_a_3xx_open_a_session_and_nothing_else_does() {
    for status in [100, 101, 102, 103, 200, 201, 204, 206, 299, 300, 302, 304, 307, 399, 400, 404, 410, 429, 499, 500] {
        let (recorder, sessions) = Recorder::sessions();
        exchange(&sessions.layer(), ask(&[]), answer(status, &[(ID, "a")])).await;
        let opens = status == 101 || (200..400).contains(&status);
        assert_eq!(sessions.contains("a"), opens, "{status}");
        let ended = recorder.ended_after_drain(&sessions).await;
        assert_eq!(ended.len(), usize::from(opens), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_error_opens_nothing_and_its_end_counts() {
    for (code, opens) in [(None, true), (Some("0"), true), (Some("5"), false), (Some("14"), false), (Some(""), false)] {
        let (recorder, sessions) = Recorder::sessions();
        sessions.note("old");
        let code = code.map(|code| ("grpc-status", code));
        let head = |headers: &[(&'static str, &'static str)]| {
            answer(200, &headers.iter().copied().chain(code).collect::<Vec<_>>())
        };
        exchange(&sessions.layer(), ask(&[]), head(&[(ID, "a")])).await;
        exchange(&sessions.layer(), ask(&[(ID, "old")]), head(&[(ID, "new"), (FROM, "old")])).await;
        assert_eq!((sessions.contains("a"), sessions.contains("new")), (opens, opens), "{code:?}");
        let last = if opens { "new" } else { "old" };
        exchange(&sessions.layer(), ask(&[(ID, last)]), head(&[(END, "deleted")])).await;
        assert!(!sessions.contains(last), "{code:?}");
        let ended = recorder.ended_after_drain(&sessions).await;
        let expected: &[&str] = if opens { &["a shutdown", "new deleted", "old compaction"] } else { &["old deleted"] };
        assert_eq!(ended, expected, "{code:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_counts_with_every_status() {
    for status in [101, 200, 204, 302, 400, 404, 409, 500, 503, 599] {
        let (recorder, sessions) = Recorder::sessions();
        sessions.note("a");
        exchange(&sessions.layer(), ask(&[(ID, "a")]), answer(status, &[(END, "reset")])).await;
        assert!(!sessions.contains("a"), "{status}");
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a reset"], "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_carries_its_reason_and_nonsense_is_unknown() {
    let cases = [
        ("deleted", "deleted"),
        ("compaction", "compaction"),
        (" Reset ", "reset"),
        ("IDLE", "idle"),
        ("nonsense", "unknown"),
        ("", "unknown"),
        ("true", "unknown"),
    ];
    for (word, reason) in cases {
        let (recorder, sessions) = Recorder::sessions();
        sessions.note("a");
        say(&sessions.layer(), &[(ID, "a")], &[(END, word)]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, [format!("a {reason}")], "{word:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_means_the_requests_session_and_without_one_the_responses() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    for id in ["by-request", "by-response", "bystander"] {
        sessions.note(id);
    }
    say(&layer, &[(ID, "by-request")], &[(END, "deleted")]).await;
    say(&layer, &[], &[(ID, "by-response"), (END, "daily")]).await;
    assert_eq!(sessions.len(), 1);
    // Echoed beside its end, it is over all the same.
    sessions.note("echoed");
    say(&layer, &[(ID, "echoed")], &[(ID, "echoed"), (END, "idle")]).await;
    assert!(!sessions.contains("echoed"));
    let ended = recorder.ended_after_drain(&sessions).await;
    assert_eq!(ended, ["by-request deleted", "by-response daily", "bystander shutdown", "echoed idle"]);
}

#[tokio::test(start_paused = true)]
async fn an_end_with_another_id_in_the_response_is_a_reset() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("old");
    say(&sessions.layer(), &[(ID, "old")], &[(ID, "new"), (END, "reset")]).await;
    assert!(!sessions.contains("old") && sessions.contains("new"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["new shutdown", "old reset"]);
    // Not a compaction: the new one resumes nothing.
    assert!(recorder.starts().iter().all(|start| start.resumed_from.is_none()));
}

#[tokio::test(start_paused = true)]
async fn an_end_of_an_unknown_session_makes_no_event() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    say(&layer, &[(ID, "unknown")], &[(END, "deleted")]).await;
    say(&layer, &[], &[(END, "deleted")]).await;
    say(&layer, &[], &[(ID, "unknown"), (END, "deleted")]).await;
    assert!(sessions.is_empty());
    assert!(recorder.ended_after_drain(&sessions).await.is_empty());
    assert!(recorder.started().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_id_opens_once_and_its_echoes_change_nothing() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    say(&layer, &[], &[(ID, "a")]).await;
    sessions.note(Session::try_from("a").unwrap().with_key("kept"));
    say(&layer, &[(ID, "a")], &[(ID, "a")]).await;
    say(&layer, &[(ID, "a")], &[]).await;
    say(&layer, &[], &[(ID, "a")]).await;
    assert_eq!(sessions.snapshot()[0].key.as_deref(), Some("kept"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
    assert_eq!(recorder.started(), ["a"]);
    assert_eq!(recorder.ends()[0].requests, 2);
}

#[tokio::test(start_paused = true)]
async fn an_id_that_the_client_brings_and_the_host_confirms_is_a_birth() {
    let (recorder, sessions) = Recorder::sessions();
    // As after a restart: the client knows the session, this process does not.
    say(&sessions.layer(), &[(ID, "resumed")], &[(ID, "resumed")]).await;
    assert!(sessions.contains("resumed"));
    // What the host does not confirm is none.
    say(&sessions.layer(), &[(ID, "invented")], &[]).await;
    assert!(!sessions.contains("invented"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["resumed shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g02_a_compaction_ends_the_old_and_starts_its_successor() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("old");
    say(&sessions.layer(), &[(ID, "old")], &[(ID, "new"), (FROM, "old")]).await;
    assert!(!sessions.contains("old") && sessions.contains("new"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["new shutdown", "old compaction"]);
    let ends = recorder.ends();
    assert_eq!(ends[0].next.as_ref().map(|next| next.id.as_str()), Some("new"));
    let starts = recorder.starts();
    assert_eq!(starts[1].resumed_from.as_ref().map(|old| old.as_str()), Some("old"));
}

#[tokio::test(start_paused = true)]
async fn a_compaction_from_an_unknown_id_notes_the_new_one() {
    let (recorder, sessions) = Recorder::sessions();
    say(&sessions.layer(), &[], &[(ID, "new"), (FROM, "never-seen")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["new shutdown"]);
    assert_eq!(recorder.started(), ["new"]);
    assert!(recorder.starts()[0].resumed_from.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_compaction_into_itself_does_nothing() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    say(&sessions.layer(), &[(ID, "a")], &[(ID, "a"), (FROM, "a")]).await;
    assert_eq!(sessions.len(), 1);
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
    assert_eq!(recorder.started(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_compaction_that_failed_changes_nothing() {
    for status in [400, 404, 500] {
        let (recorder, sessions) = Recorder::sessions();
        sessions.note("old");
        exchange(&sessions.layer(), ask(&[(ID, "old")]), answer(status, &[(ID, "new"), (FROM, "old")])).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["old shutdown"], "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_that_comes_twice_counts_if_both_are_equal() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    say(&layer, &[], &[(ID, "a"), (ID, "a")]).await;
    assert!(sessions.contains("a"));
    say(&layer, &[(ID, "a"), (ID, "a")], &[(END, "reset"), (END, "reset")]).await;
    assert_eq!(sessions.ignored_ids(), 0);
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a reset"]);
}

#[tokio::test(start_paused = true)]
async fn g04_an_ambiguous_id_is_ignored_and_counted() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    say(&layer, &[], &[(ID, "a"), (ID, "b")]).await;
    say(&layer, &[], &[(ID, "a"), (ID, "b"), (ID, "a")]).await;
    assert!(sessions.is_empty());
    assert_eq!(sessions.ignored_ids(), 2);
    // An ambiguous end is no end, and an ambiguous request has no session that could end.
    sessions.note("c");
    say(&layer, &[(ID, "c")], &[(END, "reset"), (END, "deleted")]).await;
    say(&layer, &[(ID, "c"), (ID, "d")], &[(END, "reset")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["c shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn every_header_can_be_renamed() {
    let (recorder, sessions) = Recorder::sessions();
    let protocol = HeaderProtocol::new()
        .id_header(HeaderName::from_static("x-conversation"))
        .end_header(HeaderName::from_static("x-over"))
        .compacted_from_header(HeaderName::from_static("x-after"));
    let layer = sessions.layer_with(protocol);
    say(&layer, &[], &[(ID, "old-name")]).await;
    assert!(sessions.is_empty());
    say(&layer, &[], &[("x-conversation", "a")]).await;
    say(&layer, &[("x-conversation", "a")], &[("x-conversation", "b"), ("x-after", "a"), (FROM, "z")]).await;
    assert!(sessions.contains("b"));
    say(&layer, &[("x-conversation", "b")], &[(END, "deleted")]).await;
    assert!(sessions.contains("b"));
    say(&layer, &[("x-conversation", "b")], &[("x-over", "reset")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a compaction", "b reset"]);
}

#[tokio::test(start_paused = true)]
async fn control_headers_are_stripped_on_request_only() {
    let headers = [(ID, "b"), (END, "reset"), (END, "reset"), (FROM, "a"), ("x-other", "kept")];
    for strip in [false, true] {
        let sessions = ActiveSessions::builder().build().unwrap();
        let layer = sessions.layer_with(HeaderProtocol::new().strip_control_headers(strip));
        for status in [200, 500] {
            let response = exchange(&layer, ask(&[]), answer(status, &headers)).await;
            let left: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
            let expected = if strip { vec![ID, "x-other"] } else { vec![ID, END, FROM, "x-other"] };
            assert_eq!(left, expected, "{status}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_cannot_open_end_or_compact() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    sessions.note("a");
    say(&layer, &[(ID, "a"), (END, "deleted")], &[]).await;
    say(&layer, &[(ID, "a"), (END, "deleted")], &[(ID, "a")]).await;
    say(&layer, &[(ID, "b"), (FROM, "a")], &[]).await;
    assert_eq!(sessions.len(), 1);
    // The host's own word about another session is not mixed with the client's.
    say(&layer, &[(FROM, "a")], &[(ID, "c")]).await;
    assert!(sessions.contains("a") && sessions.contains("c"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown", "c shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn a_value_may_be_marked_sensitive() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let mut response = answer(200, &[]);
    let mut value = HeaderValue::from_static("secret");
    value.set_sensitive(true);
    response.headers_mut().insert(ID, value);
    let response = exchange(&sessions.layer(), ask(&[]), response).await;
    assert!(sessions.contains("secret"));
    assert!(response.headers()[ID].is_sensitive());
}
