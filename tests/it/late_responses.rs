//! Responses that come late: after the end of their session, after the next generation, after the drain.

use crate::support::{Recorder, UnderWay, answer, ask};
use http::{StatusCode, request, response};
use tower_session_end::{EndReason, RequestInfo, Session, SessionId, SessionProtocol, SessionUpdate};

const ID: &str = "x-session-id";
const END: &str = "x-session-end";
const FROM: &str = "x-session-compacted-from";

#[tokio::test(start_paused = true)]
async fn g01_a_late_delete_of_one_generation_does_not_end_the_next() {
    for status in [200, 404] {
        let (recorder, sessions) = Recorder::sessions();
        sessions.note("a");
        let delete = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
        sessions.end("a", EndReason::Reset);
        sessions.note("a");
        delete.answer(answer(status, &[(END, "deleted")]));
        assert!(sessions.contains("a"));
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a reset", "a shutdown"]);
    }
}

#[tokio::test(start_paused = true)]
async fn g01_a_late_word_of_a_handler_about_its_own_session_does_not_end_the_next() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let delete = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
    sessions.end("a", EndReason::Reset);
    sessions.note("a");
    let mut response = answer(200, &[]);
    SessionUpdate::ended("a", EndReason::Deleted).insert_into(&mut response);
    delete.answer(response);
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a reset", "a shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g01_two_deletes_at_once_are_one_end() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let layer = sessions.layer();
    let (first, second) = (UnderWay::begin(&layer, ask(&[(ID, "a")])), UnderWay::begin(&layer, ask(&[(ID, "a")])));
    second.answer(answer(200, &[(END, "deleted")]));
    first.answer(answer(200, &[(END, "reset")]));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
}

#[tokio::test(start_paused = true)]
async fn g01_a_late_compaction_of_one_generation_leaves_the_next_alone() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let compact = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
    sessions.end("a", EndReason::Reset);
    sessions.note("a");
    compact.answer(answer(200, &[(ID, "b"), (FROM, "a")]));
    assert!(sessions.contains("a") && sessions.contains("b"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a reset", "a shutdown", "b shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g12_a_response_that_was_under_way_does_not_revive_its_session() {
    for end in [EndReason::Deleted, EndReason::Idle] {
        let (recorder, sessions) = Recorder::sessions();
        sessions.note("a");
        let echo = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
        assert!(sessions.end("a", end));
        let response = echo.answer(answer(200, &[(ID, "a")]));
        assert_eq!(response.status(), StatusCode::OK);
        assert!(sessions.is_empty(), "{end}");
        assert_eq!(recorder.ended_after_drain(&sessions).await, [format!("a {end}")]);
        assert_eq!(recorder.started(), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn g12_a_response_that_was_under_way_does_not_revive_a_forgotten_session() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let echo = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
    assert!(sessions.forget("a"));
    echo.answer(answer(200, &[(ID, "a")]));
    assert!(recorder.ended_after_drain(&sessions).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn g12_a_handlers_word_on_a_late_response_does_revive() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let late = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
    sessions.end("a", EndReason::Idle);
    let mut response = answer(200, &[(ID, "a")]);
    SessionUpdate::started("a").insert_into(&mut response);
    late.answer(response);
    assert!(sessions.contains("a"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a idle", "a shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g12_a_drain_revives_nothing_that_was_under_way() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let echo = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
    echo.answer(answer(200, &[(ID, "a")]));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
}

/// A protocol that takes every id in a response for news, with details of its own.
struct Naive;

impl SessionProtocol for Naive {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        request.headers.get(ID)?.to_str().ok()?.parse().ok()
    }

    fn response(&self, _: &RequestInfo, response: &mut response::Parts) -> SessionUpdate {
        match response.headers.get(ID).and_then(|id| id.to_str().ok()) {
            Some(id) => SessionUpdate::started(Session::try_from(id).unwrap().with_key("late")),
            None => SessionUpdate::empty(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn g12_no_protocol_revives_a_session_by_a_response_that_was_under_way() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer_with(Naive);
    sessions.note(Session::try_from("a").unwrap().with_key("first"));
    let (late, later) = (UnderWay::begin(&layer, ask(&[(ID, "a")])), UnderWay::begin(&layer, ask(&[(ID, "a")])));
    sessions.end("a", EndReason::Deleted);
    late.answer(answer(200, &[(ID, "a")]));
    assert!(sessions.is_empty());
    // Nor does it rename the next generation.
    sessions.note(Session::try_from("a").unwrap().with_key("second"));
    later.answer(answer(200, &[(ID, "a")]));
    assert_eq!(sessions.snapshot()[0].key.as_deref(), Some("second"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted", "a shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g12_a_response_that_was_under_way_does_not_rename_what_is_over() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note(Session::try_from("a").unwrap().with_key("first"));
    let late = UnderWay::begin(&sessions.layer_with(Naive), ask(&[(ID, "a")]));
    // Its hook has yet to run, and is told what was known at the end.
    sessions.end("a", EndReason::Deleted);
    late.answer(answer(200, &[(ID, "a")]));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
    assert_eq!(recorder.ends()[0].session.key.as_deref(), Some("first"));
}

#[tokio::test(start_paused = true)]
async fn a_protocol_may_bring_new_details_of_an_active_session() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note(Session::try_from("a").unwrap().with_key("first"));
    UnderWay::begin(&sessions.layer_with(Naive), ask(&[(ID, "a")])).answer(answer(200, &[(ID, "a")]));
    assert_eq!(sessions.snapshot()[0].key.as_deref(), Some("late"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
    assert_eq!(recorder.started(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_protocols_word_of_one_session_is_not_about_another_that_a_handler_opens() {
    let (recorder, sessions) = Recorder::sessions();
    let mut response = answer(200, &[(ID, "brought")]);
    SessionUpdate::started(Session::try_from("opened").unwrap().with_key("handler")).insert_into(&mut response);
    UnderWay::begin(&sessions.layer_with(Naive), ask(&[(ID, "brought")])).answer(response);
    let mut active: Vec<_> =
        sessions.snapshot().into_iter().map(|session| (session.id.to_string(), session.key)).collect();
    active.sort();
    let of = |id: &str, key: &str| (id.to_owned(), Some(key.to_owned()));
    assert_eq!(active, [of("brought", "late"), of("opened", "handler")]);
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["brought shutdown", "opened shutdown"]);
}
