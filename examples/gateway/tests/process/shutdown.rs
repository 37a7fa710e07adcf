//! Shutdown of the whole process, by each signal and under different load, checked by its rows.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
};

use crate::support::{Client, Gateway, PATIENCE, closes, until};

/// Slack on top of the budgets of a test. These tests do not measure time.
const SLACK: Duration = Duration::from_secs(20);

/// Sessions that ended before the signal keep their reason; active ones get that of the signal.
async fn a_signal_ends_what_is_active(signal: &str, reason: &str) {
    let gateway = Gateway::start(&[]).await;
    let client = &gateway.client;
    let telegram = client.open("telegram").await;
    let discord = client.open("discord").await;
    let slack = client.open("slack").await;
    let matrix = client.open("matrix").await;
    assert_eq!(client.post("/chat", &telegram, "hello").await.status, StatusCode::OK);
    assert_eq!(client.post("/chat", &telegram, "again").await.status, StatusCode::OK);
    let after_reset = client.successor("/reset", &discord).await;
    let after_compaction = client.successor("/compact", &slack).await;
    let deleted = client.send(Method::DELETE, "/session", Some(&matrix), "").await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);

    gateway.signal(signal).await;
    let gone = gateway.gone_within(SLACK).await;

    gone.assert_each_had_its_end();
    let rows = &gone.rows;
    assert_eq!(rows.0.len(), 6, "{rows:?}");
    assert_eq!(rows.reason(&telegram), reason);
    assert_eq!(rows.only(&telegram).message_count, Some(2));
    assert_eq!(rows.reason(&discord), "reset");
    assert_eq!(rows.reason(&after_reset), reason);
    assert_eq!(rows.only(&after_reset).key, "discord");
    assert_eq!(rows.reason(&slack), "compaction");
    assert_eq!(rows.only(&slack).next.as_deref(), Some(after_compaction.as_str()));
    assert_eq!(rows.reason(&after_compaction), reason);
    assert_eq!(rows.only(&after_compaction).resumed_from.as_deref(), Some(slack.as_str()));
    assert_eq!(rows.reason(&matrix), "deleted");
    assert!(gone.report.starts_with(&format!("{reason}: of 3 active")), "{}", gone.report);
}

#[tokio::test]
async fn sigterm_ends_every_session_with_shutdown() {
    a_signal_ends_what_is_active("TERM", "shutdown").await;
}

#[tokio::test]
async fn sigint_ends_every_session_with_shutdown() {
    a_signal_ends_what_is_active("INT", "shutdown").await;
}

#[tokio::test]
async fn sigusr1_ends_every_session_with_restart() {
    a_signal_ends_what_is_active("USR1", "restart").await;
}

#[tokio::test]
async fn it_shuts_down_without_any_session() {
    let gateway = Gateway::start(&[]).await;
    gateway.signal("TERM").await;
    let gone = gateway.gone_within(SLACK).await;
    gone.assert_each_had_its_end();
    assert!(gone.rows.0.is_empty());
}

#[tokio::test]
async fn a_drain_that_lasts_logs_its_progress() {
    let gateway = Gateway::start(&[("HOOK_DELAY_MS", "2500")]).await;
    gateway.client.open("telegram").await;
    gateway.signal("TERM").await;
    let gone = gateway.gone_within(SLACK).await;
    gone.assert_each_had_its_end();
    let lines = gone.log.lines().filter(|line| line.contains("0 of 1 sessions have ended")).count();
    assert!(lines >= 1, "{}", gone.log);
}

#[tokio::test]
async fn a_second_sigterm_ends_the_waiting_at_once() {
    // The first end blocks the database for longer than the test waits.
    let settings = [("HOOK_DELAY_MS", "600000"), ("DRAIN_TIMEOUT_MS", "600000")];
    let gateway = Gateway::start(&settings).await;
    let id = gateway.client.open("telegram").await;
    gateway.signal("TERM").await;
    gateway.client.not_ready().await;

    gateway.signal("TERM").await;
    let gone = gateway.gone_within(SLACK).await;

    assert_eq!(gone.code, Some(1), "a session without its end is not a clean shutdown: {}", gone.report);
    assert!(gone.report.starts_with("shutdown: of 1 active, 0 ending"), "{}", gone.report);
    assert!(gone.report.contains("1 unfinished") && gone.report.contains("second signal"), "{}", gone.report);
    assert!(!gone.report.contains("budget"), "the drain used up its budget: {}", gone.report);
    assert_eq!((gone.rows.only(&id).status.as_str(), gone.rows.only(&id).end_count), ("active", 0));
}

#[tokio::test]
async fn a_second_sigterm_ends_the_connection_drain_at_once() {
    let settings = [("CONNECTION_DRAIN_TIMEOUT_MS", "600000"), ("HOOK_DELAY_MS", "300")];
    let gateway = Gateway::start(&settings).await;
    let mut half = TcpStream::connect(gateway.address).await.unwrap();
    half.write_all(b"GET /readyz HT").await.unwrap();
    gateway.client.open("telegram").await;
    gateway.signal("TERM").await;
    // The connection drain has begun once the listener is closed.
    until("refused", async || TcpStream::connect(gateway.address).await.is_err()).await;

    gateway.signal("TERM").await;
    let gone = gateway.gone_within(SLACK).await;

    gone.assert_each_had_its_end();
    assert!(gone.report.contains("connections dropped") && gone.report.contains("second signal"), "{}", gone.report);
}

#[tokio::test]
async fn a_signal_after_finish_ends_the_process() {
    for signal in ["TERM", "INT"] {
        let mut gateway = Gateway::start(&[("LINGER_MS", "600000")]).await;
        let id = gateway.client.open("telegram").await;
        gateway.signal("TERM").await;
        gateway.finished().await;
        gateway.signal(signal).await;
        let gone = gateway.gone_within(SLACK).await;
        assert_eq!(gone.code, Some(1), "{signal}: {}", gone.log);
        assert_eq!(gone.rows.only(&id).end_count, 1);
    }
}

#[tokio::test]
async fn a_stuck_hook_does_not_delay_the_exit() {
    let settings = [("HOOK_DELAY_MS", "600000"), ("DRAIN_TIMEOUT_MS", "500"), ("CONNECTION_DRAIN_TIMEOUT_MS", "500")];
    let gateway = Gateway::start(&settings).await;
    gateway.client.open("telegram").await;
    gateway.signal("TERM").await;
    let gone = gateway.gone_within(Duration::from_secs(1) + SLACK).await;
    assert_eq!(gone.code, Some(1), "{}", gone.report);
    assert!(gone.report.contains("1 unfinished"), "{}", gone.report);
}

#[tokio::test]
async fn half_a_request_head_is_closed_at_the_connection_deadline() {
    // The slow end gives the server time to read the half head before the connection drain.
    let settings = [("CONNECTION_DRAIN_TIMEOUT_MS", "1000"), ("HOOK_DELAY_MS", "300")];
    let gateway = Gateway::start(&settings).await;
    let mut half = TcpStream::connect(gateway.address).await.unwrap();
    half.write_all(b"POST /chat HTTP/1.1\r\nhost: gateway\r\nx-sess").await.unwrap();
    let id = gateway.client.open("telegram").await;

    gateway.signal("TERM").await;
    let gone = gateway.gone_within(Duration::from_secs(2) + SLACK).await;

    gone.assert_each_had_its_end();
    assert_eq!(gone.rows.reason(&id), "shutdown");
    assert!(gone.report.contains("connections dropped"), "{}", gone.report);
    assert!(closes(&mut half).await);
}

#[tokio::test]
async fn a_silent_keep_alive_connection_is_closed_at_once() {
    let gateway = Gateway::start(&[]).await;
    let mut silent = TcpStream::connect(gateway.address).await.unwrap();
    silent.write_all(b"GET /readyz HTTP/1.1\r\nhost: gateway\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    silent.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    // A connection on which nothing was ever sent.
    let mut mute = TcpStream::connect(gateway.address).await.unwrap();
    let id = gateway.client.open("telegram").await;

    gateway.signal("TERM").await;
    assert!(closes(&mut silent).await && closes(&mut mute).await);
    let gone = gateway.gone_within(SLACK).await;

    gone.assert_each_had_its_end();
    assert_eq!(gone.rows.reason(&id), "shutdown");
    assert!(gone.report.contains("connections drained"), "{}", gone.report);
}

#[tokio::test]
async fn a_request_in_flight_gets_its_whole_answer() {
    let gateway = Gateway::start(&[("THINK_MS", "1000")]).await;
    let id = gateway.client.open("telegram").await;
    let chat = tokio::spawn({
        let (client, id) = (gateway.client.clone(), id.clone());
        async move { client.post("/chat", &id, "hello").await }
    });
    until("the request is in flight", async || gateway.client.get("/sessions").await.json()[0]["messageCount"] == 1)
        .await;

    gateway.signal("TERM").await;
    let gone = gateway.gone_within(SLACK).await;

    let answer = chat.await.unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(answer.json()["reply"], "you said: hello");
    gone.assert_each_had_its_end();
    // The answer names the session, which has ended in the meantime, and does not revive it.
    assert_eq!(gone.rows.reason(&id), "shutdown");
}

#[tokio::test]
async fn readyz_fails_in_the_lame_duck_phase_while_requests_are_served() {
    let gateway = Gateway::start(&[("LAME_DUCK_MS", "2000")]).await;
    let client = &gateway.client;
    let before = client.open("telegram").await;
    assert_eq!(client.get("/readyz").await.status, StatusCode::OK);

    gateway.signal("TERM").await;
    client.not_ready().await;
    let meanwhile = client.open("discord").await;
    assert_eq!(client.post("/chat", &before, "still there?").await.status, StatusCode::OK);
    let gone = gateway.gone_within(Duration::from_secs(2) + SLACK).await;

    gone.assert_each_had_its_end();
    assert_eq!(gone.rows.reason(&before), "shutdown");
    assert_eq!(gone.rows.reason(&meanwhile), "shutdown");
}

/// Starts sessions, and now and then resets or compacts one, until it has made all its requests or the server exits.
/// Sends the ids that it receives.
async fn busy_client(client: Client, seen: mpsc::UnboundedSender<String>) {
    for round in 0..20 {
        let opened = client.try_send(Method::POST, "/sessions", None, "").await;
        let Ok(opened) = opened else { return };
        let Some(id) = opened.id else { return };
        assert_eq!(opened.status, StatusCode::CREATED, "{}", opened.body);
        seen.send(id.clone()).unwrap();
        let successor = match round % 4 {
            0 => client.try_send(Method::POST, "/reset", Some(&id), "").await,
            1 => client.try_send(Method::POST, "/compact", Some(&id), "").await,
            _ => continue,
        };
        let Ok(successor) = successor else { return };
        // 404: the drain has ended the session in between.
        if let Some(id) = successor.id {
            seen.send(id).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_sessions_started_around_the_signal_gets_one_end() {
    // The slow ends make the drain long enough for the clients to continue during it.
    let gateway = Gateway::start(&[("HOOK_DELAY_MS", "50")]).await;
    let (saw, mut seen) = mpsc::unbounded_channel();
    let mut clients = JoinSet::new();
    for _ in 0..25 {
        clients.spawn(busy_client(Client::new(gateway.address), saw.clone()));
    }
    drop(saw);
    // The signal comes when the clients have started about half of their sessions.
    let mut ids = Vec::new();
    while ids.len() < 350 {
        ids.push(
            tokio::time::timeout(PATIENCE, seen.recv()).await.unwrap().expect("the clients must start enough sessions"),
        );
    }
    gateway.signal("TERM").await;
    let gone = gateway.gone_within(SLACK).await;
    while let Some(id) = seen.recv().await {
        ids.push(id);
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }

    gone.assert_each_had_its_end();
    let reasons = ids.iter().map(|id| gone.rows.reason(id));
    assert!(reasons.clone().all(|reason| ["shutdown", "reset", "compaction"].contains(&reason)));
    assert!(reasons.clone().any(|reason| reason == "shutdown"));
    // A session whose head was lost is only in the rows. A session whose head arrived is in both.
    assert!(gone.rows.0.len() >= ids.len());
}
