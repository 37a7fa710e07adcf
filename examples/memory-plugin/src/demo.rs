//! The program without a mode: a gateway, its clients, a SIGTERM during their requests, and a check of the plugin's
//! records afterwards.

use std::{
    io::{self, ErrorKind},
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
    gateway,
    receiver::{self, Store},
};
use serde_json::json;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet, time::timeout};
use tower_session_end::{BoxError, signal};

use crate::{Config, DEFAULT_PLUGIN};

pub(crate) async fn run(config: Config) -> Result<(), BoxError> {
    timeout(Duration::from_secs(60), drive(config)).await?
}

async fn drive(config: Config) -> Result<(), BoxError> {
    let store = match &config.plugin {
        Some(base) => {
            println!("the plugin is {base}");
            None
        }
        None => own_receiver().await?,
    };
    let plugin = config.plugin()?;
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

/// Starts the example's own plugin at the default address, unless another process listens there.
async fn own_receiver() -> Result<Option<Store>, BoxError> {
    let listener = match TcpListener::bind(DEFAULT_PLUGIN).await {
        Ok(listener) => listener,
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            println!("the plugin is the process that already listens on {DEFAULT_PLUGIN}");
            return Ok(None);
        }
        Err(error) => return Err(format!("{DEFAULT_PLUGIN}: {error}").into()),
    };
    println!("the plugin is the example's own receiver on {DEFAULT_PLUGIN}");
    let store = Store::open(Path::new(":memory:"))?;
    let router = receiver::router(store.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(Some(store))
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

    // These clients send requests until the gateway exits.
    let (answered, mut answers) = mpsc::unbounded_channel();
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let (visitor, answered) = (visitor.clone(), answered.clone());
        clients.spawn(async move {
            let mut id = None;
            while let Ok(answer) = visitor.chat(id.as_deref(), "hello").await {
                // Alternates between the last session and a new one.
                id = if id.is_none() { answer } else { None };
                let _ = answered.send(());
            }
        });
    }
    for _ in 0..100 {
        answers.recv().await;
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
