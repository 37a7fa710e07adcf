//! The consumer: reports every session to the plugin.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::http::{Request, StatusCode, Uri, header::CONTENT_TYPE};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep, sleep};
use tower::{ServiceBuilder, ServiceExt, retry::Policy, service_fn, util::BoxCloneSyncService};
use tower_session_end::{BoxError, Session, SessionEnd, SessionHook, SessionStart};

use crate::base_url::{BaseUrl, InvalidBaseUrl};

/// The attribute with the project of a session.
pub const PROJECT: &str = "project";
/// The attribute with the first message of a session.
pub const PROMPT: &str = "prompt";

/// The number of attempts per call. With the waits in between, the calls survive a plugin that is down for six seconds.
const TRIES: u32 = 8;
/// The wait before the second attempt; it doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The number of concurrent calls. A drain ends thousands of sessions at once, and the plugin is a small server:
/// further calls wait here.
const CONNECTIONS: usize = 64;
/// The number of bytes of an answer that are read, for the error message.
const ANSWER: usize = 16 * 1024;

/// Reports the sessions to a memory plugin: `init` when a session starts, `complete` when it ends.
///
/// Both calls are idempotent. A call is retried if the plugin is unreachable, too slow, or fails with 5xx. Any other
/// status that is not 2xx is an error at once.
///
/// The calls for one session are in order: `complete` is sent after `init` is finished, even if it failed, and the
/// `init` of a resumed session after its last `complete`. A plugin that executes an attempt after its timeout can
/// still reorder them, so set a timeout that only a hung plugin reaches.
#[derive(Clone)]
pub struct MemoryPlugin {
    init: Uri,
    complete: Uri,
    calls: BoxCloneSyncService<Call, (), BoxError>,
    tally: Arc<Tally>,
}

/// The numbers of accepted and of failed calls.
#[derive(Debug, Default)]
pub struct Tally {
    inits: AtomicU64,
    completes: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
    /// The numbers of accepted `init`s, of accepted `complete`s, and of failures of both.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        (
            self.inits.load(Ordering::Relaxed),
            self.completes.load(Ordering::Relaxed),
            self.failed.load(Ordering::Relaxed),
        )
    }
}

impl MemoryPlugin {
    /// The plugin at `base`. An attempt times out after `patience`.
    ///
    /// # Errors
    ///
    /// [`InvalidBaseUrl`] if the URL is too long to append a path.
    pub fn new(base: &BaseUrl, patience: Duration) -> Result<Self, InvalidBaseUrl> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        let calls = ServiceBuilder::new()
            .map_result(|answer: Result<Answer, BoxError>| answer?.into_result())
            .retry(Retry { left: TRIES - 1, wait: FIRST_WAIT })
            .concurrency_limit(CONNECTIONS)
            .timeout(patience)
            .service(service_fn(move |call| post(http.clone(), call)));
        Ok(Self {
            init: base.at("/api/sessions/init")?,
            complete: base.at("/api/sessions/complete")?,
            calls: BoxCloneSyncService::new(calls),
            tally: Arc::default(),
        })
    }

    /// The counts of the calls so far.
    #[must_use]
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    async fn call(&self, accepted: &AtomicU64, call: Call) -> Result<(), BoxError> {
        let outcome = self.calls.clone().oneshot(call).await;
        let count = if outcome.is_ok() { accepted } else { &self.tally.failed };
        count.fetch_add(1, Ordering::Relaxed);
        outcome
    }
}

impl fmt::Debug for MemoryPlugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { init, complete, calls: _, tally } = self;
        let mut debug = f.debug_struct("MemoryPlugin");
        debug.field("init", init).field("complete", complete).field("tally", tally).finish_non_exhaustive()
    }
}

impl SessionHook for MemoryPlugin {
    async fn session_start(&self, start: SessionStart) -> Result<(), BoxError> {
        let Session { id, attributes, .. } = &start.session;
        let attribute = |name: &str| attributes.get(name).map_or("", String::as_str);
        let body = json!({ "contentSessionId": id, "project": attribute(PROJECT), "prompt": attribute(PROMPT) });
        self.call(&self.tally.inits, Call::new(&self.init, &body, None)).await
    }

    async fn session_end(&self, end: SessionEnd) -> Result<(), BoxError> {
        let body = json!({ "contentSessionId": end.session.id });
        self.call(&self.tally.completes, Call::new(&self.complete, &body, end.deadline)).await
    }

    fn name(&self) -> &str {
        "memory plugin"
    }
}

/// One call.
#[derive(Clone, Debug)]
struct Call {
    url: Uri,
    body: Bytes,
    /// The time after which the call is useless.
    deadline: Option<Instant>,
}

impl Call {
    fn new(url: &Uri, body: &Value, deadline: Option<std::time::Instant>) -> Self {
        Self { url: url.clone(), body: body.to_string().into(), deadline: deadline.map(Into::into) }
    }
}

/// The answer of the plugin to one attempt.
#[derive(Debug)]
struct Answer {
    url: Uri,
    status: StatusCode,
    body: Bytes,
}

impl Answer {
    fn into_result(self) -> Result<(), BoxError> {
        let Self { url, status, body } = self;
        if status.is_success() {
            return Ok(());
        }
        let body = String::from_utf8_lossy(&body);
        let said: String = body.trim().chars().filter(|char| !char.is_control()).take(200).collect();
        Err(format!("{url}: {status} {said}").trim_end().into())
    }
}

async fn post(http: Client<HttpConnector, Full<Bytes>>, call: Call) -> Result<Answer, BoxError> {
    let Call { url, body, deadline: _ } = call;
    let request = Request::post(url.clone()).header(CONTENT_TYPE, "application/json").body(Full::from(body))?;
    let response = http.request(request).await.map_err(|error| format!("{url}: {}", with_sources(&error)))?;
    let status = response.status();
    // Reads to the end, so that the connection can be reused. Only the status counts.
    let body = Limited::new(response.into_body(), ANSWER).collect().await;
    Ok(Answer { url, status, body: body.map(|body| body.to_bytes()).unwrap_or_default() })
}

/// The client's own error only names the failed step; its sources have the cause.
fn with_sources(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// Retries after temporary errors.
#[derive(Clone, Debug)]
struct Retry {
    left: u32,
    wait: Duration,
}

impl Policy<Call, Answer, BoxError> for Retry {
    type Future = Sleep;

    fn retry(&mut self, call: &mut Call, answer: &mut Result<Answer, BoxError>) -> Option<Sleep> {
        let is_temporary = match answer {
            Ok(Answer { status, .. }) => {
                status.is_server_error()
                    || matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            }
            Err(_) => true, // unreachable, disconnected, or too slow
        };
        // An attempt past the deadline is useless.
        let is_in_time = call.deadline.is_none_or(|deadline| Instant::now() + self.wait * 2 < deadline);
        self.left = self.left.checked_sub(1).filter(|_| is_temporary && is_in_time)?;
        self.wait *= 2;
        Some(sleep(self.wait / 2))
    }

    fn clone_request(&mut self, call: &Call) -> Option<Call> {
        Some(call.clone())
    }
}
