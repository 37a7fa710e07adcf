//! The layer is transparent on the wire: rmcp's answers are the same bytes with and without it.

use std::{net::SocketAddr, sync::Arc};

use axum::Router;
use mcp_gateway::{Mount, Tools};
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::support::{CALL, INITIALIZE, INITIALIZED, PING, Setup, within};

/// rmcp in axum, without the layer.
async fn bare() -> SocketAddr {
    let (thinking, _) = watch::channel(0);
    let host = StreamableHttpService::new(
        move || Ok(Tools::new(thinking.clone())),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // The task ends with the runtime of the test.
    tokio::spawn(axum::serve(listener, Router::new().nest_service("/mcp", host)).into_future());
    address
}

/// Sends a request. The answer ends with the connection, or with its session.
async fn send(address: SocketAddr, head: &str, body: &str) -> TcpStream {
    let mut client = within("connect", TcpStream::connect(address)).await.unwrap();
    let fixed = "HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: application/json, text/event-stream\r\nconnection: close\r\n";
    let (line, headers) = head.split_once('\n').unwrap_or((head, ""));
    let headers: String = headers.lines().map(|header| format!("{header}\r\n")).collect();
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    let request = format!("{line} {fixed}{headers}content-type: application/json\r\n{length}\r\n{body}");
    client.write_all(request.as_bytes()).await.unwrap();
    client
}

/// The whole answer, without the date and the id, which is random.
async fn recorded(mut client: TcpStream, id: Option<&str>) -> String {
    let mut bytes = Vec::new();
    within("the end of an answer", client.read_to_end(&mut bytes)).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let lines = text.split_inclusive('\n').filter(|line| !line.starts_with("date: "));
    let text: String = lines.collect();
    id.map_or(text.clone(), |id| text.replace(id, &"i".repeat(id.len())))
}

/// Records every kind of answer of rmcp.
async fn exchanges(address: SocketAddr) -> Vec<String> {
    let mut answers = Vec::new();
    let initialize = recorded(send(address, "POST /mcp", INITIALIZE).await, None).await;
    let (_, id) = initialize.split_once("mcp-session-id: ").expect("an id");
    let id = id.lines().next().unwrap().to_owned();
    answers.push(initialize.replace(&id, &"i".repeat(id.len())));

    let with_id = format!("mcp-session-id: {id}");
    let revision = "mcp-protocol-version: 2025-11-25";
    let bogus = "mcp-protocol-version: 1999-12-31";
    let requests = [
        (format!("POST /mcp\n{with_id}"), INITIALIZED),
        (format!("POST /mcp\n{with_id}\n{revision}"), CALL),
        (format!("POST /mcp\n{with_id}"), r#"{"jsonrpc":"2.0","id":5,"method":"tools/list"}"#),
        (format!("POST /mcp\n{with_id}"), r#"{"jsonrpc":"2.0","id":6,"method":"no/such"}"#),
        (format!("POST /mcp\n{with_id}"), INITIALIZE),
        (format!("POST /mcp\n{with_id}\n{bogus}"), PING),
        (format!("POST /mcp\n{with_id}"), "no json"),
        ("POST /mcp".to_owned(), PING),
        ("POST /mcp\nmcp-session-id: unknown".to_owned(), PING),
        ("GET /mcp\nmcp-session-id: unknown".to_owned(), ""),
        ("GET /mcp".to_owned(), ""),
        ("HEAD /mcp".to_owned(), ""),
        ("PUT /mcp".to_owned(), PING),
        ("OPTIONS /mcp".to_owned(), ""),
        ("DELETE /mcp".to_owned(), ""),
        ("DELETE /mcp\nmcp-session-id: unknown".to_owned(), ""),
    ];
    for (head, body) in &requests {
        answers.push(recorded(send(address, head, body).await, Some(&id)).await);
    }

    // The standing stream, until its session is deleted; then requests with the deleted id.
    let mut stream = send(address, &format!("GET /mcp\n{with_id}"), "").await;
    let mut begun = [0; 16];
    within("the head of the stream", stream.read_exact(&mut begun)).await.unwrap();
    answers.push(String::from_utf8(begun.to_vec()).unwrap());
    answers.push(recorded(send(address, &format!("DELETE /mcp\n{with_id}"), "").await, Some(&id)).await);
    answers.push(recorded(stream, Some(&id)).await);
    for method in ["POST", "GET", "DELETE"] {
        let body = if method == "POST" { PING } else { "" };
        answers.push(recorded(send(address, &format!("{method} /mcp\n{with_id}"), body).await, Some(&id)).await);
    }
    answers
}

#[tokio::test]
async fn g18_recorded_exchanges_are_the_same_with_and_without_the_layer() {
    let expected = exchanges(bare().await).await;
    let statuses: Vec<_> = expected.iter().filter_map(|answer| answer.get(9..12)).collect();
    for status in ["200", "202", "400", "404", "405", "415"] {
        assert!(statuses.contains(&status), "{status} is none of {statuses:?}");
    }
    for mount in Mount::ALL {
        for telling in [false, true] {
            let (with, ended) = if telling {
                let host = Setup::new(mount).telling().await;
                (exchanges(host.address).await, host.stop().await)
            } else {
                let host = Setup::new(mount).plain().await;
                (exchanges(host.address).await, host.stop().await)
            };
            assert_eq!(with.len(), expected.len());
            for (with, without) in with.iter().zip(&expected) {
                assert_eq!(with, without, "{mount:?}");
            }
            // The layer was active.
            assert!(ended.len() == 1 && ended[0].ends_with(" deleted"), "{ended:?}");
        }
    }
}
