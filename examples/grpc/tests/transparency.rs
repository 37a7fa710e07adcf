//! The layer is transparent for gRPC: heads, bodies and trailers are the same with and without it, on each server.

mod support;

use bytes::Bytes;
use grpc::{AgentServer, ChatRequest, Empty, OpenRequest};
use http::StatusCode;
use support::{By, Mode, OddAgent, RawClient, Recorded, Recorder, message, serve_by};
use tonic::service::Routes;
use tower_session_end::ActiveSessions;

/// The method, the metadata and the message.
type Call<'a> = (&'a str, Vec<(&'a str, &'a str)>, &'a Bytes);

/// Makes all calls, one after the other, on one connection.
async fn record(client: &mut RawClient) -> Vec<(String, Recorded)> {
    let open = message(&OpenRequest { key: "a".into() });
    let chat = message(&ChatRequest { message: "ü".repeat(20_000) });
    let [other, last] = ["b", "c"].map(|key| message(&OpenRequest { key: key.into() }));
    let junk = Bytes::from_static(b"\0\0\0\0\x02\xff\xff");
    let empty = message(&Empty {});
    let of_a = ("x-session-id", "a");
    let mode = |mode: Mode| ("x-mode", mode.name());
    let calls: [Call<'_>; 15] = [
        ("Open", vec![], &open),
        ("Chat", vec![of_a], &chat),
        ("Chat", vec![of_a, mode(Mode::Fails)], &chat),
        ("Open", vec![mode(Mode::Fails)], &open),
        ("Watch", vec![of_a], &empty),
        ("Watch", vec![of_a, mode(Mode::Tears)], &empty),
        ("Watch", vec![of_a, mode(Mode::Fails)], &empty),
        ("Compact", vec![of_a], &empty),
        ("Chat", vec![("x-session-id", "a-next"), mode(Mode::Ends)], &chat),
        ("Open", vec![("grpc-encoding", "gzip")], &open),
        ("Open", vec![("grpc-timeout", "20S"), ("grpc-accept-encoding", "identity")], &other),
        ("Close", vec![("x-session-id", "b")], &empty),
        ("NoSuchMethod", vec![of_a], &empty),
        ("Chat", vec![of_a], &junk),
        ("Open", vec![], &last),
    ];
    let mut recorded = Vec::new();
    for (method, metadata, body) in calls {
        let answer = client.call(method, &metadata, body.clone()).await;
        recorded.push((format!("{method} {metadata:?}"), answer));
    }
    // A request that is not gRPC.
    let request = http::Request::get("http://agent/").body(http_body_util::Full::default()).unwrap();
    recorded.push(("GET /".into(), client.send(request).await));
    recorded
}

async fn recordings(by: By) -> [Vec<(String, Recorded)>; 2] {
    let (recorder, with) = Recorder::sessions();
    let without = ActiveSessions::builder().build().unwrap();
    let mut recordings = Vec::new();
    for (sessions, layer) in [(&without, None), (&with, Some(with.layer()))] {
        let server = serve_by(by, sessions, layer, Routes::new(AgentServer::new(OddAgent::new().0))).await;
        let mut client = RawClient::connect(server.addr).await;
        recordings.push(record(&mut client).await);
        let report = server.shut_down().await;
        assert!(report.is_clean(), "{by:?}: {report}");
    }
    // The layer was active.
    assert_eq!(recorder.ended(), ["a compaction", "a-next idle", "b deleted", "c shutdown"], "{by:?}");
    recordings.try_into().unwrap()
}

#[tokio::test]
async fn g18_recorded_grpc_exchanges_are_the_same_with_and_without_the_layer() {
    for by in By::ALL {
        let [without, with] = recordings(by).await;
        for (without, with) in without.iter().zip(&with) {
            assert_eq!(with, without, "{by:?}");
        }
        assert_eq!(without.len(), with.len());
    }
}

#[tokio::test]
async fn g18_trailers_follow_the_body_and_errors_are_in_the_head() {
    for by in By::ALL {
        let [_, with] = recordings(by).await;
        let answers: Vec<_> = with.iter().map(|(_, answer)| answer).collect();
        let [opened, chatted, failed, .., not_grpc] = answers[..] else { panic!("{by:?}") };
        assert!(answers.iter().all(|answer| answer.status == StatusCode::OK), "{by:?}: {answers:?}");

        assert_eq!(opened.header("x-session-id"), Some(&b"a"[..]));
        assert_eq!((opened.header("grpc-status"), opened.trailer("grpc-status")), (None, Some(&b"0"[..])));
        assert_eq!(chatted.body, message(&grpc::ChatReply { reply: "ü".repeat(20_000), message_count: 1 }));

        // An error without messages is a head without a body.
        assert_eq!((failed.header("grpc-status"), failed.trailers.as_ref()), (Some(&b"15"[..]), None));
        assert_eq!(failed.header("grpc-message"), Some(&b"an%20error:%20%C3%BC%25"[..]));
        assert_eq!(failed.header("grpc-status-details-bin"), Some(&b"AAE"[..]));

        let torn = answers[5];
        assert_eq!(
            (torn.trailer("grpc-status"), torn.trailer("x-more")),
            (Some(&b"10"[..]), Some(&b"in the trailers"[..]))
        );
        assert_eq!(not_grpc.header("grpc-status"), Some(&b"12"[..]));
    }
}
