//! The shutdown: the sessions first, then rmcp's token, then the connections, within the budget.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::Router;
use mcp_gateway::{Mount, Tools, call};
use reqwest::Method;
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch};
use tower::Layer;
use tower_session_end::{ActiveSessions, McpProtocol, SessionEnd};

use crate::support::{INITIALIZE, Setup, within};

#[tokio::test]
async fn g10_a_shutdown_drains_then_cancels_the_token_then_closes() {
    for mount in Mount::ALL {
        let mut setup = Setup::new(mount);
        let token = setup.config.cancellation_token.clone();
        // Whether rmcp's token was cancelled when a session had its end.
        let cancelled = Arc::new(Mutex::new(Vec::new()));
        let (seen, asked) = (Arc::clone(&cancelled), token.clone());
        setup.builder = setup
            .builder
            .settle_timeout(Duration::from_secs(20))
            .drain_timeout(Duration::from_secs(30))
            .connection_drain_timeout(Duration::from_secs(30))
            .on_session_end(move |_: SessionEnd| {
                seen.lock().unwrap().push(asked.is_cancelled());
                std::future::ready(())
            });
        let mut host = setup.telling().await;
        // Each of them has a standing event stream.
        let clients = [host.connect().await, host.connect().await, host.connect().await];
        let raw = host.open().await;
        let mut stream = host.get(&raw).await;
        let answer = call(&clients[0], "think", json!({ "millis": 700 }));
        let stop = async {
            within("the call", host.calls.clone().wait_for(|calls| *calls == 1)).await.unwrap();
            host.signal();
        };
        let begun = Instant::now();
        let (answer, ()) = tokio::join!(answer, stop);
        assert_eq!(answer.unwrap(), "thought for 700 ms");
        let (recorder, report) = host.stopped().await;
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}: {report}", begun.elapsed());
        assert_eq!(recorder.ends().len(), 4);
        assert!(recorder.ends().iter().all(|end| end.reason.as_str() == "shutdown"), "{:?}", recorder.ended());
        assert_eq!(*cancelled.lock().unwrap(), [false; 4]);
        assert!(token.is_cancelled());
        while within("the end of the stream", stream.chunk()).await.unwrap().is_some() {}
    }
}

#[tokio::test]
async fn g10_the_token_ends_a_call_that_takes_too_long() {
    for mount in Mount::ALL {
        let mut setup = Setup::new(mount);
        setup.builder = setup
            .builder
            .settle_timeout(Duration::from_millis(100))
            .drain_timeout(Duration::from_secs(10))
            .connection_drain_timeout(Duration::from_secs(30));
        let mut host = setup.telling().await;
        let client = host.connect().await;
        // rmcp's client tries to resume the stream of its answer long after the host has exited.
        let answer = tokio::spawn(async move { call(&client, "think", json!({ "millis": 600_000 })).await });
        within("the call", host.calls.clone().wait_for(|calls| *calls == 1)).await.unwrap();
        host.signal();
        let (recorder, report) = host.stopped().await;
        assert!(report.connections.elapsed < Duration::from_secs(20), "{report}");
        assert_eq!(recorder.ends().len(), 1);
        assert!(!answer.is_finished());
        answer.abort();
    }
}

#[tokio::test]
async fn g10_without_the_token_a_long_call_is_closed_at_the_connection_deadline() {
    let sessions = ActiveSessions::builder().connection_drain_timeout(Duration::from_millis(300)).build().unwrap();
    let (thinking, mut calls) = watch::channel(0);
    let host = StreamableHttpService::new(
        move || Ok(Tools::new(thinking.clone())),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().nest_service("/mcp", sessions.layer_with(McpProtocol::new()).layer(host));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let signal = async { drop(stopped.await) };
    let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signal));
    let finish = tokio::spawn(sessions.finish(server).into_future());

    let client = within("connect", mcp_gateway::connect(address, rmcp::ClientLifecycleMode::Initialize)).await.unwrap();
    let answer = tokio::spawn(async move { call(&client, "think", json!({ "millis": 600_000 })).await });
    within("the call", calls.wait_for(|calls| *calls == 1)).await.unwrap();
    stop.send(()).unwrap();
    let report = within("finish", finish).await.unwrap().report;
    // The shutdown is bounded and every session had its end, but it is not clean.
    assert!(report.connections.timed_out && report.sessions.is_clean(), "{report}");
    assert_eq!(report.sessions.ended, 1);
    answer.abort();
}

#[tokio::test]
async fn g08_a_session_that_starts_during_the_drain_has_its_end() {
    for mount in Mount::ALL {
        let mut setup = Setup::new(mount);
        setup.builder = setup.builder.settle_timeout(Duration::from_secs(20)).drain_timeout(Duration::from_secs(30));
        let mut host = setup.telling().await;
        let client = host.connect().await;
        // Keeps the drain running.
        let busy = call(&client, "think", json!({ "millis": 700 }));
        let late = async {
            within("the call", host.calls.clone().wait_for(|calls| *calls == 1)).await.unwrap();
            host.signal();
            within("closing", host.sessions.closing()).await;
            host.ask(Method::POST, &[], INITIALIZE).await
        };
        let (answer, late) = tokio::join!(busy, late);
        answer.unwrap();
        assert_eq!(late.status, 200, "{}", late.body);
        let id = late.id.unwrap();
        let (recorder, report) = host.stopped().await;
        assert_eq!(report.sessions.late_starts, 1, "{report}");
        assert!(recorder.ended().contains(&format!("{id} shutdown")), "{:?}", recorder.ended());
    }
}
