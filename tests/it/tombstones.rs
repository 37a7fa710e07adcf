//! What is over stays over: echoes of ids, and births that are said twice.

use std::{
    convert::Infallible,
    future::{pending, ready},
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body, routing::post};
use http::{HeaderMap, Request, Response};
use tokio::sync::Notify;
use tower::{Layer, ServiceExt, service_fn};
use tower_session_end::{EndReason, SessionId, SessionUpdate};

use crate::support::{Recorder, UnderWay, answer, ask, h1_client, say, serve, within};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn g12_an_idle_ended_id_that_is_used_again_gets_an_end_at_the_stop() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(10 * SECOND).build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    sessions.note("a");
    tokio::time::sleep(15 * SECOND).await;
    assert!(sessions.is_empty());
    say(&sessions.layer(), &[("x-session-id", "a")], &[("x-session-id", "a")]).await;
    assert!(sessions.contains("a"));
    driver.abort();
    let _ = sessions.drain(EndReason::Shutdown).await;
    let reasons: Vec<_> = recorder.ends().iter().map(|end| end.reason).collect();
    assert_eq!(reasons, [EndReason::Idle, EndReason::Shutdown]);
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn g12_a_request_that_began_before_the_end_revives_nothing_and_a_later_one_does() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let layer = sessions.layer();
    let ids = ["ended", "forgotten", "compacted", "idle", "guarded"];
    // With and without the id in the request, which is not active yet, and with it while it is.
    let early: Vec<_> =
        ids.map(|id| [ask(&[("x-session-id", id)]), ask(&[])].map(|ask| UnderWay::begin(&layer, ask))).into();
    ids[..4].iter().for_each(|id| drop(sessions.note(*id)));
    let guard = sessions.guard("guarded").unwrap();
    let known = ids.map(|id| UnderWay::begin(&layer, ask(&[("x-session-id", id)])));
    sessions.end("ended", EndReason::Deleted);
    sessions.forget("forgotten");
    sessions.compact("compacted", "successor");
    sessions.end("idle", EndReason::Idle);
    drop(guard);
    // No time makes a difference.
    tokio::time::sleep(3600 * SECOND).await;
    for ((id, early), known) in ids.into_iter().zip(early).zip(known) {
        for under_way in early.into_iter().chain([known]) {
            under_way.answer(answer(200, &[("x-session-id", id)]));
            assert!(!sessions.contains(id), "{id}");
        }
    }
    assert_eq!(sessions.len(), 1);
    // The next request that is served with the id is another session, at once.
    for id in ids {
        say(&layer, &[("x-session-id", id)], &[("x-session-id", id)]).await;
        assert!(sessions.contains(id), "{id}");
    }
    let ended = recorder.ended_after_drain(&sessions).await;
    let mut expected = vec!["compacted compaction", "ended deleted", "guarded unknown", "idle idle"];
    expected.extend(ids.map(|id| match id {
        "ended" => "ended shutdown",
        "forgotten" => "forgotten shutdown",
        "compacted" => "compacted shutdown",
        "idle" => "idle shutdown",
        _ => "guarded shutdown",
    }));
    expected.push("successor shutdown");
    expected.sort_unstable();
    assert_eq!(ended, expected);
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn g12_the_hosts_own_word_overrides() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    let late = UnderWay::begin(&layer, ask(&[]));
    for id in ["noted", "declared"] {
        sessions.note(id);
        sessions.end(id, EndReason::Deleted);
    }
    sessions.note("noted");
    let mut response = answer(200, &[]);
    SessionUpdate::started("declared").insert_into(&mut response);
    late.answer(response);
    assert!(sessions.contains("noted") && sessions.contains("declared"));
    let ended = recorder.ended_after_drain(&sessions).await;
    assert_eq!(ended, ["declared deleted", "declared shutdown", "noted deleted", "noted shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g12_an_echo_during_the_drain_revives_nothing_after_100_000_ends() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    for n in 0..100_000 {
        sessions.note(format!("s{n}"));
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.ended, 100_000);
    let layer = sessions.layer();
    for n in (0..100_000).step_by(997) {
        let id = format!("s{n}");
        say(&layer, &[("x-session-id", &id)], &[("x-session-id", &id)]).await;
    }
    assert_eq!(sessions.drain(EndReason::Shutdown).await.total(), 0);
    assert_eq!(recorder.ends().len(), 100_000);
}

#[tokio::test(start_paused = true)]
async fn g08_a_late_birth_that_is_said_twice_in_one_response_is_one_session() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let _ = sessions.drain(EndReason::Shutdown).await;
    let handle = sessions.clone();
    let host = service_fn(move |request: Request<()>| {
        let mut response = Response::new(String::new());
        let id = request.uri().path()[1..].to_owned();
        match id.as_str() {
            "noted" => drop(handle.note("noted")),
            "guarded" => drop(handle.guard("guarded").unwrap()),
            "signalled" => SessionUpdate::started("signalled").insert_into(&mut response),
            _ => {
                let old = SessionId::new("old").unwrap();
                response.headers_mut().insert("x-session-compacted-from", "old".parse().unwrap());
                SessionUpdate::compacted(old, "compacted").insert_into(&mut response);
            }
        }
        response.headers_mut().insert("x-session-id", id.parse().unwrap());
        ready(Ok::<_, Infallible>(response))
    });
    let service = sessions.layer().layer(host);
    for path in ["/noted", "/guarded", "/signalled", "/compacted"] {
        service.clone().oneshot(Request::get(path).body(()).unwrap()).await.unwrap();
    }
    let _ = sessions.drain(EndReason::Shutdown).await;
    let ids: Vec<_> = recorder.reasons().into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, ["compacted", "guarded", "noted", "signalled"]);
}

#[tokio::test]
async fn g12_the_end_of_an_unknown_id_and_its_echo_in_one_response_open_nothing() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let respond = |signal: SessionUpdate| {
        let host = service_fn(move |_: Request<()>| {
            let mut response = Response::builder().header("x-session-id", "a").body(String::new()).unwrap();
            signal.clone().insert_into(&mut response);
            ready(Ok::<_, Infallible>(response))
        });
        sessions.layer().layer(host).oneshot(Request::post("/").body(()).unwrap())
    };
    let ended = || SessionUpdate::ended(SessionId::new("a").unwrap(), EndReason::Deleted);
    respond(ended()).await.unwrap();
    assert!(sessions.is_empty());
    // It ended, and another one of that name began.
    respond(ended().and(SessionUpdate::started("a"))).await.unwrap();
    assert!(sessions.contains("a"));
    assert!(recorder.ends().is_empty());
}

#[tokio::test]
async fn g12_a_session_that_is_used_again_after_its_end_has_a_second_end_and_a_slow_answer_revives_nothing() {
    let (recorder, sessions) = Recorder::sessions();
    let go_on = Arc::new(Notify::new());
    let waiting = Arc::new(Notify::new());
    let (slow, slow_waits) = (Arc::clone(&go_on), Arc::clone(&waiting));
    let echo = |headers: HeaderMap| [("x-session-id", headers["x-session-id"].to_str().unwrap().to_owned())];
    let app = Router::new()
        .route("/talk", post(move |headers: HeaderMap| async move { echo(headers) }))
        .route(
            "/slow",
            post(move |headers: HeaderMap| async move {
                slow_waits.notify_one();
                slow.notified().await;
                echo(headers)
            }),
        )
        .route("/reset", post(async || [("x-session-end", "reset")]));
    let server = serve(&sessions, app.layer(sessions.layer())).await;
    let send = |path: &str| {
        let request = Request::post(format!("http://{}{path}", server.addr)).header("x-session-id", "a");
        let response = h1_client().request(request.body(Body::empty()).unwrap());
        async move { within("a response", response).await.unwrap().status() }
    };
    assert_eq!(send("/talk").await, 200);
    let slow = tokio::spawn(send("/slow"));
    within("the slow request", waiting.notified()).await;
    assert_eq!(send("/reset").await, 200);
    assert!(sessions.is_empty());
    // It began before the end.
    go_on.notify_one();
    assert_eq!(slow.await.unwrap(), 200);
    assert!(sessions.is_empty());
    // And this one after it.
    assert_eq!(send("/talk").await, 200);
    assert!(sessions.contains("a"));
    let _ = server.shut_down().await;
    assert_eq!(recorder.ended(), ["a reset", "a shutdown"]);
    assert_eq!(recorder.started(), ["a", "a"]);
}
