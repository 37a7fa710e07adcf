//! The gateway as a child process, and a plugin with a real table: no session is active after SIGTERM, also with a
//! plugin that fails or hangs.
#![cfg(unix)]

mod support;

use std::time::Duration;

use support::{Client, Dir, Faults, Gateway, Log, PATIENCE, Receiver, busy_client, program, until, within};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};

#[tokio::test]
async fn after_sigterm_every_row_is_completed() {
    let dir = Dir::new();
    let receiver = Receiver::start(&dir).await;
    let gateway = Gateway::start(&receiver.url(), &[]).await;
    let client = &gateway.client;
    let goes_on = client.open("remember the milk").await;
    client.chat(&goes_on, "and the eggs").await;
    let old = client.open("what was I doing?").await;
    let successor = client.compact(&old).await;
    let deleted = client.open("good bye").await;
    client.delete(&deleted).await;
    let until_status = async |id: &str, status: &str| {
        until(status, async || receiver.rows().get(id).is_some_and(|row| row.status == status)).await;
    };
    until_status(&deleted, "completed").await;
    until_status(&old, "completed").await;
    until_status(&successor, "active").await;
    // A resumed session is active again.
    client.chat(&deleted, "one more thing").await;
    until_status(&deleted, "active").await;
    assert_eq!(receiver.rows()[&deleted].completed_at, None);

    let said = gateway.stop().await;

    assert!(said.starts_with("shutdown: of 3 active"), "{said}");
    assert!(said.contains("accepted 5 init and 5 complete, and 0 calls failed"), "{said}");
    let rows = receiver.rows();
    assert_eq!(rows.len(), 4, "{rows:?}");
    for row in rows.values() {
        assert_eq!((row.status.as_str(), row.project.as_str()), ("completed", "tests"), "{row:?}");
        assert!(row.completed_at.is_some_and(|at| at > 1_700_000_000_000), "{row:?}");
    }
    assert_eq!(rows[&goes_on].prompt, "remember the milk");
    assert_eq!(rows[&successor].prompt, "what was I doing?");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_leaves_no_row_active() {
    let dir = Dir::new();
    let receiver = Receiver::start(&dir).await;
    let gateway = Gateway::start(&receiver.url(), &[]).await;
    let (saw, mut seen) = mpsc::unbounded_channel();
    let mut clients = JoinSet::new();
    for _ in 0..16 {
        clients.spawn(busy_client(gateway.client.clone(), saw.clone()));
    }
    drop(saw);
    let mut ids = Vec::new();
    while ids.len() < 300 {
        ids.push(within("the clients start enough sessions", seen.recv()).await.expect("the clients must continue"));
    }
    gateway.sigterm().await;
    let said = gateway.stopped_cleanly().await;
    within("the clients", clients.join_all()).await;
    while let Ok(id) = seen.try_recv() {
        ids.push(id);
    }

    let rows = receiver.rows();
    let active: Vec<_> = rows.iter().filter(|(_, row)| row.status != "completed").collect();
    assert!(active.is_empty(), "{active:?} {said}");
    for id in &ids {
        assert!(rows.contains_key(id), "{id} has no row");
    }
    assert!(said.contains("and 0 calls failed"), "{said}");
}

/// Starts, compacts, deletes and resumes sessions; returns their ids.
async fn some_sessions(client: &Client) -> Vec<String> {
    let left = client.open("left").await;
    let old = client.open("compacted").await;
    let successor = client.compact(&old).await;
    let deleted = client.open("deleted").await;
    client.delete(&deleted).await;
    let resumed = client.open("resumed").await;
    client.delete(&resumed).await;
    client.chat(&resumed, "again").await;
    vec![left, old, successor, deleted, resumed]
}

#[tokio::test]
async fn a_plugin_that_fails_at_first_gets_every_call() {
    for status in [500, 503, 429] {
        let (log, url) = Log::start(Faults { failing: Some((2, status)), ..Faults::default() }).await;
        let gateway = Gateway::start(&url, &[]).await;
        let ids = some_sessions(&gateway.client).await;
        gateway.stop().await;
        log.assert_all_completed(&ids).await;
        let tried = log.tried();
        assert_eq!(tried[&ids[0]], "+++---", "{status}: two failed attempts per call");
        // Every attempt is the same request.
        let bodies: Vec<_> = log.entries().into_iter().filter(|entry| entry.id == ids[0]).collect();
        assert!(bodies.iter().all(|entry| entry.call != "init" || entry.body == log.init(&ids[0])), "{bodies:?}");
    }
}

#[tokio::test]
async fn a_slow_plugin_gets_the_calls_of_a_session_in_order() {
    let (log, url) = Log::start(Faults { delay: Duration::from_millis(200), ..Faults::default() }).await;
    let gateway = Gateway::start(&url, &[]).await;
    let ids = some_sessions(&gateway.client).await;
    gateway.stop().await;
    log.assert_all_completed(&ids).await;
    // No attempt failed, so the attempts and the answers have the same order.
    assert_eq!(log.tried(), log.accepted());
    let order: Vec<_> = ids.iter().map(|id| log.tried()[id].clone()).collect();
    assert_eq!(order, ["+-", "+-", "+-", "+-", "+-+-"]);
    assert_eq!(
        log.init(&ids[0]),
        serde_json::json!({ "contentSessionId": ids[0], "project": "tests", "prompt": "left" })
    );
}

#[tokio::test]
async fn a_call_to_a_plugin_that_hangs_is_retried_after_the_timeout() {
    let (log, url) = Log::start(Faults { hanging: 1, ..Faults::default() }).await;
    let gateway = Gateway::start(&url, &[("MEMORY_PLUGIN_TIMEOUT_MS", "1500")]).await;
    let ids = [gateway.client.open("a").await, gateway.client.open("b").await];
    gateway.stop().await;
    log.assert_all_completed(&ids).await;
}

#[tokio::test]
async fn a_plugin_that_restarts_gets_the_calls_of_its_downtime() {
    let dir = Dir::new();
    let receiver = Receiver::start(&dir).await;
    let gateway = Gateway::start(&receiver.url(), &[]).await;
    let before = gateway.client.open("before").await;
    until("a row", async || receiver.rows().contains_key(&before)).await;

    let start_again = receiver.crash().await;
    // The gateway continues to serve, and retries the calls for these sessions until the plugin is back.
    let meanwhile = gateway.client.open("meanwhile").await;
    gateway.client.delete(&before).await;
    gateway.sigterm().await;
    let receiver = start_again(&dir).await;
    let said = gateway.stopped_cleanly().await;

    let rows = receiver.rows();
    assert_eq!(rows.keys().collect::<Vec<_>>().len(), 2, "{rows:?}");
    for id in [&before, &meanwhile] {
        assert_eq!(rows[id].status, "completed", "{id}: {said}");
    }
}

#[tokio::test]
async fn an_unreachable_plugin_is_an_error_and_delays_no_chat() {
    // A port without a listener: this test has just closed its own.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = Gateway::start(&format!("http://{nobody}"), &[("GATEWAY_DRAIN_TIMEOUT_MS", "500")]).await;
    let id = gateway.client.open("hello").await;
    gateway.client.chat(&id, "again").await;

    gateway.sigterm().await;
    let (code, said, log) = gateway.gone().await;

    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("0 ended") && said.contains("accepted 0 init and 0 complete"), "{said}");
    assert!(log.contains("memory_plugin: the plugin did not accept every end"), "{log}");
}

#[tokio::test]
async fn a_refusal_by_the_plugin_is_logged_with_its_answer() {
    let (log, url) = Log::start(Faults { failing: Some((100, 422)), ..Faults::default() }).await;
    let gateway = Gateway::start(&url, &[]).await;
    let id = gateway.client.open("hello").await;
    gateway.sigterm().await;
    let (code, said, logged) = gateway.gone().await;
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(log.tried()[&id], "+-", "a refused call is not retried");
    assert!(said.contains("1 failed") && said.contains("2 calls failed"), "{said}");
    assert!(logged.contains("422 Unprocessable Entity not now"), "{logged}");
}

#[tokio::test]
async fn the_url_may_have_a_path_and_a_trailing_slash() {
    for (prefix, slash) in [("", "/"), ("/memory", ""), ("/a/b", "/"), ("/a", "//")] {
        let (log, url) = Log::start(Faults { prefix, ..Faults::default() }).await;
        let gateway = Gateway::start(&format!("{url}{slash}"), &[]).await;
        let id = gateway.client.open("hello").await;
        gateway.stop().await;
        assert_eq!(log.accepted()[&id], "+-", "{url}{slash}");
    }
}

#[tokio::test]
async fn an_invalid_url_is_an_error_at_startup() {
    for url in ["", "127.0.0.1:37777", "https://127.0.0.1:37777", "http://", "ftp://plugin", "http://plugin?x=1"] {
        for mode in [&["serve"][..], &[]] {
            let mut command = program(mode);
            command.env("MEMORY_PLUGIN_URL", url).env("GATEWAY_ADDR", "127.0.0.1:0");
            let output = within("an exit", command.output()).await.unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{url}: {error}");
            assert!(error.contains("MEMORY_PLUGIN_URL is not the URL of a plugin"), "{url}: {error}");
            assert!(output.stdout.is_empty(), "{url}");
        }
    }
}

#[tokio::test]
async fn an_unknown_mode_is_an_error() {
    let output = within("an exit", program(&["sing"]).output()).await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("usage: memory_plugin"));
}

#[tokio::test]
async fn the_demo_uses_the_configured_plugin() {
    let dir = Dir::new();
    let receiver = Receiver::start(&dir).await;
    let mut demo = program(&[]);
    let output = tokio::time::timeout(PATIENCE, demo.env("MEMORY_PLUGIN_URL", receiver.url()).output());
    let output = output.await.expect("the demo must exit").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let rows = receiver.rows();
    assert!(rows.len() > 30 && rows.values().all(|row| row.status == "completed"), "{said}");
}

#[tokio::test]
async fn the_demo_without_a_url_starts_a_plugin_of_its_own() {
    // Nothing of this test listens there if another process does.
    let default = std::net::TcpListener::bind("127.0.0.1:37777").ok();
    let output = within("an exit", program(&[]).output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.starts_with("the plugin is the example's own receiver on http://127.0.0.1:"), "{said}");
    assert!(!said.contains(":37777"), "{said}");
    if let Some(default) = default {
        default.set_nonblocking(true).unwrap();
        assert!(default.accept().is_err(), "the demo has connected to the default address");
    }
}

#[tokio::test]
async fn the_demo_fails_if_the_plugin_fails() {
    let (_log, url) = Log::start(Faults { failing: Some((100, 404)), ..Faults::default() }).await;
    let output = within("an exit", program(&[]).env("MEMORY_PLUGIN_URL", url).output()).await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
}
