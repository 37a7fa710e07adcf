//! The consumer: tells the plugin of every session.

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

/// The attribute of a session that names its project.
pub const PROJECT: &str = "project";
/// The attribute of a session with what was said in it first.
pub const PROMPT: &str = "prompt";

/// How often a call is tried: with the waits in between, a plugin that is gone for six seconds is missed by nobody.
const TRIES: u32 = 8;
/// Before the second try; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Calls that are under way at the same time. A drain ends thousands of sessions at once, and a plugin is a small
/// server: what would be too much for it waits here.
const CONNECTIONS: usize = 64;
/// What is read of an answer, to be able to say what it was.
const ANSWER: usize = 16 * 1024;

/// Tells a memory plugin of the sessions: `init` when one starts, `complete` when it ends.
///
/// Both are safe to say twice, so what fails because the plugin is not there, is too slow, or has a problem of its own
/// (5xx) is tried again, a few times. What it refuses (anything else that is not 2xx) is an error at once.
///
/// The calls for one session come in order: `complete` is said only after `init` is over, whatever became of it, and
/// the `init` of a session that is resumed only after its last `complete`. A plugin that carries out a try after we have
/// given it up can still mix them up, so be patient with it: the timeout is for one that hangs.
#[derive(Clone)]
pub struct MemoryPlugin {
    init: Uri,
    complete: Uri,
    calls: BoxCloneSyncService<Call, (), BoxError>,
    tally: Arc<Tally>,
}

/// How many calls the plugin has accepted, and how many were given up.
#[derive(Debug, Default)]
pub struct Tally {
    inits: AtomicU64,
    completes: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
    /// Accepted `init`s, accepted `complete`s, and failures of either.
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
    /// The plugin at `base`. A try that takes longer than `patience` is given up.
    ///
    /// # Errors
    ///
    /// [`InvalidBaseUrl`] if the URL is too long for a path behind it.
    pub fn new(base: &BaseUrl, patience: Duration) -> Result<Self, InvalidBaseUrl> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        let calls = ServiceBuilder::new()
            .map_result(|answer: Result<Answer, BoxError>| answer?.into_result())
            .retry(Again { left: TRIES - 1, wait: FIRST_WAIT })
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

    /// What has become of the calls.
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

/// One thing to be said.
#[derive(Clone, Debug)]
struct Call {
    url: Uri,
    body: Bytes,
    /// When nobody waits for it any more.
    deadline: Option<Instant>,
}

impl Call {
    fn new(url: &Uri, body: &Value, deadline: Option<std::time::Instant>) -> Self {
        Self { url: url.clone(), body: body.to_string().into(), deadline: deadline.map(Into::into) }
    }
}

/// What the plugin said to one try.
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
    // To its end, so that the connection can be used again. What counts is the status.
    let body = Limited::new(response.into_body(), ANSWER).collect().await;
    Ok(Answer { url, status, body: body.map(|body| body.to_bytes()).unwrap_or_default() })
}

/// The client's own error says only in which step it failed.
fn with_sources(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

/// Tries again after what may get better by itself.
#[derive(Clone, Debug)]
struct Again {
    left: u32,
    wait: Duration,
}

impl Policy<Call, Answer, BoxError> for Again {
    type Future = Sleep;

    fn retry(&mut self, call: &mut Call, answer: &mut Result<Answer, BoxError>) -> Option<Sleep> {
        let may_get_better = match answer {
            Ok(Answer { status, .. }) => {
                status.is_server_error()
                    || matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            }
            Err(_) => true, // nobody there, cut off, or too slow
        };
        // One more try is for nothing if nobody waits for it any more.
        let is_in_time = call.deadline.is_none_or(|deadline| Instant::now() + self.wait * 2 < deadline);
        self.left = self.left.checked_sub(1).filter(|_| may_get_better && is_in_time)?;
        self.wait *= 2;
        Some(sleep(self.wait / 2))
    }

    fn clone_request(&mut self, call: &Call) -> Option<Call> {
        Some(call.clone())
    }
}
