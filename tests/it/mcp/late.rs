//! Responses that come late: after the end of their session, after the next generation, while the handle closes.

use std::time::Duration;

use http::StatusCode;
use tower_session_end::{EndReason, McpProtocol};

use super::{ID, VERSION, ask, mcp, say, with};
use crate::support::{Recorder, UnderWay, answer, exchange};

#[tokio::test(start_paused = true)]
async fn g01_a_late_response_of_one_generation_does_not_end_the_next() {
    for (method, status) in [("DELETE", 200), ("DELETE", 404), ("POST", 404), ("GET", 404)] {
        let (recorder, sessions, layer) = mcp();
        sessions.note("a");
        let late = UnderWay::begin(&layer, ask(method, &[(ID, "a")]));
        sessions.end("a", EndReason::Reset);
        sessions.note("a");
        late.answer(answer(status, &[]));
        assert!(sessions.contains("a"), "{method} {status}");
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a reset", "a shutdown"], "{method} {status}");
    }
}

#[tokio::test(start_paused = true)]
async fn g01_an_id_that_was_unknown_when_its_request_came_is_not_ended_by_the_response() {
    for (method, status) in [("DELETE", 200), ("DELETE", 404), ("POST", 404)] {
        let (recorder, sessions, layer) = mcp();
        let late = UnderWay::begin(&layer, ask(method, &[(ID, "a")]));
        sessions.note("a");
        late.answer(answer(status, &[]));
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"], "{method} {status}");
    }
}

#[tokio::test(start_paused = true)]
async fn g01_two_deletes_and_a_404_at_once_are_one_end() {
    let (recorder, sessions, layer) = mcp();
    sessions.note("a");
    let [first, second, third] =
        ["DELETE", "POST", "DELETE"].map(|method| UnderWay::begin(&layer, ask(method, &[(ID, "a")])));
    second.answer(answer(404, &[]));
    first.answer(answer(200, &[]));
    third.answer(answer(404, &[]));
    // The 404s doubt the session, and the 2xx to the `DELETE` ends it.
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
}

#[tokio::test(start_paused = true)]
async fn g12_a_response_that_was_under_way_does_not_revive_its_session_and_a_later_one_does() {
    for adopt in [false, true] {
        let (recorder, sessions, layer) = with(McpProtocol::new().adopt(adopt));
        say(&layer, "POST", &[], 200, &[(ID, "a")]).await;
        let late = [(200, &[(ID, "a")][..]), (200, &[]), (202, &[])]
            .map(|(status, headers)| (UnderWay::begin(&layer, ask("POST", &[(ID, "a")])), answer(status, headers)));
        say(&layer, "DELETE", &[(ID, "a")], 202, &[]).await;
        for (late, answer) in late {
            late.answer(answer);
        }
        assert!(sessions.is_empty());
        // A request that begins after the end, and that the host serves with the id, is another session.
        say(&layer, "POST", &[(ID, "a")], 200, &[(ID, "a")]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted", "a shutdown"]);
        assert_eq!(recorder.started(), ["a", "a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn g08_in_closing_a_new_session_ends_at_once_and_none_is_adopted() {
    let (recorder, sessions, layer) = with(McpProtocol::new().adopt(true));
    let _ = sessions.drain(EndReason::Restart).await;
    say(&layer, "POST", &[(ID, "brought")], 200, &[]).await;
    say(&layer, "POST", &[(ID, "brought")], 200, &[(ID, "brought")]).await;
    say(&layer, "POST", &[], 200, &[(ID, "new")]).await;
    assert!(sessions.is_empty());
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["new restart"]);
}

#[tokio::test(start_paused = true)]
async fn g08_refusing_new_sessions_refuses_a_post_without_one_and_nothing_else() {
    let recorder = Recorder::default();
    // So that a session with work is still active in `Closing`.
    let builder = recorder.builder().refuse_new_sessions(true).settle_timeout(Duration::from_secs(1));
    let sessions = builder.build().unwrap();
    let layer = sessions.layer_with(McpProtocol::new());
    sessions.note("busy");
    let busy = UnderWay::begin(&layer, ask("POST", &[(ID, "busy")]));
    let drain = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.drain(EndReason::Shutdown).await }
    });
    sessions.closing().await;
    let status = async |method, headers: &[(&str, &str)]| {
        exchange(&layer, ask(method, headers), answer(200, &[])).await.status()
    };
    assert_eq!(status("POST", &[]).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status("POST", &[(ID, "unknown")]).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status("POST", &[(ID, "busy")]).await, StatusCode::OK);
    // Opens nothing, so that the client may have its answer.
    assert_eq!(status("POST", &[(VERSION, "2026-07-28")]).await, StatusCode::OK);
    for method in ["GET", "DELETE", "HEAD", "OPTIONS"] {
        assert_eq!(status(method, &[]).await, StatusCode::OK, "{method}");
        assert_eq!(status(method, &[(ID, "unknown")]).await, StatusCode::OK, "{method}");
    }
    busy.answer(answer(200, &[]));
    let report = drain.await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(recorder.ended(), ["busy shutdown"]);
}
