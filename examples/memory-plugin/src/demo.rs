//! The program without a mode: a gateway, its clients, a SIGTERM during their requests, and a check of the plugin's
//! records afterwards.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{Method, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use memory_plugin::{
    base_url::BaseUrl,
    gateway,
    receiver::{self, Store},
};
use serde_json::json;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet, time::timeout};
use tower_session_end::{BoxError, signal};

use crate::Config;

/// Clients that send requests when the signal comes, and how many sessions each of them has started by then.
const CLIENTS: usize = 8;
const SESSIONS: usize = 5;

pub(crate) async fn run(config: Config) -> Result<(), BoxError> {
    timeout(Duration::from_secs(60), drive(config)).await?
}

async fn drive(config: Config) -> Result<(), BoxError> {
    let (base, store) = match &config.plugin {
        Some(base) => (base.clone(), None),
        None => {
            let (base, store) = own_receiver().await?;
            (base, Some(store))
        }
    };
    println!("the plugin is {}{base}", if store.is_some() { "the example's own receiver on " } else { "" });
    let plugin = config.plugin_at(&base)?;
    let tally = plugin.tally();
    let signal = signal::terminate();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let visitor = Visitor::new(listener.local_addr()?);
    let served = gateway::serve(listener, plugin, config.drain_timeout, signal);
    let (report, ()) = tokio::try_join!(served, visit(&visitor))?;

    println!("{report}");
    let (inits, completes, failed) = tally.counts();
    println!("the plugin accepted {inits} init and {completes} complete, and {failed} calls failed");
    if !report.sessions.is_clean() || failed > 0 || inits != completes {
        return Err("a call to the plugin failed".into());
    }
    let ids = visitor.ids();
    if let Some(store) = store {
        for id in &ids {
            let status = store.status(id).await?;
            if status.as_deref() != Some("completed") {
                return Err(format!("session {id} is {status:?}").into());
            }
        }
        if store.active().await? > 0 {
            return Err("the plugin still has active sessions".into());
        }
        println!("{} sessions are completed, and none is left active", ids.len());
    }
    Ok(())
}

/// Starts the example's own plugin on a free port.
async fn own_receiver() -> Result<(BaseUrl, Store), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?).parse()?;
    let store = Store::open(Path::new(":memory:"))?;
    let router = receiver::router(store.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok((base, store))
}

/// The requests of the clients, and the SIGTERM of the operator.
async fn visit(visitor: &Visitor) -> Result<(), BoxError> {
    let telegram = visitor.chat(None, "remember the milk").await?;
    visitor.chat(telegram.as_deref(), "and the eggs").await?;
    let discord = visitor.chat(None, "what was I doing?").await?;
    visitor.send(Method::POST, "/compact", discord.as_deref(), "").await?;
    let slack = visitor.chat(None, "good bye").await?;
    visitor.send(Method::DELETE, "/session", slack.as_deref(), "").await?;
    visitor.chat(slack.as_deref(), "one more thing").await?;
    println!("three sessions: one is active, one was compacted, one was deleted and resumed");

    // Each of these clients starts some sessions. It goes on in the last one until the gateway refuses to start it
    // again, after the shutdown has ended it.
    let (started, mut starts) = mpsc::unbounded_channel();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (visitor, started) = (visitor.clone(), started.clone());
        clients.spawn(async move {
            let mut id = None;
            for number in 1.. {
                let of = if number <= SESSIONS { None } else { id.as_deref() };
                let Ok(answer) = visitor.chat(of, "hello").await else { break };
                id = answer;
                if number == SESSIONS {
                    let _ = started.send(());
                }
            }
        });
    }
    drop(started);
    for _ in 0..CLIENTS {
        starts.recv().await.ok_or("the clients could not start their sessions")?;
    }
    println!("sending SIGTERM to this process");
    raise_sigterm()?;
    while let Some(client) = clients.join_next().await {
        client?;
    }
    Ok(())
}

/// A client that reuses its connections, and records every session id that it receives.
#[derive(Clone)]
struct Visitor {
    address: SocketAddr,
    http: Client<HttpConnector, Full<Bytes>>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Visitor {
    fn new(address: SocketAddr) -> Self {
        Self { address, http: Client::builder(TokioExecutor::new()).build_http(), seen: Arc::default() }
    }

    /// The session ids, without duplicates.
    fn ids(&self) -> Vec<String> {
        let mut ids = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ids.sort();
        ids.dedup();
        ids
    }

    async fn chat(&self, id: Option<&str>, message: &str) -> Result<Option<String>, BoxError> {
        self.send(Method::POST, "/chat", id, &json!({ "message": message, "project": "demo" }).to_string()).await
    }

    /// Returns the session id of the response.
    async fn send(&self, method: Method, path: &str, id: Option<&str>, body: &str) -> Result<Option<String>, BoxError> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        if let Some(id) = id {
            request = request.header("x-session-id", id);
        }
        let request = request.header("content-type", "application/json").body(Full::from(body.to_owned()))?;
        let response = self.http.request(request).await?;
        if !response.status().is_success() {
            return Err(format!("{path}: {}", response.status()).into());
        }
        let id = response.headers().get("x-session-id").map(|id| id.to_str().map(str::to_owned)).transpose()?;
        // The head is enough: it has the session id.
        if let Some(id) = &id {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(id.clone());
        }
        response.into_body().collect().await?;
        Ok(id)
    }
}

/// std has no safe call for this. The shell that runs `kill` is a child of this process.
fn raise_sigterm() -> io::Result<()> {
    let kill = Command::new("sh").args(["-c", "kill -s TERM $PPID"]).status()?;
    if kill.success() { Ok(()) } else { Err(io::Error::other(format!("kill: {kill}"))) }
}
