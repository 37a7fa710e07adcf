//! axum's extractors: the handle, and the id that a request carries.

use crate::support::Recorder;
use axum::{
    Router,
    body::Body,
    extract::{FromRequestParts, State},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::FutureExt;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use std::panic::AssertUnwindSafe;
use tower::{Layer, ServiceExt};
use tower_session_end::{ActiveSessions, EndReason, HeaderProtocol, SessionId, SessionIdRejection};

/// The status and the text of one request with these headers.
async fn call(app: Router, headers: &[(&str, &str)]) -> (StatusCode, String) {
    let mut request = Request::post("/");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

async fn show_id(id: SessionId) -> String {
    id.to_string()
}

async fn show_optional(id: Option<SessionId>) -> String {
    id.map_or_else(|| "none".to_owned(), |id| id.to_string())
}

async fn end_mine(sessions: ActiveSessions, id: SessionId) -> String {
    sessions.end(id, EndReason::Deleted).to_string()
}

fn app<H: axum::handler::Handler<T, ()>, T: 'static>(handler: H) -> Router {
    Router::new().route("/", post(handler))
}

#[tokio::test(start_paused = true)]
async fn a_handler_gets_the_handle_of_the_layer_around_it() {
    let (recorder, sessions) = Recorder::sessions();
    let (_, other) = Recorder::sessions();
    sessions.note("a");
    other.note("a");
    let app = app(end_mine).layer(sessions.layer());
    assert_eq!(call(app.clone(), &[("x-session-id", "a")]).await, (StatusCode::OK, "true".to_owned()));
    assert_eq!(call(app, &[("x-session-id", "a")]).await, (StatusCode::OK, "false".to_owned()));
    assert!(other.contains("a"), "not that of another layer");
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
}

#[tokio::test(start_paused = true)]
async fn of_two_layers_the_inner_one_counts() {
    let (_, inner) = Recorder::sessions();
    let (_, outer) = Recorder::sessions();
    inner.note("a");
    outer.note("a");
    let app = app(end_mine).layer(inner.layer()).layer(outer.layer());
    call(app, &[("x-session-id", "a")]).await;
    assert!(!inner.contains("a") && outer.contains("a"));
}

#[tokio::test(start_paused = true)]
async fn the_handle_works_as_state_too_and_without_any_layer() {
    async fn len(State(sessions): State<ActiveSessions>) -> String {
        sessions.len().to_string()
    }
    let sessions = ActiveSessions::builder().build().unwrap();
    sessions.note("a");
    let app = Router::new().route("/", post(len)).with_state(sessions);
    assert_eq!(call(app, &[]).await, (StatusCode::OK, "1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_id_is_the_one_that_the_protocol_finds() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let layer = sessions.layer();
    let found = call(app(show_id).layer(layer), &[("x-session-id", "abc")]).await;
    assert_eq!(found, (StatusCode::OK, "abc".to_owned()), "tracked or not");
    let protocol = HeaderProtocol::new().id_header(http::HeaderName::from_static("x-conversation"));
    let renamed = app(show_id).layer(sessions.layer_with(protocol));
    let found = call(renamed, &[("x-session-id", "abc"), ("x-conversation", "def")]).await;
    assert_eq!(found, (StatusCode::OK, "def".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn g04_a_request_without_a_valid_id_is_the_clients_mistake() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let (required, optional) = (app(show_id).layer(sessions.layer()), app(show_optional).layer(sessions.layer()));
    let long = "x".repeat(1025);
    let cases: [&[(&str, &str)]; 5] = [
        &[],
        &[("x-session-id", "")],
        &[("x-session-id", "two words")],
        &[("x-session-id", &long)],
        &[("x-session-id", "a"), ("x-session-id", "b")],
    ];
    for headers in cases {
        let (status, text) = call(required.clone(), headers).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{headers:?}");
        assert!(text.contains("session id") && !text.contains("words"), "{text}");
        assert_eq!(call(optional.clone(), headers).await, (StatusCode::OK, "none".to_owned()), "{headers:?}");
    }
    assert_eq!(call(optional, &[("x-session-id", "a")]).await.1, "a");
}

#[tokio::test(start_paused = true)]
async fn without_a_layer_the_server_is_at_fault_and_says_what_to_add() {
    async fn handle(sessions: ActiveSessions) -> String {
        sessions.len().to_string()
    }
    for app in [app(handle), app(show_id), app(show_optional)] {
        let (status, text) = call(app, &[("x-session-id", "a")]).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(text.contains(".layer(sessions.layer())"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn extractors_can_be_left_out_and_all_else_works() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer().without_extractors();
    let (status, _) = call(app(show_id).layer(layer.clone()), &[("x-session-id", "a")]).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let opens = app(|| async { [("x-session-id", "a")] }).layer(layer);
    call(opens, &[]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn the_request_is_left_as_it_was_unless_it_may_move_to_another_task() {
    async fn extensions(request: axum::extract::Request) -> String {
        request.extensions().len().to_string()
    }
    let sessions = ActiveSessions::builder().build().unwrap();
    let count = async |app: Router| call(app, &[("x-session-id", "a")]).await.1.parse::<usize>().unwrap();
    let bare = count(app(extensions)).await;
    assert_eq!(count(app(extensions).layer(sessions.layer().without_extractors())).await, bare);
    assert_eq!(count(app(extensions).layer(sessions.layer())).await, bare, "they need no insertion either");
    let in_other_tasks = sessions.layer().extractors_in_other_tasks();
    assert_eq!(count(app(extensions).layer(in_other_tasks)).await, bare + 1, "one insertion");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_can_be_handled() {
    async fn handle(id: Result<SessionId, SessionIdRejection>) -> Response {
        match id {
            Ok(id) => id.to_string().into_response(),
            Err(SessionIdRejection::MissingSessionId) => "new here".into_response(),
            Err(other) => other.into_response(),
        }
    }
    let sessions = ActiveSessions::builder().build().unwrap();
    let layered = app(handle).layer(sessions.layer());
    assert_eq!(call(layered, &[]).await.1, "new here");
    assert_eq!(call(app(handle), &[]).await.0, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test(start_paused = true)]
async fn middleware_inside_of_the_layer_gets_the_extractors_too() {
    async fn forget(sessions: ActiveSessions, id: SessionId, request: axum::extract::Request, next: Next) -> Response {
        sessions.forget(&id);
        next.run(request).await
    }
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let app = app(show_id).layer(from_fn(forget)).layer(sessions.layer());
    assert_eq!(call(app, &[("x-session-id", "a")]).await.1, "a");
    assert!(recorder.ended_after_drain(&sessions).await.is_empty());
}

#[tokio::test]
async fn a_task_that_is_spawned_with_the_request_needs_a_layer_made_for_it() {
    async fn spawned(request: Request<Body>, next: Next) -> Response {
        tokio::spawn(next.run(request)).await.unwrap()
    }
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let spawned = |handler: Router| handler.layer(from_fn(spawned));
    let (status, text) = call(spawned(app(end_mine)).layer(sessions.layer()), &[("x-session-id", "a")]).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text.contains("extractors_in_other_tasks"), "{text}");
    let layer = sessions.layer().extractors_in_other_tasks();
    let unknown = call(spawned(app(show_id)).layer(layer.clone()), &[("x-session-id", "unknown")]).await;
    assert_eq!(unknown, (StatusCode::OK, "unknown".to_owned()));
    assert_eq!(call(spawned(app(show_optional)).layer(layer.clone()), &[]).await.1, "none");
    let ended = call(spawned(app(end_mine)).layer(layer), &[("x-session-id", "a")]).await;
    assert_eq!(ended, (StatusCode::OK, "true".to_owned()));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
}

#[tokio::test]
async fn a_host_may_be_called_in_another_task_and_polled_in_this_one() {
    // As tower's `Buffer` does it.
    let sessions = ActiveSessions::builder().build().unwrap();
    let app = app(show_id);
    let buffered = tower::service_fn(move |request: Request<Body>| {
        let mut app = app.clone();
        async move {
            let (called, future) = tokio::sync::oneshot::channel();
            tokio::spawn(async move { called.send(tower::Service::call(&mut app, request)) });
            future.await.unwrap().await
        }
    });
    let request = Request::post("/").header("x-session-id", "a").body(Body::empty()).unwrap();
    let response = sessions.layer().layer(buffered).oneshot(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "a");
}

#[tokio::test(start_paused = true)]
async fn the_id_is_what_the_layer_has_read_whatever_becomes_of_the_head() {
    async fn strip(mut request: Request<Body>, next: Next) -> Response {
        request.headers_mut().clear();
        next.run(request).await
    }
    let sessions = ActiveSessions::builder().build().unwrap();
    for is_tracked in [false, true] {
        let app = app(show_id).layer(from_fn(strip)).layer(sessions.layer());
        assert_eq!(call(app, &[("x-session-id", "a")]).await.1, "a", "tracked: {is_tracked}");
        sessions.note("a");
    }
}

/// Extracts again and again, and lets others run in between.
async fn show_id_after_many_polls(request: Request<Body>) -> String {
    let (mut head, _) = request.into_parts();
    let own = head.headers["x-session-id"].to_str().unwrap().to_owned();
    for _ in 0..20 {
        let id = SessionId::from_request_parts(&mut head, &()).await.map(|id| id.to_string());
        assert_eq!(id.ok().as_ref(), Some(&own));
        tokio::task::yield_now().await;
    }
    own
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_that_are_polled_in_turns_by_many_threads_get_their_own_ids() {
    let sessions = ActiveSessions::builder().build().unwrap();
    let app = app(show_id_after_many_polls).layer(sessions.layer());
    (0..100).step_by(2).for_each(|tracked| drop(sessions.note(tracked.to_string())));
    let each = |id: usize| {
        let app = app.clone();
        tokio::spawn(async move { call(app, &[("x-session-id", &id.to_string())]).await.1 })
    };
    for (id, shown) in (0..100).map(each).collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(shown.await.unwrap(), id.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_one_task_polls_in_turns_get_their_own_ids() {
    // The outer request asks three others, which have a layer of another handle.
    let (outer, inner) = (ActiveSessions::builder().build().unwrap(), ActiveSessions::builder().build().unwrap());
    let asked = app(show_id_after_many_polls).layer(inner.layer());
    let asks = async move |request: Request<Body>| {
        let (mut head, _) = request.into_parts();
        let before = SessionId::from_request_parts(&mut head, &()).await.unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|id| {
            let asked = asked.clone();
            async move { call(asked, &[("x-session-id", id)]).await.1 }
        });
        let (a, b, c) = tokio::join!(a, b, c);
        let after = SessionId::from_request_parts(&mut head, &()).await.unwrap();
        format!("{before} {a} {b} {c} {after}")
    };
    let app = app(asks).layer(outer.layer());
    assert_eq!(call(app, &[("x-session-id", "outer")]).await.1, "outer a b c outer");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_for_the_next_request_of_the_thread() {
    async fn panics(_: SessionId) {
        panic!("the handler's");
    }
    let sessions = ActiveSessions::builder().build().unwrap();
    sessions.note("a");
    let without_layer = async || call(app(show_id), &[("x-session-id", "b")]).await.0;
    call(app(show_id).layer(sessions.layer()), &[("x-session-id", "a")]).await;
    assert_eq!(without_layer().await, StatusCode::INTERNAL_SERVER_ERROR, "after a response");
    let panicking = app(panics).layer(sessions.layer());
    let ask = async || call(panicking.clone(), &[("x-session-id", "a")]).await;
    assert!(AssertUnwindSafe(ask()).catch_unwind().await.is_err());
    assert_eq!(without_layer().await, StatusCode::INTERNAL_SERVER_ERROR, "after a panic");
    let pending = app(async |_: SessionId| std::future::pending::<()>().await).layer(sessions.layer());
    let cancelled = call(pending, &[("x-session-id", "a")]);
    assert!(tokio::time::timeout(std::time::Duration::from_secs(1), cancelled).await.is_err());
    assert_eq!(without_layer().await, StatusCode::INTERNAL_SERVER_ERROR, "after a cancellation");
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_an_inner_layers_host_leaves_the_outer_one_its_own() {
    async fn panics() {
        panic!("the handler's");
    }
    let (outer, inner) = (ActiveSessions::builder().build().unwrap(), ActiveSessions::builder().build().unwrap());
    let panicking = app(panics).layer(inner.layer());
    let asks = async move |request: Request<Body>| {
        let ask = call(panicking, &[("x-session-id", "inner")]);
        assert!(AssertUnwindSafe(ask).catch_unwind().await.is_err());
        let (mut head, _) = request.into_parts();
        SessionId::from_request_parts(&mut head, &()).await.unwrap().to_string()
    };
    assert_eq!(call(app(asks).layer(outer.layer()), &[("x-session-id", "outer")]).await.1, "outer");
}
