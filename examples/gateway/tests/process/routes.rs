//! The routes of the gateway.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::json;

use crate::support::{Gateway, PATIENCE};

#[tokio::test]
async fn a_session_is_started_used_listed_and_deleted() {
    let gateway = Gateway::start(&[]).await;
    let client = &gateway.client;

    let opened = client.send(Method::POST, "/sessions", None, r#"{"key":"telegram:42"}"#).await;
    let id = opened.id.clone().expect("an id");
    assert_eq!(opened.json(), json!({ "sessionId": id, "sessionKey": "telegram:42" }));
    // Without a body it starts the main conversation.
    let main = client.send(Method::POST, "/sessions", None, "").await.json();
    assert_eq!(main["sessionKey"], "main");

    let answer = client.post("/chat", &id, "hello").await;
    assert_eq!(answer.json(), json!({ "reply": "you said: hello", "messageCount": 1 }));
    let next = client.successor("/compact", &id).await;
    assert_eq!(client.post("/chat", &next, "again").await.json()["messageCount"], 2);

    let listed = client.get("/sessions").await.json();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed.contains(&json!({ "sessionId": next, "sessionKey": "telegram:42", "messageCount": 2 })));

    let deleted = client.send(Method::DELETE, "/session", Some(&next), "").await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    gateway.signal("TERM").await;
    let gone = gateway.gone_within(Duration::from_secs(20)).await;
    gone.assert_each_had_its_end();
    assert_eq!(gone.rows.reason(&next), "deleted");
}

#[tokio::test]
async fn an_id_without_an_active_session_is_refused() {
    let gateway = Gateway::start(&[]).await;
    let client = &gateway.client;
    let over = client.open("telegram").await;
    client.successor("/reset", &over).await;

    for (method, path) in
        [(Method::POST, "/chat"), (Method::POST, "/reset"), (Method::POST, "/compact"), (Method::DELETE, "/session")]
    {
        let status = async |id: Option<&str>| client.send(method.clone(), path, id, "").await.status;
        assert_eq!(status(None).await, StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(status(Some("two words")).await, StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(status(Some("unknown")).await, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(status(Some(&over)).await, StatusCode::NOT_FOUND, "{path}");
    }
    // A body that is not valid JSON.
    let nonsense = client.send(Method::POST, "/sessions", None, "{").await;
    assert_eq!((nonsense.status, nonsense.id), (StatusCode::BAD_REQUEST, None));

    gateway.signal("TERM").await;
    let gone = gateway.gone_within(Duration::from_secs(20)).await;
    gone.assert_each_had_its_end();
    assert_eq!(gone.rows.0.len(), 2, "a refused request started a session: {:?}", gone.rows);
}

#[tokio::test]
async fn invalid_settings_are_clear_errors() {
    for (name, value, says) in
        [("GATEWAY_DRAIN_TIMEOUT_MS", "soon", "GATEWAY_DRAIN_TIMEOUT_MS=soon"), ("GATEWAY_DB", "/", "/: unable")]
    {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
        let output = command.env("GATEWAY_LISTEN", "127.0.0.1:0").env(name, value).kill_on_drop(true).output();
        let output = tokio::time::timeout(PATIENCE, output).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(says), "{said}");
    }
}
