//! Shutdown of a gRPC server with calls in flight, with streams that end themselves, and with endless streams.

mod support;

use std::time::Duration;

use grpc::{ChatRequest, Empty, OpenRequest, SmallAgent};
use support::{Mode, OddAgent, PATIENCE, Recorder, assert_sum, call, serve, within};
use tokio::time::{Instant, timeout};
use tonic::Code;

fn open(key: &str) -> OpenRequest {
    OpenRequest { key: key.into() }
}

#[tokio::test]
async fn a_stream_that_awaits_closing_ends_with_its_own_status() {
    let (recorder, sessions) = Recorder::sessions();
    let mut server = serve(&sessions, SmallAgent::new(&sessions)).await;
    let mut client = server.client().await;
    client.open(open("a")).await.unwrap();
    let mut ticks = client.watch(call("a-1", Empty {})).await.unwrap().into_inner();
    assert_eq!(within("a tick", ticks.message()).await.unwrap().unwrap().number, 1);

    server.signal();
    let last = loop {
        match within("the end of the stream", ticks.message()).await {
            Ok(tick) => assert!(tick.is_some(), "the stream must end with a status"),
            Err(status) => break status,
        }
    };
    let report = server.report().await;

    assert_eq!((last.code(), last.message()), (Code::Unavailable, "the agent is shutting down"));
    assert!(report.is_clean(), "{report}");
    assert_eq!(recorder.ended(), ["a-1 shutdown"]);
}

#[tokio::test]
async fn g10_an_endless_stream_is_closed_at_the_connection_deadline() {
    let budget = Duration::from_millis(500);
    let recorder = Recorder::default();
    let sessions = recorder.builder().connection_drain_timeout(budget).build().unwrap();
    let mut server = serve(&sessions, OddAgent::new().0).await;
    let mut client = server.client().await;
    client.open(open("a")).await.unwrap();
    let mut ticks = client.watch(Mode::Stays.of(call("a", Empty {}))).await.unwrap().into_inner();
    for number in 1..=3 {
        assert_eq!(within("a tick", ticks.message()).await.unwrap().unwrap().number, number);
    }

    let begun = Instant::now();
    server.signal();
    let cut = within("the end of the stream", ticks.message()).await;
    let report = server.report().await;

    assert!(begun.elapsed() < budget + PATIENCE / 2, "{report}");
    assert!(report.connections.timed_out && report.connections.open_responses == 1, "{report}");
    // The client sees an error, not the end of the stream.
    assert!(cut.is_err(), "{cut:?}");
    assert!(report.sessions.is_clean(), "{report}");
    assert_sum(&report.sessions);
    assert_eq!(recorder.ended(), ["a shutdown"]);
}

#[tokio::test]
async fn a_call_in_flight_gets_its_whole_answer_and_does_not_revive_its_session() {
    let (recorder, sessions) = Recorder::sessions();
    let (agent, mut arrivals) = OddAgent::new();
    let mut server = serve(&sessions, agent.clone()).await;
    let mut client = server.client().await;
    client.open(open("a")).await.unwrap();
    let waiting = Mode::Waits.of(call("a", ChatRequest { message: "hello".into() }));
    let answer = tokio::spawn(async move { client.chat(waiting).await });
    within("the call", arrivals.recv()).await.unwrap();

    server.signal();
    within("the drain", async {
        while recorder.ends().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    agent.release();
    let answer = within("the answer", answer).await.unwrap().unwrap();
    let report = server.report().await;

    assert_eq!(answer.into_inner().reply, "hello");
    assert!(report.is_clean(), "{report}");
    // The answer names the session.
    assert_eq!(recorder.ended(), ["a shutdown"]);
}

#[tokio::test]
async fn g09_an_open_stream_keeps_its_session_for_the_settle_timeout() {
    let recorder = Recorder::default();
    let settle = Duration::from_secs(30);
    let sessions = recorder.builder().drain_timeout(settle * 2).settle_timeout(settle).build().unwrap();
    let (agent, mut arrivals) = OddAgent::new();
    let mut server = serve(&sessions, agent.clone()).await;
    let mut client = server.client().await;
    client.open(open("a")).await.unwrap();
    client.open(open("b")).await.unwrap();
    // The stream waits for its head, which counts as work just like a message.
    let waiting = Mode::Waits.of(call("a", Empty {}));
    let answer = tokio::spawn(async move { client.watch(waiting).await });
    within("the call", arrivals.recv()).await.unwrap();

    server.signal();
    within("the idle session", async {
        while recorder.ends().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(recorder.ended(), ["b shutdown"]);
    assert!(sessions.contains("a"));
    agent.release();
    let mut ticks = within("the head", answer).await.unwrap().unwrap().into_inner();
    while within("a tick", ticks.message()).await.unwrap().is_some() {}

    let report = server.report().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(recorder.ended(), ["a shutdown", "b shutdown"]);
}

#[tokio::test]
async fn g08_a_session_that_starts_in_the_connection_drain_has_its_end() {
    let (recorder, sessions) = Recorder::sessions();
    let (agent, mut arrivals) = OddAgent::new();
    let mut server = serve(&sessions, agent.clone()).await;
    let mut client = server.client().await;
    let opening = Mode::Waits.of(tonic::Request::new(open("late")));
    let opened = tokio::spawn(async move { client.open(opening).await });
    within("the call", arrivals.recv()).await.unwrap();

    server.signal();
    within("closing", sessions.closing()).await;
    agent.release();

    within("the answer", opened).await.unwrap().unwrap();
    let report = server.report().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.sessions.late_starts, report.sessions.ended), (1, 1), "{report}");
    assert_eq!((recorder.started(), recorder.ended()), (vec!["late".to_owned()], vec!["late shutdown".to_owned()]));
}

/// The example itself checks its sessions, and exits with 1 if one check fails.
#[cfg(unix)]
#[tokio::test]
async fn the_example_drives_itself_and_exits_cleanly() {
    let mut example = tokio::process::Command::new(env!("CARGO_BIN_EXE_grpc"));
    let output =
        timeout(PATIENCE * 2, example.kill_on_drop(true).output()).await.expect("the example must exit").unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("each of them had exactly one session_end"), "{said}");
}
