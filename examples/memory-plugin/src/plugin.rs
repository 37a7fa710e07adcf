//! The consumer: reports every session to the plugin.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::http::{
    Request, StatusCode, Uri,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tower::{ServiceBuilder, ServiceExt, retry::Policy, service_fn, util::BoxCloneSyncService};
use tower_session_end::{BoxError, Session, SessionEnd, SessionHook, SessionStart};

use crate::{
    base_url::{BaseUrl, InvalidBaseUrl},
    limits::{CallLimit, Pause},
};

/// The attribute with the project of a session.
pub const PROJECT: &str = "project";
/// The attribute with the first message of a session.
pub const PROMPT: &str = "prompt";

/// The wait before the second attempt; it doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait before an attempt, unless the plugin asks for a longer one.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// The number of concurrent calls. A drain ends thousands of sessions at once, and the plugin is a small server:
/// further calls wait here.
const CONNECTIONS: usize = 64;
/// The number of calls in the queue to the limit. Further ones wait for a place in it.
const QUEUE: usize = 1024;
/// The number of bytes of an answer that are read, for the error message.
const ANSWER: usize = 16 * 1024;

/// Reports the sessions to a memory plugin: `init` when a session starts, `complete` when it ends.
///
/// Both calls are idempotent. A call is retried if the plugin is unreachable, too slow, or answers with 408, 429 or 5xx.
/// Any other status that is not 2xx is an error at once. A call has no number of attempts: it is retried until the
/// deadline that the end carries. A start carries none; it is retried until the gateway no longer awaits its hook.
///
/// No more calls are sent than the [`CallLimit`] says. If the plugin answers 429 or 503 with `Retry-After`, no call is
/// sent before that. A call whose deadline is earlier fails at once, with what the plugin has said.
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
    /// The plugin at `base`. An attempt times out after `patience`, which begins when it is sent.
    ///
    /// # Errors
    ///
    /// [`InvalidBaseUrl`] if the URL is too long to append a path.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime: a task of it keeps the limit.
    pub fn new(base: &BaseUrl, patience: Duration, limit: CallLimit) -> Result<Self, InvalidBaseUrl> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        let pause = Pause::none();
        let calls = ServiceBuilder::new()
            .map_result(|answer: Result<Answer, BoxError>| answer?.into_result())
            .retry(Retry { pause: pause.clone(), wait: FIRST_WAIT })
            .buffer(QUEUE)
            .concurrency_limit(CONNECTIONS)
            .rate_limit(limit.calls, limit.time)
            .service(service_fn(move |call| attempt(http.clone(), pause.clone(), patience, call)));
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

    /// Whether an attempt at this time is useless.
    fn is_over_at(&self, time: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= time)
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

/// One attempt, unless the plugin wants no call before the deadline.
async fn attempt(
    http: Client<HttpConnector, Full<Bytes>>,
    pause: Pause,
    patience: Duration,
    call: Call,
) -> Result<Answer, BoxError> {
    let until = pause.until();
    if call.is_over_at(until) {
        return Err(format!("{}: the plugin wants no call before the deadline", call.url).into());
    }
    sleep_until(until).await;
    let url = call.url.clone();
    let answer = timeout(patience, post(http, &pause, call)).await;
    answer.map_err(|_| format!("{url}: no answer within {patience:?}"))?
}

async fn post(http: Client<HttpConnector, Full<Bytes>>, pause: &Pause, call: Call) -> Result<Answer, BoxError> {
    let Call { url, body, deadline: _ } = call;
    let request = Request::post(url.clone()).header(CONTENT_TYPE, "application/json").body(Full::from(body))?;
    let response = http.request(request).await.map_err(|error| format!("{url}: {}", with_sources(&error)))?;
    let status = response.status();
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
        && let Some(wait) = response.headers().get(RETRY_AFTER)
    {
        pause.obey(wait);
    }
    // Reads to the end, so that the connection can be reused. Only the status counts.
    let body = Limited::new(response.into_body(), ANSWER).collect().await;
    Ok(Answer { url, status, body: body.map(|body| body.to_bytes()).unwrap_or_default() })
}

/// The client's own error only names the failed step; its sources have the cause.
fn with_sources(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// Retries after temporary errors, until the deadline of the call.
#[derive(Clone, Debug)]
struct Retry {
    pause: Pause,
    /// The wait before the next attempt.
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
        let next = self.pause.until().max(Instant::now() + self.wait);
        self.wait = LONGEST_WAIT.min(self.wait * 2);
        (is_temporary && !call.is_over_at(next)).then(|| sleep_until(next))
    }

    fn clone_request(&mut self, call: &Call) -> Option<Call> {
        Some(call.clone())
    }
}
