//! Sessions in gRPC calls, through tonic's server and tonic's client.

mod support;

use grpc::{ChatRequest, Empty, OpenRequest, SmallAgent};
use support::{Mode, OddAgent, Recorder, call, id_of, serve};
use tokio_stream::StreamExt;
use tonic::{Code, Request};
use tower_session_end::{EndReason, Phase};

fn open(key: &str) -> OpenRequest {
    OpenRequest { key: key.into() }
}

fn chat(message: &str) -> ChatRequest {
    ChatRequest { message: message.into() }
}

#[tokio::test]
async fn a_unary_call_starts_a_session_and_its_calls_are_counted() {
    let (recorder, sessions) = Recorder::sessions();
    let server = serve(&sessions, SmallAgent::new(&sessions)).await;
    let mut client = server.client().await;

    let opened = client.open(open("telegram")).await.unwrap();
    assert_eq!(id_of(&opened), Some("telegram-1"));
    assert_eq!(
        sessions.get("telegram-1").unwrap().key.as_deref(),
        Some("telegram"),
        "the details come from the handler"
    );
    for (message, count) in [("hello", 1), ("again", 2)] {
        let reply = client.chat(call("telegram-1", chat(message))).await.unwrap().into_inner();
        assert_eq!((reply.reply, reply.message_count), (format!("you said: {message}"), count));
    }

    let report = server.shut_down().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(recorder.started(), ["telegram-1"]);
    assert_eq!(recorder.ended(), ["telegram-1 shutdown"]);
    assert_eq!(recorder.ends()[0].requests, 2);
}

#[tokio::test]
async fn metadata_end_a_session_once() {
    let (recorder, sessions) = Recorder::sessions();
    let server = serve(&sessions, SmallAgent::new(&sessions)).await;
    let mut client = server.client().await;
    client.open(open("discord")).await.unwrap();

    client.close(call("discord-1", Empty {})).await.unwrap();
    assert!(sessions.is_empty());
    let again = client.close(call("discord-1", Empty {})).await.unwrap_err();

    assert_eq!(again.code(), Code::NotFound);
    assert!(server.shut_down().await.is_clean());
    assert_eq!(recorder.ended(), ["discord-1 deleted"]);
}

#[tokio::test]
async fn g02_a_compaction_in_metadata_ends_the_old_session_and_starts_its_successor() {
    let (recorder, sessions) = Recorder::sessions();
    let server = serve(&sessions, SmallAgent::new(&sessions)).await;
    let mut client = server.client().await;
    client.open(open("slack")).await.unwrap();
    client.chat(call("slack-1", chat("hello"))).await.unwrap();

    let compacted = client.compact(call("slack-1", Empty {})).await.unwrap();
    assert_eq!(id_of(&compacted), Some("compacted-2"));
    assert!(!sessions.contains("slack-1") && sessions.contains("compacted-2"));
    let reply = client.chat(call("compacted-2", chat("again"))).await.unwrap().into_inner();
    assert_eq!(reply.message_count, 2, "the conversation continues");

    assert!(server.shut_down().await.is_clean());
    assert_eq!(recorder.ended(), ["compacted-2 shutdown", "slack-1 compaction"]);
    let (end, start) = (&recorder.ends()[0], &recorder.starts()[1]);
    assert_eq!(end.next.as_ref().unwrap().id, "compacted-2");
    assert_eq!(start.resumed_from.as_ref().unwrap(), "slack-1");
    assert_eq!(
        start.session.key.as_deref(),
        Some("slack"),
        "the successor must inherit the details of the old session"
    );
}

#[tokio::test]
async fn an_error_starts_no_session() {
    let (recorder, sessions) = Recorder::sessions();
    let server = serve(&sessions, OddAgent::new().0).await;
    let mut client = server.client().await;

    let failed = client.open(Mode::Fails.of(Request::new(open("a")))).await.unwrap_err();

    assert_eq!(
        (failed.code(), failed.metadata().get("x-session-id").unwrap().to_str().unwrap()),
        (Code::DataLoss, "never")
    );
    assert!(sessions.is_empty());
    assert!(server.shut_down().await.is_clean());
    assert!(recorder.events().is_empty());
}

#[tokio::test]
async fn an_error_ends_its_session_only_with_the_end_header() {
    let (recorder, sessions) = Recorder::sessions();
    let server = serve(&sessions, OddAgent::new().0).await;
    let mut client = server.client().await;
    client.open(open("a")).await.unwrap();

    assert_eq!(client.chat(Mode::Fails.of(call("a", chat("")))).await.unwrap_err().code(), Code::DataLoss);
    assert!(sessions.contains("a") && sessions.len() == 1);
    assert_eq!(client.chat(Mode::Ends.of(call("a", chat("")))).await.unwrap_err().code(), Code::NotFound);

    assert!(sessions.is_empty());
    assert!(server.shut_down().await.is_clean());
    assert_eq!(recorder.ended(), ["a idle"]);
}

#[tokio::test]
async fn a_stream_that_fails_after_its_head_has_started_its_session() {
    let (recorder, sessions) = Recorder::sessions();
    let server = serve(&sessions, OddAgent::new().0).await;
    let mut client = server.client().await;

    // The client chooses the id, and the host confirms it.
    let response = client.watch(Mode::Tears.of(call("a", Empty {}))).await.unwrap();
    assert_eq!(id_of(&response), Some("a"));
    assert!(sessions.contains("a"), "the session must be noted while the stream is open");
    let ticks: Vec<_> = response.into_inner().collect().await;

    let [Ok(_), Ok(_), Err(torn)] = &ticks[..] else { panic!("{ticks:?}") };
    assert_eq!(
        (torn.code(), torn.metadata().get("x-more").unwrap().to_str().unwrap()),
        (Code::Aborted, "in the trailers")
    );
    // `x-session-end` in its trailing metadata does not count.
    assert!(sessions.contains("a"));
    assert!(server.shut_down().await.is_clean());
    assert_eq!(recorder.ended(), ["a shutdown"]);
}

#[tokio::test]
async fn g08_a_call_that_is_refused_in_a_shutdown_is_unavailable() {
    let recorder = Recorder::default();
    let (end, ended) = tokio::sync::watch::channel(false);
    // The shutdown waits for this hook, so that there is time to refuse calls.
    let sessions = recorder
        .builder()
        .refuse_new_sessions(true)
        .on_session_end(move |_| {
            let mut ended = ended.clone();
            async move { drop(ended.wait_for(|over| *over).await) }
        })
        .build()
        .unwrap();
    let mut server = serve(&sessions, OddAgent::new().0).await;
    let mut client = server.client().await;
    client.open(open("a")).await.unwrap();
    client.open(open("b")).await.unwrap();
    sessions.end("a", EndReason::Idle);

    server.signal();
    sessions.closing().await;
    assert_eq!(sessions.phase(), Phase::Closing);
    let refused = client.open(open("c")).await.unwrap_err();
    end.send(true).unwrap();

    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let report = server.report().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(recorder.ended(), ["a idle", "b shutdown"]);
}
