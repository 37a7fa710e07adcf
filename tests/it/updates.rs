//! `SessionUpdate`: what a handler says of its sessions.

use crate::support::{Recorder, answer, ask, exchange, say};
use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::post,
};
use http::{Request, StatusCode};
use tower::ServiceExt;
use tower_session_end::{ActiveSessions, EndReason, Session, SessionEnd, SessionId, SessionUpdate};

const ID: &str = "x-session-id";

fn id(id: &str) -> SessionId {
    SessionId::new(id).unwrap()
}

/// One request to a handler that gives this response.
async fn post_to<R, F>(sessions: &ActiveSessions, request: &[(&str, &str)], handler: F) -> Response
where
    R: IntoResponse,
    F: Fn() -> R + Clone + Send + Sync + 'static,
{
    let app = Router::new().route("/", post(async move || handler().into_response())).layer(sessions.layer());
    let mut builder = Request::post("/");
    for (name, value) in request {
        builder = builder.header(*name, *value);
    }
    app.oneshot(builder.body(Body::empty()).unwrap()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_signal_is_a_response_a_part_of_one_or_attached_to_one() {
    let (recorder, sessions) = Recorder::sessions();
    let response = post_to(&sessions, &[], || SessionUpdate::started("alone")).await;
    assert_eq!(response.status(), StatusCode::OK);
    let part = || (StatusCode::CREATED, SessionUpdate::started("part"), "body");
    assert_eq!(post_to(&sessions, &[], part).await.status(), StatusCode::CREATED);
    let attached = || {
        let mut response = "body".into_response();
        SessionUpdate::started("attached").insert_into(&mut response);
        response
    };
    post_to(&sessions, &[], attached).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["alone shutdown", "attached shutdown", "part shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn signals_add_up_in_their_order() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("old");
    let both = || (SessionUpdate::ended(id("old"), EndReason::Reset), SessionUpdate::started("new"));
    post_to(&sessions, &[], both).await;
    assert!(!sessions.contains("old") && sessions.contains("new"));
    let list = || {
        let mut response = ().into_response();
        SessionUpdate::compacted(id("new"), "newer").insert_into(&mut response);
        SessionUpdate::ended(id("newer"), EndReason::Deleted)
            .and(SessionUpdate::started("newest"))
            .insert_into(&mut response);
        response
    };
    post_to(&sessions, &[], list).await;
    let ended = recorder.ended_after_drain(&sessions).await;
    assert_eq!(ended, ["new compaction", "newer deleted", "newest shutdown", "old reset"]);
}

#[tokio::test(start_paused = true)]
async fn a_reset_that_keeps_its_id_is_two_generations() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let reset = || SessionUpdate::ended(id("a"), EndReason::Reset).and(SessionUpdate::started("a"));
    // That the response carries the id too says nothing more, and ends nothing more.
    post_to(&sessions, &[(ID, "a")], move || (reset(), [(ID, "a")])).await;
    assert!(sessions.contains("a"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a reset", "a shutdown"]);
    let ends = recorder.ends();
    assert_ne!(ends[0].generation, ends[1].generation);
}

#[tokio::test(start_paused = true)]
async fn a_signal_counts_on_any_status() {
    for status in [StatusCode::BAD_REQUEST, StatusCode::INTERNAL_SERVER_ERROR] {
        let (recorder, sessions) = Recorder::sessions();
        sessions.note("old");
        let said = move || (status, SessionUpdate::compacted(id("old"), "new"), SessionUpdate::started("other"));
        post_to(&sessions, &[], said).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["new shutdown", "old compaction", "other shutdown"]);
    }
}

#[tokio::test(start_paused = true)]
async fn g18_a_signal_never_leaves_the_layer() {
    let (_, sessions) = Recorder::sessions();
    let bare = ().into_response().headers().clone();
    let response = post_to(&sessions, &[], || SessionUpdate::started("a")).await;
    assert!(response.extensions().get::<SessionUpdate>().is_none());
    // Nor does it leave in another form.
    assert_eq!(response.headers().iter().filter(|(name, _)| *name != "content-length").count(), bare.len());
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    assert!(body.is_empty());
    // Nothing said is nothing done.
    post_to(&sessions, &[], SessionUpdate::empty).await;
    assert_eq!(sessions.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_signal_and_a_header_that_say_the_same_are_one() {
    let (recorder, sessions) = Recorder::sessions();
    let started = || (SessionUpdate::started(Session::try_from("a").unwrap().with_key("k")), [(ID, "a")]);
    post_to(&sessions, &[], started).await;
    assert_eq!(sessions.snapshot()[0].key.as_deref(), Some("k"), "the header knows less");
    let ended = || (SessionUpdate::ended(id("a"), EndReason::Deleted), [("x-session-end", "reset")]);
    post_to(&sessions, &[(ID, "a")], ended).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"], "the handler's word comes first");
    assert_eq!(recorder.started(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn the_details_of_a_compaction_survive_a_header_that_says_the_same() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("old");
    let compacted = || {
        let new = Session::try_from("new").unwrap().with_key("k").with_attribute("tenant", "acme");
        (SessionUpdate::compacted(id("old"), new), [(ID, "new"), ("x-session-compacted-from", "old")])
    };
    post_to(&sessions, &[(ID, "old")], compacted).await;
    let snapshot = sessions.snapshot();
    assert_eq!(snapshot.len(), 1);
    assert_eq!(snapshot[0].key.as_deref(), Some("k"));
    assert_eq!(snapshot[0].attributes["tenant"], "acme");
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["new shutdown", "old compaction"]);
}

#[tokio::test(start_paused = true)]
async fn a_signal_and_a_header_that_say_the_same_are_one_while_closing_too() {
    let (recorder, sessions) = Recorder::sessions();
    let _ = sessions.drain(EndReason::Shutdown).await;
    // What is born now ends at once, and the header finds nobody active.
    let started = || (SessionUpdate::started("started"), [(ID, "started")]);
    post_to(&sessions, &[], started).await;
    let compacted = || {
        let headers = [(ID, "compacted"), ("x-session-compacted-from", "before")];
        (SessionUpdate::compacted(id("before"), "compacted"), headers)
    };
    post_to(&sessions, &[], compacted).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["compacted shutdown", "started shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_the_handler_noted_and_the_header_repeats_is_one() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note(Session::try_from("a").unwrap().with_agent_id("main"));
    say(&sessions.layer(), &[], &[(ID, "a")]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
    assert_eq!(recorder.ends()[0].session.agent_id.as_deref(), Some("main"));
}

#[tokio::test(start_paused = true)]
async fn g12_a_handlers_word_overrides_the_rules_for_late_responses() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    let _ = sessions.note("a");
    sessions.end("a", EndReason::Idle);
    let mut response = answer(200, &[]);
    SessionUpdate::started("a").insert_into(&mut response);
    exchange(&layer, ask(&[(ID, "a")]), response).await;
    assert!(sessions.contains("a"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a idle", "a shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g04_a_signal_with_no_valid_id_is_ignored_and_counted() {
    let (recorder, sessions) = Recorder::sessions();
    let said = || SessionUpdate::started("two words").and(SessionUpdate::compacted(id("old"), "")).and(started("ok"));
    post_to(&sessions, &[], said).await;
    assert_eq!(sessions.ignored_ids(), 2);
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["ok shutdown"]);
}

fn started(id: &str) -> SessionUpdate {
    SessionUpdate::started(id)
}

#[tokio::test(start_paused = true)]
async fn a_signal_from_an_inner_layer_counts_like_a_handlers() {
    let ends = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = std::sync::Arc::clone(&ends);
    let sessions = ActiveSessions::builder()
        .on_session_end(move |end: SessionEnd| {
            told.lock().unwrap().push(end.session.id.to_string());
            async {}
        })
        .build()
        .unwrap();
    let said = axum::middleware::map_response(async |mut response: Response| {
        SessionUpdate::started("inner").insert_into(&mut response);
        response
    });
    let app: Router = Router::new().route("/", post(|| async { SessionUpdate::started("handler") }));
    let app = app.layer(said).layer(sessions.layer());
    app.oneshot(Request::post("/").body(Body::empty()).unwrap()).await.unwrap();
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
    let mut ends = ends.lock().unwrap().clone();
    ends.sort();
    assert_eq!(ends, ["handler", "inner"]);
}
