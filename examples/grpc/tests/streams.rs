//! Streams that the layer has to end, seen by tonic's client: every message of before, then a status.

mod support;

use std::time::Duration;

use grpc::{AgentServer, Empty, OpenRequest, Tick};
use support::{By, Mode, OddAgent, Recorder, Running, call, serve_by, within};
use tonic::{Code, Status, Streaming, service::Routes};
use tower_session_end::{ActiveSessions, EndReason};

/// A server with an open session, `a`.
async fn start(by: By, sessions: &ActiveSessions) -> Running {
    let routes = Routes::new(AgentServer::new(OddAgent::new().0));
    let server = serve_by(by, sessions, Some(sessions.layer()), routes).await;
    server.client().await.open(OpenRequest { key: "a".into() }).await.unwrap();
    server
}

async fn watch(server: &Running, mode: Mode) -> Streaming<Tick> {
    server.client().await.watch(mode.of(call("a", Empty {}))).await.unwrap().into_inner()
}

/// The numbers of all messages up to the end, and its status.
async fn read(mut ticks: Streaming<Tick>) -> (Vec<u64>, Option<Status>) {
    let mut numbers = Vec::new();
    within("the end of the stream", async {
        loop {
            match ticks.message().await {
                Ok(Some(tick)) => numbers.push(tick.number),
                Ok(None) => break (numbers, None),
                Err(status) => break (numbers, Some(status)),
            }
        }
    })
    .await
}

fn assert_unavailable((numbers, status): (Vec<u64>, Option<Status>)) {
    assert_eq!(numbers, [1, 2, 3]);
    let status = status.expect("a status");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(!status.message().is_empty(), "{status:?}");
    // It came in trailers: tonic makes a status of its own from a reset, with the error as its source.
    assert!(std::error::Error::source(&status).is_none(), "{status:?}");
}

#[tokio::test]
async fn g10_a_stream_that_is_cut_at_the_deadline_ends_with_unavailable() {
    for by in By::ALL {
        let recorder = Recorder::default();
        let sessions = recorder.builder().connection_drain_timeout(Duration::from_millis(400)).build().unwrap();
        let server = start(by, &sessions).await;
        let ticks = tokio::spawn(read(watch(&server, Mode::Stays).await));
        let report = server.shut_down().await;
        assert!(report.connections.timed_out && report.sessions.is_clean(), "{by:?}: {report}");
        assert_unavailable(ticks.await.unwrap());
        assert_eq!(recorder.ended(), ["a shutdown"], "{by:?}");
    }
}

#[tokio::test]
async fn g10_a_listening_stream_ends_with_unavailable_once_its_session_has_ended() {
    for by in By::ALL {
        let (recorder, sessions) = Recorder::sessions();
        let server = start(by, &sessions).await;
        let ticks = watch(&server, Mode::Listens).await;
        server.client().await.close(call("a", Empty {})).await.unwrap();
        assert_unavailable(read(ticks).await);
        assert!(server.shut_down().await.is_clean(), "{by:?}");
        assert_eq!(recorder.ended(), ["a deleted"], "{by:?}");
    }
}

#[tokio::test]
async fn g10_a_listening_stream_does_not_hold_up_a_shutdown() {
    for by in By::ALL {
        let recorder = Recorder::default();
        let builder = recorder.builder().drain_timeout(Duration::MAX).settle_timeout(Duration::MAX);
        let sessions = builder.connection_drain_timeout(Duration::MAX).build().unwrap();
        let server = start(by, &sessions).await;
        let ticks = tokio::spawn(read(watch(&server, Mode::Listens).await));
        let report = server.shut_down().await;
        assert!(report.is_clean() && report.connections.open_responses == 0, "{by:?}: {report}");
        assert_unavailable(ticks.await.unwrap());
        assert_eq!(recorder.reasons(), [("a".to_owned(), EndReason::Shutdown)], "{by:?}");
    }
}
