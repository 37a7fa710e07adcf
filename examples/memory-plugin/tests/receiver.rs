//! The minimal plugin, and the URLs that are accepted for a plugin.

use std::path::Path;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use memory_plugin::{
    base_url::BaseUrl,
    receiver::{Store, router},
};
use tower::ServiceExt;

async fn post(store: &Store, path: &str, body: &str) -> StatusCode {
    let request = Request::post(path).header("content-type", "application/json").body(Body::from(body.to_owned()));
    router(store.clone()).oneshot(request.unwrap()).await.unwrap().status()
}

const INIT: &str = r#"{"contentSessionId":"a","project":"p","prompt":"hello"}"#;
const COMPLETE: &str = r#"{"contentSessionId":"a"}"#;

#[tokio::test]
async fn a_completed_session_that_is_resumed_is_active_again() {
    let store = Store::open(Path::new(":memory:")).unwrap();
    let calls = [
        ("init", INIT, "active"),
        ("init", INIT, "active"),
        ("complete", COMPLETE, "completed"),
        ("complete", COMPLETE, "completed"),
        ("init", INIT, "active"),
        ("complete", COMPLETE, "completed"),
    ];
    for (call, body, status) in calls {
        assert_eq!(post(&store, &format!("/api/sessions/{call}"), body).await, StatusCode::OK);
        assert_eq!(store.status("a").await.unwrap().as_deref(), Some(status), "after {call}");
        assert_eq!(store.active().await.unwrap(), u64::from(status == "active"));
    }
}

#[tokio::test]
async fn invalid_calls_are_refused() {
    let store = Store::open(Path::new(":memory:")).unwrap();
    assert_eq!(post(&store, "/api/sessions/complete", COMPLETE).await, StatusCode::NOT_FOUND);
    assert!(post(&store, "/api/sessions/init", COMPLETE).await.is_client_error());
    assert!(post(&store, "/api/sessions/init", "{").await.is_client_error());
    assert_eq!(post(&store, "/api/sessions", INIT).await, StatusCode::NOT_FOUND);
    assert_eq!(store.status("a").await.unwrap(), None);
}

#[test]
fn the_table_holds_no_other_status() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("status-{}.db", std::process::id()));
    let _ = std::fs::remove_file(&path);
    drop(Store::open(&path).unwrap());
    let db = rusqlite::Connection::open(&path).unwrap();
    let insert = "INSERT INTO sdk_sessions (content_session_id, project, prompt, status) VALUES (?1, '', '', ?1)";
    for status in ["active", "completed", "failed"] {
        assert_eq!(db.execute(insert, [status]), Ok(1));
    }
    assert!(db.execute(insert, ["gone"]).is_err());
    drop(db);
    let _ = std::fs::remove_file(&path);
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let error = Store::open(Path::new("/nowhere/memory.db")).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/memory.db: "), "{error}");
}

#[test]
fn a_url_has_a_host_and_an_optional_port_and_path() {
    let urls = [
        ("http://127.0.0.1:37777", "http://127.0.0.1:37777/x"),
        ("http://127.0.0.1:37777/", "http://127.0.0.1:37777/x"),
        ("http://plugin/a/b", "http://plugin/a/b/x"),
        ("http://plugin/a/b//", "http://plugin/a/b/x"),
        ("http://[::1]:37777/", "http://[::1]:37777/x"),
        ("http://[::1]/a", "http://[::1]/a/x"),
        ("HTTP://plugin", "http://plugin/x"),
    ];
    for (url, at) in urls {
        assert_eq!(url.parse::<BaseUrl>().unwrap().at("/x").unwrap(), at, "{url}");
    }
    let not = [
        "",
        "plugin",
        "/api",
        "plugin:37777",
        "127.0.0.1:37777",
        "https://plugin",
        "ftp://plugin",
        "http://",
        "http:///a",
        "http://plugin:99999",
        "http://plugin:x",
        "http://plugin:",
        "http://me:secret@plugin",
        "http://plugin/?a=b",
        "http://plugin/#a",
        "http://a b",
    ];
    for url in not {
        let error = url.parse::<BaseUrl>().unwrap_err().to_string();
        assert!(error.starts_with("not the URL of a plugin"), "{url}: {error}");
    }
}
