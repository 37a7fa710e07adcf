//! A configurable host and its clients.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use mcp_gateway::{Connected, Mount, NotifyingManager, Tools, connect, serve};
use reqwest::{Client, Method, RequestBuilder, Response, header::HeaderValue};
use rmcp::{
    ClientLifecycleMode, ServerHandler,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService,
        session::{SessionManager, local::LocalSessionManager},
    },
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, EndReason, McpProtocol, ShutdownReport};

use crate::recorder::{Recorder, assert_sum};

/// Longer than any step of a test takes on a busy machine; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"test","version":"0"}}}"#;
pub(crate) const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
pub(crate) const PING: &str = r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#;
pub(crate) const CALL: &str =
    r#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"remember","arguments":{"text":"milk"}}}"#;

/// Waits, with a limit.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("stuck: {what}"),
    }
}

/// Polls a condition until it holds, with a limit.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            sleep(Duration::from_millis(2)).await;
        }
    };
    within(what, wait).await;
}

/// Names and values of headers, as raw bytes.
pub(crate) type Headers<'a> = &'a [(&'static str, &'a [u8])];

/// The configuration of a host.
pub(crate) struct Setup {
    pub(crate) mount: Mount,
    pub(crate) protocol: McpProtocol,
    pub(crate) config: StreamableHttpServerConfig,
    pub(crate) recorder: Recorder,
    pub(crate) builder: ActiveSessionsBuilder,
    /// The time without a message after which rmcp ends a session; short only in tests of expiry.
    pub(crate) keep_alive: Duration,
}

impl Setup {
    pub(crate) fn new(mount: Mount) -> Self {
        let recorder = Recorder::default();
        let builder = recorder.builder();
        let (protocol, config) = (McpProtocol::new(), StreamableHttpServerConfig::default());
        Self { mount, protocol, config, recorder, builder, keep_alive: PATIENCE * 2 }
    }

    /// A session that rmcp does not know any more ends soon after a 404.
    pub(crate) fn doubting(mount: Mount) -> Self {
        let setup = Self::new(mount);
        Self { builder: setup.builder.doubt_timeout(Duration::from_millis(300)), ..setup }
    }

    /// rmcp's own session manager: only the layer sees sessions.
    pub(crate) async fn plain(self) -> Host<LocalSessionManager> {
        self.start(|local, _| local, Ok).await
    }

    /// The notifying session manager.
    pub(crate) async fn telling(self) -> Host<NotifyingManager> {
        self.start(NotifyingManager::new, Ok).await
    }

    pub(crate) async fn start<M: SessionManager, H: ServerHandler + Send + 'static>(
        self,
        manager: impl FnOnce(LocalSessionManager, &ActiveSessions) -> M,
        handler: impl Fn(Tools) -> io::Result<H> + Send + Sync + 'static,
    ) -> Host<M> {
        let Self { mount, protocol, config, recorder, builder, keep_alive } = self;
        let sessions = builder.build().unwrap();
        let mut local = LocalSessionManager::default();
        local.session_config.keep_alive = Some(keep_alive);
        let manager = Arc::new(manager(local, &sessions));
        let (thinking, calls) = watch::channel(0);
        let tools = move || handler(Tools::new(thinking.clone()));
        let host = StreamableHttpService::new(tools, Arc::clone(&manager), config);
        let (stop, stopped) = oneshot::channel();
        let signal = async { stopped.await.unwrap_or(EndReason::Unknown) };
        let (address, served) = serve(mount, host, protocol, &sessions, signal).await.unwrap();
        let finished = tokio::spawn(async move { served.await.unwrap() });
        Host { address, sessions, recorder, manager, calls, http: http(), stop: Some(stop), finished }
    }
}

fn http() -> Client {
    Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap()
}

/// A running host.
pub(crate) struct Host<M> {
    pub(crate) address: SocketAddr,
    pub(crate) sessions: ActiveSessions,
    pub(crate) recorder: Recorder,
    pub(crate) manager: Arc<M>,
    /// The number of calls of `think` so far.
    pub(crate) calls: watch::Receiver<usize>,
    http: Client,
    stop: Option<oneshot::Sender<EndReason>>,
    finished: JoinHandle<ShutdownReport>,
}

/// The answer that a client received.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The id in its head.
    pub(crate) id: Option<String>,
    pub(crate) body: String,
}

impl<M: SessionManager> Host<M> {
    /// rmcp's client, by `initialize`.
    pub(crate) async fn connect(&self) -> Connected {
        within("connect", connect(self.address, ClientLifecycleMode::Initialize)).await.unwrap()
    }

    /// Sends a request and returns the response head; the body may be a stream.
    pub(crate) async fn send(&self, method: Method, headers: Headers<'_>, body: &'static str) -> Response {
        within("a head", self.request(method, headers, body).send()).await.unwrap()
    }

    fn request(&self, method: Method, headers: Headers<'_>, body: &'static str) -> RequestBuilder {
        let accept = "application/json, text/event-stream";
        let mut request = self.http.request(method, format!("http://{}/mcp", self.address)).header("accept", accept);
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/json").body(body);
        }
        request
    }

    /// Sends a request to a host that may have shut down, and ignores the answer.
    pub(crate) async fn try_send(&self, method: Method, id: &str, body: &'static str) {
        let request = self.request(method, &[("mcp-session-id", id.as_bytes())], body);
        if let Ok(response) = within("a head, or none", request.send()).await {
            let _ = within("a body, or its end", response.bytes()).await;
        }
    }

    /// Sends a request and returns the whole answer.
    pub(crate) async fn ask(&self, method: Method, headers: Headers<'_>, body: &'static str) -> Answer {
        whole(self.send(method, headers, body).await).await
    }

    pub(crate) async fn post(&self, id: &str, body: &'static str) -> Answer {
        self.ask(Method::POST, &[("mcp-session-id", id.as_bytes())], body).await
    }

    pub(crate) async fn get(&self, id: &str) -> Response {
        self.send(Method::GET, &[("mcp-session-id", id.as_bytes())], "").await
    }

    pub(crate) async fn delete(&self, id: &str) -> Answer {
        self.ask(Method::DELETE, &[("mcp-session-id", id.as_bytes())], "").await
    }

    /// Starts a session, without rmcp's client and its stream.
    pub(crate) async fn open(&self) -> String {
        let answer = self.ask(Method::POST, &[], INITIALIZE).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let id = answer.id.expect("a new session must have an id");
        assert_eq!(self.post(&id, INITIALIZED).await.status, 202);
        id
    }

    /// Waits until rmcp has ended the session.
    pub(crate) async fn lost(&self, id: &str) {
        let id = id.into();
        until("rmcp ends the session", async || !self.manager.has_session(&id).await.unwrap()).await;
    }

    /// Waits until the hook has received `count` ends.
    pub(crate) async fn ends(&self, count: usize) {
        until("the hook receives the ends", async || self.recorder.ends().len() >= count).await;
    }

    pub(crate) fn signal(&mut self) {
        self.stop.take().unwrap().send(EndReason::Shutdown).unwrap();
    }

    /// Waits for `finish`; asserts that each generation had exactly one end, and that no connection timed out.
    pub(crate) async fn stopped(self) -> (Recorder, ShutdownReport) {
        let report = within("finish", self.finished).await.unwrap();
        assert!(report.is_clean(), "{report}");
        assert_sum(&report.sessions);
        assert!(self.sessions.is_empty());
        self.recorder.assert_no_generation_ended_twice();
        let (starts, ends) = (self.recorder.starts(), self.recorder.ends());
        assert_eq!(starts.len(), ends.len(), "{:?} {:?}", self.recorder.started(), self.recorder.ended());
        (self.recorder, report)
    }

    /// Sends the signal and waits for the shutdown; returns the ends.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        self.signal();
        self.stopped().await.0.ended()
    }
}

async fn whole(response: Response) -> Answer {
    let status = response.status().as_u16();
    let id = response.headers().get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned());
    let body = within("a body", response.text()).await.unwrap();
    Answer { status, id, body }
}
