//! An `initialize` that fails, is refused, is cancelled by its client, or claims a revision without sessions.

use std::{io, sync::Arc};

use mcp_gateway::{Mount, NotifyingManager, Tools};
use reqwest::Method;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{InitializeRequestParams, InitializeResult},
    service::RequestContext,
    transport::streamable_http_server::session::SessionManager,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
};

use crate::support::{Headers, Host, INITIALIZE, PING, Setup, until, within};

#[tokio::test]
async fn an_initialize_that_fails_makes_no_event() {
    const NO_JSON: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"#;
    let json: (&str, &[u8]) = ("content-type", b"application/json");
    for mount in Mount::ALL {
        let broken = |_| Err::<Tools, _>(io::Error::other("no tools today"));
        let host = Setup::new(mount).start(NotifyingManager::new, broken).await;
        let rows: [(u16, Headers<'_>, &str); 6] = [
            (500, &[], INITIALIZE),
            (400, &[("mcp-protocol-version", b"2025-03-26")], INITIALIZE),
            (400, &[("mcp-session-id", b"unknown"), ("mcp-protocol-version", b"1999-12-31")], INITIALIZE),
            (404, &[("mcp-session-id", b"unknown")], INITIALIZE),
            (415, &[], NO_JSON),
            (403, &[json, ("host", b"example.com")], INITIALIZE),
        ];
        for (status, headers, body) in rows {
            let answer = host.ask(Method::POST, headers, body).await;
            assert_eq!((answer.status, &answer.id), (status, &None), "{}", answer.body);
        }
        assert!(host.sessions.is_empty() && host.recorder.started().is_empty());
        assert_eq!(host.stop().await, Vec::<String>::new());
    }
}

/// Refuses every client in the body of a 200, while rmcp still sends an id.
struct Refusing;

impl ServerHandler for Refusing {
    async fn initialize(
        &self,
        _: InitializeRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        Err(ErrorData::internal_error("not you", None))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_initialize_that_is_refused_in_the_body_of_a_200_has_one_start_and_one_end() {
    for mount in Mount::ALL {
        // With the layer alone, the id was sent, and its first use gets a 404.
        let host = Setup::doubting(mount).start(|local, _| local, |_| Ok(Refusing)).await;
        let id = refused(&host).await;
        assert!(host.sessions.contains(&id));
        host.lost(&id).await;
        assert_eq!(host.post(&id, PING).await.status, 404);
        host.ends(1).await;
        assert_eq!(host.stop().await, [format!("{id} unknown")]);

        // With the notifying manager, the session ends before the client has read its id.
        let host = Setup::new(mount).start(NotifyingManager::new, |_| Ok(Refusing)).await;
        for _ in 0..200 {
            let id = refused(&host).await;
            assert!(!host.sessions.contains(&id));
        }
        assert!(host.sessions.is_empty());
        assert_eq!(host.stop().await.len(), 200);
    }
}

async fn refused<M: SessionManager>(host: &Host<M>) -> String {
    let answer = host.ask(Method::POST, &[], INITIALIZE).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("not you"), "{}", answer.body);
    answer.id.unwrap()
}

/// Answers an `initialize` when it is released.
struct Hesitating {
    tools: Tools,
    come: Arc<Semaphore>,
    go: Arc<Semaphore>,
}

impl ServerHandler for Hesitating {
    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        self.come.add_permits(1);
        self.go.acquire().await.unwrap().forget();
        self.tools.initialize(request, context).await
    }
}

async fn begin_initialize<M>(host: &Host<M>) -> TcpStream {
    let mut client = TcpStream::connect(host.address).await.unwrap();
    let head = "POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: application/json, text/event-stream\r\n\
                content-type: application/json\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{INITIALIZE}", INITIALIZE.len());
    client.write_all(request.as_bytes()).await.unwrap();
    client
}

/// A host whose handler has begun an `initialize`, and waits for a permit; and the client that waits for its answer.
async fn initialize_under_way(mount: Mount, go: &Arc<Semaphore>) -> (Host<NotifyingManager>, TcpStream) {
    let come = Arc::new(Semaphore::new(0));
    let handler = {
        let (come, go) = (Arc::clone(&come), Arc::clone(go));
        move |tools| Ok(Hesitating { tools, come: Arc::clone(&come), go: Arc::clone(&go) })
    };
    let host = Setup::new(mount).start(NotifyingManager::new, handler).await;
    let client = begin_initialize(&host).await;
    within("the handler", come.acquire()).await.unwrap().forget();
    (host, client)
}

#[tokio::test]
async fn an_initialize_under_way_when_the_drain_ends_gets_503() {
    for mount in Mount::ALL {
        let (mut host, mut client) = initialize_under_way(mount, &Arc::new(Semaphore::new(0))).await;
        host.signal();
        let mut answer = Vec::new();
        within("the end of the connection", client.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{mount:?}: {answer}");
        assert!(!answer.contains("mcp-session-id"), "{mount:?}: {answer}");
        let (recorder, report) = host.stopped().await;
        assert!(recorder.started().is_empty(), "{report}");
    }
}

#[tokio::test]
async fn an_initialize_that_the_client_cancels_before_its_answer_is_never_seen() {
    for mount in Mount::ALL {
        let go = Arc::new(Semaphore::new(0));
        let (host, mut client) = initialize_under_way(mount, &go).await;
        assert_eq!(host.manager.local.sessions.read().await.len(), 1, "rmcp must have the session");
        // The server closes its side too, and drops the request of this connection.
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        within("the end of the connection", client.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.is_empty());
        // rmcp ends the session when it cannot send its answer.
        go.add_permits(1);
        until("rmcp ends the session", async || host.manager.local.sessions.read().await.is_empty()).await;
        assert!(host.sessions.is_empty() && host.recorder.started().is_empty());
        assert_eq!(host.stop().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn g01_an_initialize_cancelled_at_any_moment_has_at_most_one_end() {
    for mount in Mount::ALL {
        let host = Setup::new(mount).telling().await;
        for n in 0..60 {
            let client = begin_initialize(&host).await;
            for _ in 0..n {
                tokio::task::yield_now().await;
            }
            drop(client);
        }
        let kept = host.open().await;
        // In the end, the layer and rmcp have the same sessions.
        until("the layer and rmcp agree on the cancelled sessions", async || {
            let theirs = host.manager.local.sessions.read().await;
            let mut theirs: Vec<_> = theirs.keys().map(|id| id.to_string()).collect();
            let mut ours: Vec<_> = host.sessions.snapshot().iter().map(|session| session.id.to_string()).collect();
            theirs.sort();
            ours.sort();
            ours == theirs
        })
        .await;
        // One start and one end for each session.
        let ended = host.stop().await;
        assert!(ended.contains(&format!("{kept} shutdown")), "{ended:?}");
        assert!(ended.iter().all(|end| end.ends_with(" shutdown") || end.ends_with(" idle")), "{ended:?}");
    }
}

#[tokio::test]
async fn an_initialize_that_claims_2026_07_28_has_a_session() {
    const CLAIMS: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2026-07-28","capabilities":{},"clientInfo":{"name":"test","version":"0"}}}"#;
    for mount in Mount::ALL {
        let host = Setup::new(mount).plain().await;
        let answer = host.ask(Method::POST, &[("mcp-protocol-version", b"2026-07-28")], CLAIMS).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(answer.body.contains(r#""protocolVersion":"2025-11-25""#), "{}", answer.body);
        let id = answer.id.expect("rmcp starts a session for every initialize");
        // Otherwise a client could hide a session with a header, and it would have no end.
        assert!(host.sessions.contains(&id));
        assert_eq!(host.stop().await, [format!("{id} shutdown")]);
    }
}
