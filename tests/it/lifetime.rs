//! G13: the longest life of a session, and listening streams that are no sign of life.

use std::{future::pending, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, header::CONTENT_TYPE},
    routing::get,
};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use tower_session_end::{ActiveSessions, EndReason};

use crate::support::{Recorder, UnderWay, answer, ask, h1_client, serve, within};

const SECOND: Duration = Duration::from_secs(1);
const ID: &str = "x-session-id";

fn drive(sessions: &ActiveSessions) -> tokio::task::JoinHandle<()> {
    tokio::spawn(sessions.shutdown_on(pending::<()>()))
}

/// An event stream that says hello and then nothing.
async fn events() -> ([(axum::http::HeaderName, &'static str); 1], Body) {
    let hello = futures_util::stream::iter([Ok::<_, std::convert::Infallible>("data: hello\n\n")]);
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(hello.chain(futures_util::stream::pending())))
}

struct Stream(hyper::body::Incoming);

impl Stream {
    async fn listen(server: &crate::support::Running, id: &str) -> Self {
        let request =
            Request::get(format!("http://{}/events", server.addr)).header(ID, id).body(Body::empty()).unwrap();
        let mut stream = Self(within("the head", h1_client().request(request)).await.unwrap().into_body());
        within("hello", stream.0.frame()).await.unwrap().unwrap();
        stream
    }

    async fn ends_cleanly(mut self) -> bool {
        within("the end of the stream", self.0.frame()).await.is_none()
    }
}

#[tokio::test]
async fn g13_a_silent_stream_is_no_sign_of_life_if_streams_are_no_activity() {
    let recorder = Recorder::default();
    let builder = recorder.builder().idle_timeout(SECOND).streams_are_activity(false);
    let sessions = builder.build().unwrap();
    let server = serve(&sessions, Router::new().route("/events", get(events)).layer(sessions.layer())).await;
    for id in ["ghost", "guarded"] {
        sessions.note(id);
    }
    let guard = sessions.guard("guarded").unwrap();
    let ghost = Stream::listen(&server, "ghost").await;
    let _guarded = Stream::listen(&server, "guarded").await;
    assert!(ghost.ends_cleanly().await);
    assert_eq!(recorder.ended(), ["ghost idle"]);
    assert!(sessions.contains("guarded"));
    drop(guard);
    let _ = server.shut_down().await;
}

#[tokio::test]
async fn g13_ten_silent_streams_do_not_outgrow_three_sessions_if_streams_are_no_activity() {
    for streams_are_activity in [false, true] {
        let recorder = Recorder::default();
        let builder = recorder.builder().max_sessions(3).streams_are_activity(streams_are_activity);
        let sessions = builder.build().unwrap();
        let server = serve(&sessions, Router::new().route("/events", get(events)).layer(sessions.layer())).await;
        let mut streams = Vec::new();
        for n in 0..10 {
            sessions.note(format!("s{n}"));
            streams.push(Stream::listen(&server, &format!("s{n}")).await);
        }
        assert_eq!(sessions.len(), if streams_are_activity { 10 } else { 3 });
        assert!(sessions.contains("s9"), "the new session is not evicted");
        for (n, stream) in streams.into_iter().enumerate() {
            if !sessions.contains(format!("s{n}")) {
                assert!(stream.ends_cleanly().await);
            }
        }
        let _ = server.shut_down().await;
    }
}

#[tokio::test]
async fn g13_a_session_older_than_its_lifetime_ends_with_its_stream_however_busy() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().max_lifetime(SECOND).build().unwrap();
    let server = serve(&sessions, Router::new().route("/events", get(events)).layer(sessions.layer())).await;
    sessions.note("a");
    let stream = Stream::listen(&server, "a").await;
    assert!(stream.ends_cleanly().await);
    assert_eq!(recorder.ended(), ["a expired"]);
    let _ = server.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn g13_a_lifetime_ends_at_a_quiet_moment_what_has_work() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().max_lifetime(100 * SECOND).build().unwrap();
    let layer = sessions.layer();
    let driver = drive(&sessions);
    for id in ["quiet", "active", "request", "work", "overlapping", "guarded"] {
        sessions.note(id);
    }
    let guard = sessions.guard("guarded").unwrap();
    let request = UnderWay::begin(&layer, ask(&[(ID, "request")]));
    let work = sessions.work("work").unwrap();
    let first = UnderWay::begin(&layer, ask(&[(ID, "overlapping")]));
    for _ in 0..9 {
        tokio::time::sleep(10 * SECOND).await;
        drop(UnderWay::begin(&layer, ask(&[(ID, "active")])).answer(answer(200, &[])));
    }
    assert_eq!(sessions.len(), 6);
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!(recorder.ended(), ["active expired", "guarded expired", "quiet expired"]);
    let second = UnderWay::begin(&layer, ask(&[(ID, "overlapping")]));
    drop(first.answer(answer(200, &[])));
    assert!(sessions.contains("overlapping"), "it is not quiet yet");
    drop(second.answer(answer(200, &[])));
    drop(request.answer(answer(200, &[])));
    drop(work);
    assert!(sessions.is_empty(), "the ends came with the last work");
    drop(guard);
    driver.abort();
    let ended = recorder.ended_after_drain(&sessions).await;
    assert_eq!(ended.len(), 6);
    assert!(ended.iter().all(|end| end.ends_with(" expired")), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn g13_a_compaction_begins_a_new_life_and_a_shutdown_is_no_expiry() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().max_lifetime(100 * SECOND).build().unwrap();
    let driver = drive(&sessions);
    sessions.note("one");
    tokio::time::sleep(90 * SECOND).await;
    sessions.compact("one", "two");
    tokio::time::sleep(90 * SECOND).await;
    assert!(sessions.contains("two"));
    tokio::time::sleep(20 * SECOND).await;
    assert!(!sessions.contains("two"));
    sessions.note("three");
    let work = sessions.work("three").unwrap();
    tokio::time::sleep(200 * SECOND).await;
    driver.abort();
    let report = sessions.drain(EndReason::Restart).await;
    assert_eq!(report.at_work, 1);
    drop(work);
    assert_eq!(recorder.ended(), ["one compaction", "three restart", "two expired"]);
}

#[tokio::test(start_paused = true)]
async fn g13_a_lifetime_without_a_driver_runs_when_sessions_start_and_any_length_is_right() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().max_lifetime(1000 * 86_400 * SECOND).build().unwrap();
    sessions.note("a");
    tokio::time::sleep(999 * 86_400 * SECOND).await;
    for n in 0..2048 {
        sessions.note(format!("before-{n}"));
    }
    assert!(sessions.contains("a"));
    // A sixteenth of the lifetime late at most; without a driver, by and by.
    tokio::time::sleep(100 * 86_400 * SECOND).await;
    for n in 0..2048 {
        sessions.note(format!("after-{n}"));
    }
    assert!(!sessions.contains("a"));
    assert!(recorder.ended_after_drain(&sessions).await.contains(&"a expired".to_owned()));
    assert!(ActiveSessions::builder().max_lifetime(Duration::ZERO).build().is_err());
    assert!(ActiveSessions::builder().max_lifetime(Duration::MAX).build().is_ok());
}

#[tokio::test]
async fn g13_an_open_stream_keeps_the_successor_of_a_compaction_from_idleness() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(SECOND).build().unwrap();
    let server = serve(&sessions, Router::new().route("/events", get(events)).layer(sessions.layer())).await;
    sessions.note("one");
    let stream = Stream::listen(&server, "one").await;
    sessions.compact("one", "two");
    sessions.note("idle");
    sessions.compact("two", "three");
    within("the idle session", async {
        while sessions.contains("idle") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    tokio::time::sleep(SECOND / 2).await;
    assert!(sessions.contains("three"), "its client listens");
    drop(stream);
    within("the successor", async {
        while sessions.contains("three") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let _ = server.shut_down().await;
    assert_eq!(recorder.ended(), ["idle idle", "one compaction", "three idle", "two compaction"]);
}
