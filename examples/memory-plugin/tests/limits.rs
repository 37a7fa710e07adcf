//! A plugin that limits its calls, as one with 300 a minute does: what it asks for is obeyed, and what cannot be
//! delivered in the budget of the drain is reported.
#![cfg(unix)]

mod support;

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use support::{Client, Faults, Gateway, Log, until, within};
use tokio::task::JoinSet;

/// The rule of the plugin: 300 calls in each time of this length.
fn rule_of_300(seconds: u64) -> Faults {
    Faults { rule: Some((300, Duration::from_secs(seconds))), ..Faults::default() }
}

/// Starts `count` sessions, and waits until the plugin has accepted their `init`.
async fn start_sessions(client: &Client, log: &Log, count: usize) -> Vec<String> {
    let mut starts = JoinSet::new();
    for worker in 0..8 {
        let client = client.clone();
        starts.spawn(async move {
            let mut ids = Vec::new();
            for _ in 0..count / 8 + usize::from(worker < count % 8) {
                ids.push(client.open("hello").await);
            }
            ids
        });
    }
    let ids = within("the starts", starts.join_all()).await.concat();
    until("every init", async || log.accepted().len() == count).await;
    ids
}

/// The number that stands before `word` in the gateway's report; 0 if there is none.
fn reported(report: &str, word: &str) -> usize {
    let words: Vec<_> = report.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).map_or(0, |pair| pair[0].parse().unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_delivers_every_end_at_the_pace_that_the_plugin_asks_for() {
    // Longer than any number of quick attempts takes.
    let (log, url) = Log::start(rule_of_300(10)).await;
    let gateway = Gateway::start(&url, &[("GATEWAY_DRAIN_TIMEOUT_MS", "60000")]).await;
    let ids = start_sessions(&gateway.client, &log, 250).await;
    let said = gateway.stop().await;

    assert!(log.answered(StatusCode::TOO_MANY_REQUESTS) > 0, "the rule was never reached: {said}");
    assert!(said.contains("accepted 250 init and 250 complete, and 0 calls failed"), "{said}");
    log.assert_all_completed(&ids).await;
}

/// 200 of the 300 calls are used up before the drain, which has far less time than the plugin asks for.
async fn a_short_drain(settings: &[(&str, &str)]) -> (Log, String, String) {
    let (log, url) = Log::start(rule_of_300(600)).await;
    let settings = [&[("GATEWAY_DRAIN_TIMEOUT_MS", "5000")][..], settings].concat();
    let gateway = Gateway::start(&url, &settings).await;
    start_sessions(&gateway.client, &log, 200).await;
    gateway.sigterm().await;
    let (code, said, logged) = gateway.gone().await;

    assert_eq!(code, Some(1), "{said}{logged}");
    let [ended, failed, unfinished] = ["ended", "failed", "unfinished"].map(|word| reported(&said, word));
    assert_eq!((ended, failed + unfinished), (100, 100), "{said}");
    assert!(said.contains("accepted 200 init and 100 complete"), "{said}");
    assert_eq!(log.store.active().await.unwrap(), 100, "what is reported as delivered is delivered: {said}");
    (log, said, logged)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_for_which_the_plugin_asks_to_wait_too_long_fails_at_once() {
    let (log, said, logged) = a_short_drain(&[]).await;
    assert_eq!(reported(&said, "failed"), 100, "{said}");
    assert!(logged.contains("429 Too Many Requests too many"), "{logged}");
    // One refusal holds for all calls but those that were under way.
    assert!(log.answered(StatusCode::TOO_MANY_REQUESTS) <= 64, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_waits_for_the_limit_of_this_side_is_reported_as_unfinished() {
    let (log, said, _) = a_short_drain(&[("MEMORY_PLUGIN_LIMIT", "300/600")]).await;
    assert_eq!(reported(&said, "unfinished"), 100, "{said}");
    assert_eq!(log.answered(StatusCode::TOO_MANY_REQUESTS), 0, "no call was sent in vain: {said}");
}

#[tokio::test]
async fn the_next_attempt_waits_for_the_time_that_the_plugin_asks_for() {
    let (log, url) = Log::start(Faults { rule: Some((1, Duration::from_secs(2))), ..Faults::default() }).await;
    let gateway = Gateway::start(&url, &[]).await;
    let id = gateway.client.open("hello").await;
    until("its init", async || log.accepted().contains_key(&id)).await;
    gateway.stop().await;
    assert_eq!(log.accepted()[&id], "+-");
    let ends: Vec<_> = log.entries().into_iter().filter(|entry| entry.call == "complete").collect();
    assert_eq!(ends.len(), 2, "one refused attempt, and one in time: {ends:?}");
    assert!(ends[1].at - ends[0].at >= Duration::from_secs(1), "{ends:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_calls_are_sent_than_the_limit_allows() {
    let (log, url) = Log::start(Faults::default()).await;
    let began = Instant::now();
    let gateway = Gateway::start(&url, &[("MEMORY_PLUGIN_LIMIT", "20/2")]).await;
    let ids = start_sessions(&gateway.client, &log, 25).await;
    let said = gateway.stop().await;
    log.assert_all_completed(&ids).await;
    // 50 calls: the last of them are those of the third time.
    assert!(began.elapsed() >= Duration::from_secs(4), "{:?}: {said}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_is_refused_while_the_gateway_drains() {
    let (log, url) = Log::start(Faults { delay: Duration::from_secs(1), ..Faults::default() }).await;
    let gateway = Gateway::start(&url, &[]).await;
    let id = gateway.client.open("hello").await;
    gateway.sigterm().await;
    until("a refusal", async || {
        matches!(gateway.client.try_chat(None, "late").await, Ok((StatusCode::SERVICE_UNAVAILABLE, None)))
    })
    .await;
    // Once the session has ended, this would start it again.
    until("a refusal of its message", async || {
        matches!(gateway.client.try_chat(Some(&id), "again").await, Ok((StatusCode::SERVICE_UNAVAILABLE, None)))
    })
    .await;
    gateway.stopped_cleanly().await;
    assert_eq!(log.accepted()[&id], "+-");
}

#[tokio::test]
async fn an_invalid_limit_is_an_error_at_startup() {
    for limit in ["", "300", "0/60", "300/0", "300/1m", "many/60"] {
        let mut command = support::program(&["serve"]);
        command.env("MEMORY_PLUGIN_LIMIT", limit).env("GATEWAY_ADDR", "127.0.0.1:0");
        let output = within("an exit", command.output()).await.unwrap();
        assert_eq!(output.status.code(), Some(1), "{limit}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("MEMORY_PLUGIN_LIMIT is not a number of calls"), "{limit}: {error}");
    }
}
