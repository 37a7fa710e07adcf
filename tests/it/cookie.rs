//! Sessions in a cookie: what opens, what ends, what rotates, and what does none of it.

use crate::support::{Recorder, UnderWay, answer, ask, exchange, say};
use tower_session_end::{ActiveSessions, CookieProtocol, EndReason, SessionLayer, SessionUpdate};

const COOKIE: &str = "cookie";
const SET: &str = "set-cookie";

fn sessions() -> (Recorder, ActiveSessions, SessionLayer) {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer_with(CookieProtocol::new("sid"));
    (recorder, sessions, layer)
}

/// The ids that are active, sorted.
fn active(sessions: &ActiveSessions) -> Vec<String> {
    let mut ids: Vec<_> = sessions.snapshot().iter().map(|session| session.id.to_string()).collect();
    ids.sort();
    ids
}

#[tokio::test(start_paused = true)]
async fn a_new_value_opens_a_session_whatever_the_status() {
    for status in [101, 200, 204, 302, 303, 400, 401, 403, 404, 429, 500, 503] {
        let (recorder, sessions, layer) = sessions();
        exchange(&layer, ask(&[]), answer(status, &[(SET, "sid=a; Path=/; HttpOnly")])).await;
        assert!(sessions.contains("a"), "{status}");
        // And with the next request, it is the session of that one.
        say(&layer, &[(COOKIE, "sid=a")], &[]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"], "{status}");
        assert_eq!(recorder.ends()[0].requests, 1, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_removal_ends_the_requests_session_whatever_the_status() {
    let removals = [
        "sid=; Max-Age=0",
        "sid=; max-age=0; Path=/",
        "sid=a; Max-Age=-1",
        "sid=deleted; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/",
        "sid=; Expires=Thu, 01-Jan-1970 00:00:01 GMT",
        "sid=x; Expires=Sunday, 06-Nov-94 08:49:37 GMT",
        // The age counts, where there are both.
        "sid=x; Expires=Fri, 31 Dec 9999 23:59:59 GMT; Max-Age=0",
        // No value is no id, however long it is to be kept.
        "sid=; Path=/",
        "sid=\"\"; Max-Age=3600",
        "sid=",
    ];
    for removal in removals {
        for status in [200, 302, 401, 500] {
            let (recorder, sessions, layer) = sessions();
            sessions.note("a");
            sessions.note("bystander");
            exchange(&layer, ask(&[(COOKIE, "sid=a")]), answer(status, &[(SET, removal)])).await;
            assert_eq!(active(&sessions), ["bystander"], "{removal} {status}");
            assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted", "bystander shutdown"]);
            assert_eq!(sessions.ignored_ids(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cookie_that_is_kept_for_some_time_is_no_removal() {
    let sets = [
        "sid=a; Max-Age=1",
        "sid=a; Max-Age=99999999999999999999999",
        "sid=a; Expires=Fri, 31 Dec 9999 23:59:59 GMT",
        "sid=a; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=60",
        // What is no date or no number is ignored, as by a browser.
        "sid=a; Expires=0",
        "sid=a; Expires=yesterday",
        "sid=a; Max-Age=soon",
        "sid=a; Max-Age",
    ];
    for set in sets {
        let (recorder, sessions, layer) = sessions();
        sessions.note("a");
        say(&layer, &[(COOKIE, "sid=a")], &[(SET, set)]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"], "{set}");
        assert_eq!(recorder.started(), ["a"], "{set}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_removal_makes_no_event_without_a_session() {
    let (recorder, sessions, layer) = sessions();
    sessions.note("a");
    // The client has no cookie, one that nobody knows, one that is no id, or another cookie only.
    for cookie in ["", "sid=unknown", "sid=", "sid=two words", "other=a"] {
        say(&layer, &[(COOKIE, cookie)], &[(SET, "sid=; Max-Age=0")]).await;
    }
    say(&layer, &[], &[(SET, "sid=a; Max-Age=0")]).await;
    // And twice is once.
    say(&layer, &[(COOKIE, "sid=a")], &[(SET, "sid=; Max-Age=0")]).await;
    say(&layer, &[(COOKIE, "sid=a")], &[(SET, "sid=; Max-Age=0")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
    assert_eq!(recorder.started(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn g02_a_new_value_in_place_of_a_tracked_one_is_a_compaction() {
    let (recorder, sessions, layer) = sessions();
    sessions.note("old");
    say(&layer, &[(COOKIE, "sid=old")], &[(SET, "sid=new; Path=/")]).await;
    assert_eq!(active(&sessions), ["new"]);
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["new shutdown", "old compaction"]);
    assert_eq!(recorder.ends()[0].next.as_ref().map(|next| next.id.as_str()), Some("new"));
    assert_eq!(recorder.starts()[1].resumed_from.as_ref().map(|old| old.as_str()), Some("old"));
}

#[tokio::test(start_paused = true)]
async fn a_new_value_in_place_of_one_that_is_not_tracked_is_a_birth() {
    let (recorder, sessions, layer) = sessions();
    say(&layer, &[(COOKIE, "sid=invented")], &[(SET, "sid=new; Path=/")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["new shutdown"]);
    assert!(recorder.starts()[0].resumed_from.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_set_again_is_not_news() {
    let (recorder, sessions, layer) = sessions();
    say(&layer, &[], &[(SET, "sid=a")]).await;
    for _ in 0..3 {
        say(&layer, &[(COOKIE, "sid=a")], &[(SET, "sid=a; Max-Age=3600")]).await;
    }
    // Even without it in the request.
    say(&layer, &[], &[(SET, "sid=a; Max-Age=3600")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
    assert_eq!(recorder.started(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_the_client_brings_and_the_host_sets_again_is_a_birth() {
    let (recorder, sessions, layer) = sessions();
    say(&layer, &[(COOKIE, "sid=resumed")], &[(SET, "sid=resumed; Max-Age=3600")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["resumed shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn a_client_cannot_open_end_or_rotate() {
    let (recorder, sessions, layer) = sessions();
    sessions.note("a");
    say(&layer, &[(COOKIE, "sid=invented"), (SET, "sid=b")], &[]).await;
    say(&layer, &[(COOKIE, "sid=a"), (SET, "sid=; Max-Age=0")], &[]).await;
    say(&layer, &[(COOKIE, "sid=a; Max-Age=0"), (SET, "sid=b")], &[]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
    assert_eq!(recorder.started(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_finds_the_id_in_a_value_that_changes() {
    let (recorder, sessions) = Recorder::sessions();
    let read = |value: &str| value.split_once('.').map(|(id, _)| id.to_owned());
    let layer = sessions.layer_with(CookieProtocol::new("sid").id_from_value(read));
    say(&layer, &[], &[(SET, "sid=a.1")]).await;
    // Sealed again: the same session.
    say(&layer, &[(COOKIE, "sid=a.1")], &[(SET, "sid=a.2")]).await;
    say(&layer, &[(COOKIE, "sid=a.2; sid=a.1")], &[]).await;
    assert_eq!(active(&sessions), ["a"]);
    // No id in it: not noted, counted, and no other value in a request.
    say(&layer, &[], &[(SET, "sid=junk")]).await;
    assert_eq!(sessions.ignored_ids(), 1);
    say(&layer, &[(COOKIE, "sid=junk; sid=a.2")], &[(SET, "sid=b.1")]).await;
    say(&layer, &[(COOKIE, "sid=\"b.1\"")], &[(SET, "sid=; Max-Age=0")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a compaction", "b deleted"]);
    assert_eq!(recorder.ends()[0].requests, 3);
}

#[tokio::test(start_paused = true)]
async fn a_handlers_own_word_goes_before_the_cookie() {
    let (recorder, sessions, layer) = sessions();
    sessions.note("old");
    // The host calls a reset what looks like a rotation.
    let mut response = answer(200, &[(SET, "sid=new; Path=/")]);
    SessionUpdate::ended("old", EndReason::Reset).insert_into(&mut response);
    exchange(&layer, ask(&[(COOKIE, "sid=old")]), response).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["new shutdown", "old reset"]);
    assert!(recorder.starts()[1].resumed_from.is_none());
}

#[tokio::test(start_paused = true)]
async fn g01_a_late_removal_or_rotation_of_one_generation_leaves_the_next_alone() {
    for late in ["sid=; Max-Age=0", "sid=b; Path=/"] {
        let (recorder, sessions, layer) = sessions();
        sessions.note("a");
        let under_way = UnderWay::begin(&layer, ask(&[(COOKIE, "sid=a")]));
        sessions.end("a", EndReason::Idle);
        sessions.note("a");
        under_way.answer(answer(200, &[(SET, late)]));
        assert!(sessions.contains("a"), "{late}");
        recorder.ended_after_drain(&sessions).await;
        recorder.assert_no_generation_ended_twice();
    }
}

#[tokio::test(start_paused = true)]
async fn g12_a_late_rolling_expiry_revives_nothing() {
    let (recorder, sessions, layer) = sessions();
    sessions.note("a");
    let rolling = UnderWay::begin(&layer, ask(&[(COOKIE, "sid=a")]));
    say(&layer, &[(COOKIE, "sid=a")], &[(SET, "sid=; Max-Age=0")]).await;
    rolling.answer(answer(200, &[(SET, "sid=a; Max-Age=3600")]));
    assert!(sessions.is_empty());
    // A request that begins after the end, and gets the cookie again, is another session of that id.
    say(&layer, &[(COOKIE, "sid=a")], &[(SET, "sid=a; Max-Age=3600")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted", "a shutdown"]);
    assert_eq!(recorder.started(), ["a", "a"]);
}

#[tokio::test(start_paused = true)]
async fn g08_births_and_rotations_during_the_drain_get_their_ends() {
    let (recorder, sessions, layer) = sessions();
    sessions.note("old");
    let rotating = UnderWay::begin(&layer, ask(&[(COOKIE, "sid=old")]));
    let rolling = UnderWay::begin(&layer, ask(&[(COOKIE, "sid=old")]));
    let _ = sessions.drain(EndReason::Shutdown).await;
    say(&layer, &[], &[(SET, "sid=born")]).await;
    rotating.answer(answer(200, &[(SET, "sid=new")]));
    // An id that the request carried is no birth.
    rolling.answer(answer(200, &[(SET, "sid=old; Max-Age=60")]));
    say(&layer, &[(COOKIE, "sid=carried")], &[(SET, "sid=carried; Max-Age=60")]).await;
    let ended = recorder.ended_after_drain(&sessions).await;
    assert_eq!(ended, ["born shutdown", "new shutdown", "old shutdown"]);
}
