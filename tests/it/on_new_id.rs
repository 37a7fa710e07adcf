//! `HeaderProtocol::on_new_id`: a request in one session, and a response that names another one.

use std::time::Duration;

use crate::support::{Raw, Recorder, Running, UnderWay, answer, ask, exchange, serve, within};
use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
    routing::any,
};
use futures_util::{StreamExt, stream};
use http::{StatusCode, request, response};
use tower_session_end::{
    ActiveSessions, EndReason, HeaderProtocol, OnNewId, Phase, RequestInfo, SessionId, SessionProtocol, SessionUpdate,
};

const ID: &str = "x-session-id";
const POLICIES: [OnNewId; 3] = [OnNewId::Keep, OnNewId::End(EndReason::Reset), OnNewId::Compact];

/// Answers with the id, the status and the control header of the query, such as `id=new&status=404`.
async fn host(request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let word = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let mut response = Response::new(Body::from("fine"));
    for (name, header) in [("id", ID), ("end", "x-session-end"), ("from", "x-session-compacted-from")] {
        if let Some(value) = word(name) {
            response.headers_mut().insert(header, value.parse().unwrap());
        }
    }
    if let Some(status) = word("status") {
        *response.status_mut() = status.parse().unwrap();
    }
    match word("update") {
        Some("other") => SessionUpdate::started("other").insert_into(&mut response),
        Some(_) => SessionUpdate::empty().insert_into(&mut response),
        None => {}
    }
    if word("stream").is_some() {
        let events = stream::iter([Ok::<_, std::convert::Infallible>("data: hello\n\n")]).chain(stream::pending());
        response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
        *response.body_mut() = Body::from_stream(events);
    }
    response.into_response()
}

async fn start(sessions: &ActiveSessions, protocol: impl SessionProtocol) -> Running {
    serve(sessions, Router::new().route("/", any(host)).layer(sessions.layer_with(protocol))).await
}

/// A request in session `old`. The head of its response has come, and what is returned of the body.
async fn get(server: &Running, query: &str) -> (Raw, String) {
    let mut client = Raw::connect(server.addr).await;
    client.write(format!("GET /?{query} HTTP/1.1\r\nhost: x\r\n{ID}: old\r\n\r\n")).await;
    let read = client.head().await;
    (client, read)
}

/// One exchange in session `old`, over a real server, with `old` and others active before.
/// Returns what the end hook is told until the drain is over, and what the start hook is told.
async fn ends(policy: OnNewId, active: &[&str], query: &str) -> (Vec<String>, Recorder) {
    let (recorder, sessions) = Recorder::sessions();
    let server = start(&sessions, HeaderProtocol::new().on_new_id(policy)).await;
    active.iter().for_each(|id| drop(sessions.note(*id)));
    drop(get(&server, query).await);
    assert!(server.shut_down().await.is_clean());
    recorder.assert_no_generation_ended_twice();
    (recorder.ended(), recorder)
}

#[tokio::test]
async fn a_new_id_leaves_the_old_session_active_by_default() {
    assert_eq!(OnNewId::default(), OnNewId::Keep);
    let (ended, _) = ends(OnNewId::Keep, &["old"], "id=new").await;
    assert_eq!(ended, ["new shutdown", "old shutdown"]);
    let (recorder, sessions) = Recorder::sessions();
    let server = start(&sessions, HeaderProtocol::new()).await;
    sessions.note("old");
    drop(get(&server, "id=new").await);
    assert_eq!(sessions.len(), 2);
    assert!(server.shut_down().await.is_clean());
    assert_eq!(recorder.ended().len(), 2);
}

#[tokio::test]
async fn a_new_id_ends_the_old_session_with_the_reason() {
    for status in [200, 201, 302] {
        let (ended, recorder) =
            ends(OnNewId::End(EndReason::Reset), &["old"], &format!("id=new&status={status}")).await;
        assert_eq!(ended, ["new shutdown", "old reset"], "{status}");
        let starts = recorder.starts();
        assert_eq!(starts.len(), 2);
        assert!(starts.iter().all(|start| start.resumed_from.is_none()));
        assert_eq!(recorder.ends()[0].next, None);
    }
}

#[tokio::test]
async fn g02_a_new_id_compacts_the_old_session() {
    let (ended, recorder) = ends(OnNewId::Compact, &["old"], "id=new").await;
    assert_eq!(ended, ["new shutdown", "old compaction"]);
    assert_eq!(recorder.ends()[0].next.as_ref().map(|next| next.id.as_str()), Some("new"));
    assert_eq!(recorder.starts()[1].resumed_from.as_ref().map(SessionId::as_str), Some("old"));
}

#[tokio::test]
async fn a_new_id_means_nothing_for_a_session_that_is_not_active() {
    for policy in POLICIES {
        let (ended, recorder) = ends(policy, &["bystander"], "id=new").await;
        assert_eq!(ended, ["bystander shutdown", "new shutdown"], "{policy:?}");
        assert!(recorder.starts().iter().all(|start| start.resumed_from.is_none()), "{policy:?}");
    }
}

#[tokio::test]
async fn an_id_that_is_the_same_or_active_replaces_nothing() {
    for policy in POLICIES {
        assert_eq!(ends(policy, &["old"], "id=old").await.0, ["old shutdown"], "{policy:?}");
        let (ended, recorder) = ends(policy, &["old", "new"], "id=new").await;
        assert_eq!(ended, ["new shutdown", "old shutdown"], "{policy:?}");
        assert_eq!(recorder.starts().len(), 2, "{policy:?}");
    }
}

#[tokio::test]
async fn a_response_that_starts_nothing_replaces_nothing() {
    for policy in POLICIES {
        for status in [400, 404, 409, 500, 503] {
            let (ended, _) = ends(policy, &["old"], &format!("id=new&status={status}")).await;
            assert_eq!(ended, ["old shutdown"], "{policy:?} {status}");
        }
        // An id that is not valid.
        assert_eq!(ends(policy, &["old"], "id=").await.0, ["old shutdown"], "{policy:?}");
    }
}

#[tokio::test]
async fn a_control_header_and_an_update_of_the_handler_take_precedence() {
    for policy in POLICIES {
        let ended = async |query: &str| ends(policy, &["old", "third"], query).await.0;
        assert_eq!(ended("id=new&end=daily").await, ["new shutdown", "old daily", "third shutdown"], "{policy:?}");
        let from_third = ended("id=new&from=third").await;
        assert_eq!(from_third, ["new shutdown", "old shutdown", "third compaction"], "{policy:?}");
        let updated = ended("id=new&update=other").await;
        assert_eq!(updated, ["new shutdown", "old shutdown", "other shutdown", "third shutdown"], "{policy:?}");
    }
    // An empty update says nothing.
    let (ended, _) = ends(OnNewId::Compact, &["old"], "id=new&update=empty").await;
    assert_eq!(ended, ["new shutdown", "old compaction"]);
}

#[tokio::test]
async fn g10_a_stream_that_comes_with_the_new_id_belongs_to_the_new_session() {
    for policy in [OnNewId::End(EndReason::Reset), OnNewId::Compact] {
        let (recorder, sessions) = Recorder::sessions();
        let server = start(&sessions, HeaderProtocol::new().on_new_id(policy)).await;
        sessions.note("old");
        let (mut client, mut read) = get(&server, "id=new&stream=yes").await;
        while !read.ends_with("data: hello\n\n\r\n") {
            read.extend(client.exact(1).await.into_iter().map(char::from));
        }
        within("the end of the old one", async {
            while recorder.ended().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(tokio::time::timeout(Duration::from_millis(100), client.exact(1)).await.is_err(), "{policy:?}");
        sessions.end("new", EndReason::Deleted);
        assert_eq!(client.exact(5).await, b"0\r\n\r\n", "{policy:?}");
        assert!(server.shut_down().await.is_clean());
        assert_eq!(recorder.ended()[0], "new deleted");
    }
}

#[tokio::test(start_paused = true)]
async fn g09_the_request_is_work_of_the_new_session_and_not_of_the_old_one() {
    for policy in [OnNewId::End(EndReason::Reset), OnNewId::Compact] {
        let recorder = Recorder::default();
        let second = Duration::from_secs(1);
        let sessions = recorder.builder().settle_timeout(second).idle_timeout(10 * second).build().unwrap();
        sessions.note("old");
        let body = exchange_body(&sessions, policy).await;
        assert_eq!(sessions.len(), 1);
        let drain = tokio::spawn({
            let sessions = sessions.clone();
            async move { sessions.drain(EndReason::Shutdown).await }
        });
        tokio::time::sleep(second / 2).await;
        assert!(sessions.contains("new"), "{policy:?}: its body is not over");
        drop(body);
        assert!(!sessions.contains("new"), "{policy:?}");
        assert!(drain.await.unwrap().is_clean());
    }
}

/// The response to a request in session `old` that names `new`; its body is unread.
async fn exchange_body(sessions: &ActiveSessions, policy: OnNewId) -> http::Response<impl Sized> {
    let app = Router::new().route("/", any(async || ([(ID, "new")], "not over")));
    let app = app.layer(sessions.layer_with(HeaderProtocol::new().on_new_id(policy)));
    let request = http::Request::post("/").header(ID, "old").body(Body::empty()).unwrap();
    tower::ServiceExt::oneshot(app, request).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn g08_a_new_id_in_closing_ends_with_the_shutdown_and_the_old_one_has_one_end() {
    for (policy, old) in [
        (OnNewId::Keep, "old shutdown"),
        (OnNewId::End(EndReason::Reset), "old reset"),
        (OnNewId::Compact, "old compaction"),
    ] {
        for settles in [true, false] {
            let recorder = Recorder::default();
            let second = Duration::from_secs(1);
            let sessions = recorder.builder().settle_timeout(if settles { second } else { Duration::ZERO }).build();
            let sessions = sessions.unwrap();
            sessions.note("old");
            let layer = sessions.layer_with(HeaderProtocol::new().on_new_id(policy));
            let under_way = UnderWay::begin(&layer, ask(&[(ID, "old")]));
            let drain = tokio::spawn({
                let sessions = sessions.clone();
                async move { sessions.drain(EndReason::Shutdown).await }
            });
            tokio::time::sleep(second / 4).await;
            assert_eq!(sessions.phase(), Phase::Closing);
            assert_eq!(sessions.contains("old"), settles);
            drop(under_way.answer(answer(200, &[(ID, "new")])));
            assert!(sessions.is_empty());
            let _ = drain.await.unwrap();
            let old = if settles { old } else { "old shutdown" };
            assert_eq!(recorder.ended_after_drain(&sessions).await, ["new shutdown", old], "{policy:?} {settles}");
            recorder.assert_no_generation_ended_twice();
        }
    }
}

/// A protocol that uses the header protocol inside.
struct Inside(HeaderProtocol);

impl SessionProtocol for Inside {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        self.0.request_id(request)
    }

    fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate {
        self.0.response(request, response)
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_protocol_inside_another_one_takes_every_other_id_for_new() {
    let cases: [(_, &[_]); 3] = [
        (OnNewId::Keep, &["new shutdown", "old shutdown"]),
        (OnNewId::End(EndReason::Daily), &["new shutdown", "old daily"]),
        (OnNewId::Compact, &["new shutdown", "old compaction"]),
    ];
    for (policy, expected) in cases {
        for active in [&["old"][..], &["old", "new"]] {
            let (recorder, sessions) = Recorder::sessions();
            active.iter().for_each(|id| drop(sessions.note(*id)));
            let layer = sessions.layer_with(Inside(HeaderProtocol::new().on_new_id(policy)));
            exchange(&layer, ask(&[(ID, "old")]), answer(200, &[(ID, "old")])).await;
            exchange(&layer, ask(&[(ID, "unknown")]), answer(200, &[])).await;
            exchange(&layer, ask(&[(ID, "old")]), answer(StatusCode::CONFLICT.as_u16(), &[(ID, "new")])).await;
            assert_eq!(sessions.len(), active.len());
            exchange(&layer, ask(&[(ID, "old")]), answer(200, &[(ID, "new")])).await;
            assert_eq!(recorder.ended_after_drain(&sessions).await, expected, "{policy:?} {active:?}");
        }
    }
}
