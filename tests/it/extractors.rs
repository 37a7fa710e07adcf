//! axum's extractors: the handle, and the id that a request carries.

use crate::support::Recorder;
use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
    routing::post,
};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;
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
async fn leaving_the_extractors_out_leaves_the_request_as_it_was() {
    async fn extensions(request: axum::extract::Request) -> String {
        request.extensions().len().to_string()
    }
    let sessions = ActiveSessions::builder().build().unwrap();
    let count = async |app: Router| call(app, &[("x-session-id", "a")]).await.1.parse::<usize>().unwrap();
    let bare = count(app(extensions)).await;
    assert_eq!(count(app(extensions).layer(sessions.layer().without_extractors())).await, bare);
    assert_eq!(count(app(extensions).layer(sessions.layer())).await, bare + 1, "one insertion");
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
    use axum::middleware::{Next, from_fn};
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
