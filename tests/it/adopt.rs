//! Ids that come with the request: a host that goes on with sessions made elsewhere, and does not repeat their ids.

use std::{collections::HashSet, future::pending, time::Duration};

use crate::support::{Recorder, UnderWay, answer, ask, exchange, h1_client, say, serve, stop, within};
use axum::{
    Router,
    http::{HeaderMap, Request, StatusCode},
    routing::{delete, post},
};
use http::{Method, Response};
use tower_session_end::{ActiveSessions, EndReason, HeaderProtocol, SessionLayer, SessionUpdate};

const ID: &str = "x-session-id";
const END: &str = "x-session-end";
const FROM: &str = "x-session-compacted-from";

fn adopting() -> (Recorder, ActiveSessions, SessionLayer) {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer_with(HeaderProtocol::new().adopt(true));
    (recorder, sessions, layer)
}

fn with_method(method: Method) -> Request<()> {
    let mut request = ask(&[(ID, "a")]);
    *request.method_mut() = method;
    request
}

#[tokio::test(start_paused = true)]
async fn nothing_is_adopted_by_default() {
    for protocol in [HeaderProtocol::new(), HeaderProtocol::new().adopt(true).adopt(false)] {
        let (recorder, sessions) = Recorder::sessions();
        say(&sessions.layer_with(protocol), &[(ID, "a")], &[]).await;
        assert!(recorder.ended_after_drain(&sessions).await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_success_without_an_id_notes_the_one_that_the_request_carried() {
    for status in [100, 101, 102, 200, 204, 299, 302, 304, 307, 400, 401, 404, 410, 429, 500, 503] {
        let (recorder, sessions, layer) = adopting();
        exchange(&layer, ask(&[(ID, "a")]), answer(status, &[])).await;
        let adopts = status == 101 || (200..400).contains(&status);
        assert_eq!(sessions.contains("a"), adopts, "{status}");
        assert_eq!(recorder.ended_after_drain(&sessions).await.len(), usize::from(adopts), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_is_adopted_once_and_is_like_any_other() {
    let (recorder, sessions, layer) = adopting();
    for _ in 0..3 {
        say(&layer, &[(ID, "a")], &[]).await;
    }
    // Nothing else changes: an echo, a birth, an end, a compaction.
    say(&layer, &[(ID, "a")], &[(ID, "a")]).await;
    say(&layer, &[], &[(ID, "b")]).await;
    say(&layer, &[(ID, "b")], &[(END, "reset")]).await;
    say(&layer, &[(ID, "a")], &[(ID, "c"), (FROM, "a")]).await;
    say(&layer, &[], &[]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a compaction", "b reset", "c shutdown"]);
    assert_eq!(recorder.started(), ["a", "b", "c"]);
    assert_eq!(recorder.ends().iter().find(|end| end.session.id == "a").unwrap().requests, 4);
}

#[tokio::test(start_paused = true)]
async fn a_response_with_an_id_of_its_own_adopts_nothing() {
    for headers in [&[(ID, "new")][..], &[(ID, "two words")], &[(ID, "x"), (ID, "y")], &[(FROM, "old")]] {
        let (_, sessions, layer) = adopting();
        say(&layer, &[(ID, "a")], headers).await;
        assert!(!sessions.contains("a"), "{headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_in_the_same_response_wins() {
    let (recorder, sessions, layer) = adopting();
    for end in ["deleted", "reset", "nonsense", ""] {
        say(&layer, &[(ID, "a")], &[(END, end)]).await;
    }
    say(&layer, &[(ID, "a")], &[(END, "idle"), (END, "deleted")]).await;
    // So does the handler's own word.
    let a = || "a";
    for signal in [SessionUpdate::ended(a(), EndReason::Deleted), SessionUpdate::compacted(a(), "b")] {
        let mut response = answer(200, &[]);
        signal.insert_into(&mut response);
        exchange(&layer, ask(&[(ID, "a")]), response).await;
    }
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["b shutdown"]);
    assert_eq!(recorder.started(), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_delete_adopts_nothing_and_every_other_method_does() {
    let methods =
        [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::OPTIONS, Method::DELETE];
    for method in methods {
        for status in [200, 202, 204] {
            let (_, sessions, layer) = adopting();
            exchange(&layer, with_method(method.clone()), answer(status, &[])).await;
            assert_eq!(sessions.contains("a"), method != Method::DELETE, "{method} {status}");
        }
    }
    // One that is known ends as ever.
    let (recorder, sessions, layer) = adopting();
    say(&layer, &[(ID, "a")], &[]).await;
    exchange(&layer, with_method(Method::DELETE), answer(200, &[(END, "deleted")])).await;
    exchange(&layer, with_method(Method::DELETE), answer(200, &[])).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
}

#[tokio::test(start_paused = true)]
async fn g04_a_request_without_one_valid_id_adopts_nothing() {
    let long = "l".repeat(1025);
    for headers in [&[][..], &[(ID, "")], &[(ID, "two words")], &[(ID, "a"), (ID, "b")], &[(ID, &long)]] {
        let (recorder, sessions, layer) = adopting();
        say(&layer, headers, &[]).await;
        assert!(recorder.ended_after_drain(&sessions).await.is_empty(), "{headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn g12_a_late_response_does_not_adopt_what_has_ended() {
    let (recorder, sessions, layer) = adopting();
    // One request came while the session was known, one before it was.
    let early = UnderWay::begin(&layer, ask(&[(ID, "a")]));
    say(&layer, &[(ID, "a")], &[]).await;
    let late = UnderWay::begin(&layer, ask(&[(ID, "a")]));
    say(&layer, &[(ID, "a")], &[(END, "deleted")]).await;
    late.answer(answer(200, &[]));
    early.answer(answer(200, &[]));
    assert!(sessions.is_empty());
    // A request that begins after the end, and that the host serves, is another session of that id.
    say(&layer, &[(ID, "a")], &[]).await;
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted", "a shutdown"]);
    assert_eq!(recorder.started(), ["a", "a"]);
}

#[tokio::test(start_paused = true)]
async fn g12_an_idle_ended_session_is_adopted_again() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(Duration::from_secs(10)).build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    let layer = sessions.layer_with(HeaderProtocol::new().adopt(true));
    say(&layer, &[(ID, "a")], &[]).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert!(sessions.is_empty());
    say(&layer, &[(ID, "a")], &[]).await;
    assert!(sessions.contains("a"));
    driver.abort();
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a idle", "a shutdown"]);
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn g08_nothing_is_adopted_from_the_drain_on() {
    let (recorder, sessions, layer) = adopting();
    let cut = UnderWay::begin(&layer, ask(&[(ID, "cut")]));
    let under_way = UnderWay::begin(&layer, ask(&[(ID, "a")]));
    let _ = sessions.drain(EndReason::Shutdown).await;
    under_way.answer(answer(200, &[]));
    say(&layer, &[(ID, "b")], &[]).await;
    stop(&sessions).await;
    let response: Response<_> = cut.give_up();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(recorder.events().is_empty());
}

/// A host whose sessions outlive it. Only what opens one says its id.
fn host(known: HashSet<&'static str>) -> Router {
    let chat = async move |headers: HeaderMap| match headers.get(ID).and_then(|id| id.to_str().ok()) {
        Some(id) if known.contains(id) => StatusCode::OK,
        _ => StatusCode::NOT_FOUND,
    };
    Router::new()
        .route("/open/{id}", post(async |axum::extract::Path(id): axum::extract::Path<String>| [(ID, id)]))
        .route("/chat", post(chat))
        .route("/session", delete(async || [(END, "deleted")]))
}

#[tokio::test]
async fn a_host_that_goes_on_after_a_restart_has_its_sessions_noted_again_and_ended_again() {
    let mut events = Vec::new();
    for (life, known) in [HashSet::new(), HashSet::from(["a", "b"])].into_iter().enumerate() {
        let (recorder, sessions, layer) = adopting();
        let server = serve(&sessions, host(known).layer(layer)).await;
        let client = h1_client();
        let send = async |method: &str, path: &str, id: &str| {
            let uri = format!("http://{}{path}", server.addr);
            let request = Request::builder().method(method).uri(uri).header(ID, id).body(axum::body::Body::empty());
            within(path, client.request(request.unwrap())).await.unwrap().status()
        };
        if life == 0 {
            send("POST", "/open/a", "").await;
            send("POST", "/open/b", "").await;
        } else {
            for _ in 0..2 {
                assert_eq!(send("POST", "/chat", "a").await, StatusCode::OK);
                assert_eq!(send("POST", "/chat", "b").await, StatusCode::OK);
                assert_eq!(send("POST", "/chat", "invented").await, StatusCode::NOT_FOUND);
            }
            send("DELETE", "/session", "b").await;
        }
        assert!(server.shut_down().await.is_clean());
        assert_eq!(recorder.started(), ["a", "b"]);
        let second = if life == 0 { "b shutdown" } else { "b deleted" };
        assert_eq!(recorder.ended(), ["a shutdown", second]);
        events.extend(recorder.ends().into_iter().map(|end| end.generation));
    }
    let ids: HashSet<_> = events.iter().collect();
    assert_eq!((events.len(), ids.len()), (4, 4), "each end has an event of its own");
}

#[cfg(feature = "cookie")]
mod cookie {
    use super::*;
    use tower_session_end::CookieProtocol;

    const COOKIE: &str = "cookie";
    const SET: &str = "set-cookie";

    fn adopting() -> (Recorder, ActiveSessions, SessionLayer) {
        let (recorder, sessions) = Recorder::sessions();
        let layer = sessions.layer_with(CookieProtocol::new("sid").adopt(true));
        (recorder, sessions, layer)
    }

    #[tokio::test(start_paused = true)]
    async fn a_cookie_is_adopted_by_a_success_only() {
        for status in [100, 101, 200, 204, 299, 301, 302, 303, 304, 307, 400, 401, 403, 404, 500, 503] {
            let (_, sessions, layer) = adopting();
            exchange(&layer, ask(&[(COOKIE, "sid=a")]), answer(status, &[])).await;
            assert_eq!(sessions.contains("a"), status == 101 || (200..300).contains(&status), "{status}");
        }
        let (recorder, sessions) = Recorder::sessions();
        say(&sessions.layer_with(CookieProtocol::new("sid")), &[(COOKIE, "sid=a")], &[]).await;
        assert!(recorder.ended_after_drain(&sessions).await.is_empty(), "off by default");
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_response_says_of_the_cookie_wins() {
        let (recorder, sessions, layer) = adopting();
        say(&layer, &[(COOKIE, "sid=unknown")], &[(SET, "sid=; Max-Age=0")]).await;
        say(&layer, &[(COOKIE, "sid=unknown")], &[(SET, "sid=two words")]).await;
        let mut response = answer(200, &[]);
        SessionUpdate::ended("unknown", EndReason::Deleted).insert_into(&mut response);
        exchange(&layer, ask(&[(COOKIE, "sid=unknown")]), response).await;
        let mut delete = ask(&[(COOKIE, "sid=unknown")]);
        *delete.method_mut() = Method::DELETE;
        exchange(&layer, delete, answer(204, &[])).await;
        say(&layer, &[(COOKIE, "sid=unknown")], &[(SET, "sid=new")]).await;
        // Other cookies say nothing.
        say(&layer, &[(COOKIE, "sid=a")], &[(SET, "theme=; Max-Age=0")]).await;
        say(&layer, &[(COOKIE, "sid=a")], &[]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown", "new shutdown"]);
        assert_eq!(recorder.started(), ["a", "new"]);
    }

    #[tokio::test(start_paused = true)]
    async fn g12_a_late_response_does_not_adopt_what_was_removed() {
        let (recorder, sessions, layer) = adopting();
        let early = UnderWay::begin(&layer, ask(&[(COOKIE, "sid=a")]));
        say(&layer, &[(COOKIE, "sid=a")], &[]).await;
        say(&layer, &[(COOKIE, "sid=a")], &[(SET, "sid=; Max-Age=0")]).await;
        early.answer(answer(200, &[]));
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_knows_a_seal_adopts_nothing_that_is_made_up() {
        let (recorder, sessions) = Recorder::sessions();
        let read = |value: &str| value.strip_prefix("seal.").map(str::to_owned);
        let layer = sessions.layer_with(CookieProtocol::new("sid").adopt(true).id_from_value(read));
        say(&layer, &[(COOKIE, "sid=seal.a")], &[]).await;
        say(&layer, &[(COOKIE, "sid=made-up")], &[]).await;
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
    }
}
