//! What is over stays over: echoes of ids, and births that are said twice.

use std::{
    convert::Infallible,
    future::{pending, ready},
    time::Duration,
};

use crate::support::{Recorder, say};
use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_session_end::{EndReason, SessionId, SessionUpdate};

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
async fn g12_an_echo_after_a_declared_end_revives_nothing_for_30_s() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let layer = sessions.layer();
    sessions.note("ended");
    sessions.note("forgotten");
    sessions.note("compacted");
    sessions.end("ended", EndReason::Deleted);
    sessions.forget("forgotten");
    sessions.compact("compacted", "successor");
    for id in ["ended", "forgotten", "compacted"] {
        // With and without the id in the request.
        say(&layer, &[("x-session-id", id)], &[("x-session-id", id)]).await;
        say(&layer, &[], &[("x-session-id", id)]).await;
        assert!(!sessions.contains(id), "{id}");
    }
    // The host's own word overrides.
    sessions.note("ended");
    assert!(sessions.contains("ended"));
    let host = service_fn(|_: Request<()>| {
        let mut response = Response::new(String::new());
        SessionUpdate::started("forgotten").insert_into(&mut response);
        ready(Ok::<_, Infallible>(response))
    });
    layer.layer(host).oneshot(Request::new(())).await.unwrap();
    assert!(sessions.contains("forgotten"));
    // And so does time.
    tokio::time::sleep(31 * SECOND).await;
    sessions.note("somebody"); // moves nothing but the clock
    say(&layer, &[("x-session-id", "compacted")], &[("x-session-id", "compacted")]).await;
    assert!(sessions.contains("compacted"));
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
    let answer = |signal: SessionUpdate| {
        let host = service_fn(move |_: Request<()>| {
            let mut response = Response::builder().header("x-session-id", "a").body(String::new()).unwrap();
            signal.clone().insert_into(&mut response);
            ready(Ok::<_, Infallible>(response))
        });
        sessions.layer().layer(host).oneshot(Request::post("/").body(()).unwrap())
    };
    let ended = || SessionUpdate::ended(SessionId::new("a").unwrap(), EndReason::Deleted);
    answer(ended()).await.unwrap();
    assert!(sessions.is_empty());
    // It ended, and another one of that name began.
    answer(ended().and(SessionUpdate::started("a"))).await.unwrap();
    assert!(sessions.contains("a"));
    assert!(recorder.ends().is_empty());
}
