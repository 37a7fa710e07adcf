//! A session from its `initialize` to its end, for both ways of mounting.

use mcp_gateway::{Mount, call};
use reqwest::Method;
use rmcp::{
    ClientLifecycleMode,
    model::ProtocolVersion,
    transport::streamable_http_server::session::{SessionId, SessionManager},
};
use serde_json::json;
use tower_session_end::EndReason;

use crate::support::{CALL, Headers, INITIALIZE, PING, Setup, within};

#[tokio::test]
async fn an_initialize_is_noted_once() {
    for mount in Mount::ALL {
        let host = Setup::new(mount).plain().await;
        let client = host.connect().await;
        let id: Vec<SessionId> = host.manager.sessions.read().await.keys().cloned().collect();
        let noted: Vec<_> = host.sessions.snapshot().iter().map(|session| session.id.to_string()).collect();
        assert_eq!(noted, [&*id[0]], "rmcp and the layer must have the same session");
        for n in 1..=3 {
            let answer = within("a call", call(&client, "remember", json!({ "text": "milk" }))).await.unwrap();
            assert_eq!(answer, format!("{n} remembered"));
        }
        assert_eq!(host.recorder.started(), noted);
        assert!(host.recorder.ended().is_empty());
        // `cancel` sends the DELETE, and waits for the answer.
        within("the DELETE", client.cancel()).await.unwrap();
        assert!(host.sessions.is_empty() && host.manager.sessions.read().await.is_empty());
        let deleted = format!("{} deleted", id[0]);
        host.ends(1).await;
        assert!(host.recorder.ends()[0].requests >= 5, "at least initialized, three calls and a DELETE");
        assert_eq!(host.stop().await, [deleted]);
    }
}

#[tokio::test]
async fn a_standing_event_stream_ends_with_its_session() {
    for mount in Mount::ALL {
        let host = Setup::new(mount).plain().await;
        for by_host in [true, false] {
            let id = host.open().await;
            let mut stream = host.get(&id).await;
            assert_eq!(stream.status(), 200);
            assert_eq!(stream.headers()["content-type"], "text/event-stream");
            // rmcp's first event carries the retry time.
            let first = within("the first event", stream.chunk()).await.unwrap().unwrap();
            assert!(first.starts_with(b"data:"), "{first:?}");
            // The stream starts no session, and its session stays active.
            assert_eq!(host.post(&id, PING).await.status, 200);
            assert_eq!(host.sessions.len(), 1);
            if by_host {
                assert_eq!(host.delete(&id).await.status, 202);
            } else {
                // Only the layer ends the session: rmcp would keep the stream open.
                assert!(host.sessions.end(&id, EndReason::Reset));
            }
            while within("the end of the stream", stream.chunk()).await.unwrap().is_some() {}
            assert_eq!(host.manager.has_session(&id.into()).await.unwrap(), !by_host);
        }
        let ended = host.stop().await;
        let reasons: Vec<_> = ended.iter().map(|end| end.split(' ').nth(1).unwrap()).collect();
        assert_eq!(reasons.len(), 2, "{ended:?}");
        assert!(reasons.contains(&"deleted") && reasons.contains(&"reset"), "{ended:?}");
    }
}

#[tokio::test]
async fn a_delete_ends_the_session_as_deleted_once() {
    for mount in Mount::ALL {
        let host = Setup::new(mount).plain().await;
        let id = host.open().await;
        assert_eq!(host.delete(&id).await.status, 202);
        assert!(host.sessions.is_empty());
        // rmcp answers any DELETE with success, and no longer has the id.
        assert_eq!(host.delete(&id).await.status, 202);
        assert_eq!(host.post(&id, PING).await.status, 404);
        assert_eq!(host.get(&id).await.status(), 404);
        assert_eq!(host.stop().await, [format!("{id} deleted")]);
    }
}

#[tokio::test]
async fn junk_deletes_make_no_event() {
    for mount in Mount::ALL {
        let host = Setup::new(mount).telling().await;
        let bystander = host.open().await;
        let long = vec![b'x'; 64 * 1024];
        let junk: [Headers<'_>; 8] = [
            &[],
            &[("mcp-session-id", b"")],
            &[("mcp-session-id", b"unknown")],
            &[("mcp-session-id", b"two words")],
            &[("mcp-session-id", b"\xff\xfe")],
            &[("mcp-session-id", &long)],
            &[("mcp-session-id", bystander.as_bytes()), ("mcp-protocol-version", b"2026-07-28")],
            &[("mcp-session-id", bystander.as_bytes()), ("mcp-protocol-version", b"1999-12-31")],
        ];
        for headers in junk {
            let answer = host.ask(Method::DELETE, headers, "").await;
            assert!([202, 400, 405].contains(&answer.status), "{answer:?}");
        }
        assert_eq!(host.post(&bystander, PING).await.status, 200);
        assert_eq!(host.recorder.started(), [&*bystander]);
        assert_eq!(host.stop().await, [format!("{bystander} shutdown")]);
    }
}

#[tokio::test]
async fn a_client_of_2026_07_28_is_never_noted() {
    for mount in Mount::ALL {
        let host = Setup::new(mount).telling().await;
        let preferred_versions = vec![ProtocolVersion::V_2026_07_28];
        let lifecycle = ClientLifecycleMode::Discover { preferred_versions };
        let client = within("connect", mcp_gateway::connect(host.address, lifecycle)).await.unwrap();
        for _ in 0..2 {
            // Without a session, the second call does not see the first.
            let answer = within("a call", call(&client, "remember", json!({ "text": "milk" }))).await.unwrap();
            assert_eq!(answer, "1 remembered");
            assert!(host.sessions.is_empty());
        }
        within("the DELETE", client.cancel()).await.unwrap();
        assert!(host.recorder.started().is_empty());
        assert_eq!(host.stop().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_request_of_2026_07_28_with_the_id_of_a_session_does_not_end_it() {
    const UNKNOWN_METHOD: &str = r#"{"jsonrpc":"2.0","id":4,"method":"no/such","params":{"_meta":{
        "io.modelcontextprotocol/protocolVersion":"2026-07-28",
        "io.modelcontextprotocol/clientInfo":{"name":"test","version":"0"},
        "io.modelcontextprotocol/clientCapabilities":{}}}}"#;
    for mount in Mount::ALL {
        let host = Setup::new(mount).telling().await;
        let id = host.open().await;
        let headers: [(&str, &[u8]); 3] =
            [("mcp-session-id", id.as_bytes()), ("mcp-protocol-version", b"2026-07-28"), ("mcp-method", b"no/such")];
        let answer = host.ask(Method::POST, &headers, UNKNOWN_METHOD).await;
        // In that revision, 404 means an unknown method.
        assert_eq!(answer.status, 404, "{}", answer.body);
        assert!(host.sessions.contains(&id));
        assert!(host.post(&id, CALL).await.body.contains("1 remembered"));
        assert_eq!(host.stop().await, [format!("{id} shutdown")]);
    }
}

#[tokio::test]
async fn a_second_initialize_with_an_id_changes_no_session() {
    for mount in Mount::ALL {
        let host = Setup::new(mount).plain().await;
        let id = host.open().await;
        let again = host.post(&id, INITIALIZE).await;
        assert_eq!((again.status, again.id), (200, None), "{}", again.body);
        // rmcp has no session for an unknown id.
        let unknown = host.post("unknown", INITIALIZE).await;
        assert_eq!((unknown.status, unknown.id), (404, None));
        assert_eq!(host.sessions.len(), 1);
        assert!(host.post(&id, CALL).await.body.contains("1 remembered"));
        assert_eq!(host.recorder.started(), [&*id]);
        assert_eq!(host.stop().await, [format!("{id} shutdown")]);
    }
}
