//! Each `session_end` posted as JSON to a URL, with tower's timeout around each try, and tower's retry around them.
//!
//! ```text
//! cargo run --example webhook
//! ```
//!
//! The receiver is a trying one. Of each event it turns down the first two tries with 500. The third it takes in, but
//! never says so: only a timeout gets the sender out of that, and the sender cannot know. So there is a fourth try, and
//! what makes that harmless is the `Idempotency-Key`, which is the end's `idempotency_key()`: the receiver sees that it has this one,
//! and says 200. The program counts, and fails if an event was taken in twice, or not at all.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    process::{Command, ExitCode},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::post,
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    net::TcpListener,
    time::{Instant, Sleep, sleep, timeout},
};
use tower::{Service, ServiceBuilder, retry::Policy, service_fn};
use tower_session_end::{ActiveSessions, BoxError, SessionEnd, signal};
use tracing_subscriber::filter::LevelFilter;

type Http = Client<HttpConnector, Full<Bytes>>;

/// The header that tells a receiver which event it is, however often it comes.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A service that posts ends to `url`: up to `tries` times, each of them for up to `patience`.
pub(crate) fn webhook(
    url: Uri,
    tries: u32,
    patience: Duration,
) -> impl Service<SessionEnd, Response = (), Error = BoxError, Future: Send> + Clone + Send + 'static {
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    ServiceBuilder::new()
        // What is not accepted in the end is an error, so that reports count it as failed.
        .map_result(|answer: Result<StatusCode, BoxError>| match answer? {
            status if status.is_success() => Ok(()),
            status => Err(format!("the receiver says {status}").into()),
        })
        .retry(Again { left: tries.saturating_sub(1), wait: Duration::from_millis(20) })
        .timeout(patience)
        .service(service_fn(move |end| deliver(http.clone(), url.clone(), end)))
}

/// One try.
async fn deliver(http: Http, url: Uri, end: SessionEnd) -> Result<StatusCode, BoxError> {
    let request = Request::post(url)
        .header(CONTENT_TYPE, "application/json")
        .header(IDEMPOTENCY_KEY, end.idempotency_key().to_string())
        .body(Full::from(serde_json::to_vec(&end)?))?;
    let response = http.request(request).await?;
    let status = response.status();
    // To its end, so that the connection can be used again.
    response.into_body().collect().await?;
    Ok(status)
}

/// Tries again after what may get better by itself, and waits twice as long each time.
#[derive(Clone)]
struct Again {
    left: u32,
    wait: Duration,
}

impl Policy<SessionEnd, StatusCode, BoxError> for Again {
    type Future = Sleep;

    fn retry(&mut self, end: &mut SessionEnd, answer: &mut Result<StatusCode, BoxError>) -> Option<Sleep> {
        let may_get_better = match answer {
            Ok(status) => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Err(_) => true, // nobody there, cut off, or too slow
        };
        // One more try is for nothing if nobody waits for it any more: it has as much time as the wait before it, or it
        // is not begun, and the report has the error of this one.
        let is_in_time = end.deadline.is_none_or(|deadline| Instant::now() + self.wait * 2 < deadline.into());
        self.left = self.left.checked_sub(1).filter(|_| may_get_better && is_in_time)?;
        self.wait *= 2;
        Some(sleep(self.wait / 2))
    }

    fn clone_request(&mut self, end: &SessionEnd) -> Option<SessionEnd> {
        Some(end.clone())
    }
}

async fn run() -> Result<(), BoxError> {
    let inbox = Inbox::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url: Uri = format!("http://{}/hooks/session-end", listener.local_addr()?).parse()?;
    let receiver = Router::new().route("/hooks/session-end", post(receive)).with_state(inbox.clone());
    let receiver = tokio::spawn(async move { axum::serve(listener, receiver).await });

    // All of the tries of an event are one hook to the pool, and one delivery to the report.
    let sessions = ActiveSessions::builder()
        .drain_timeout(Duration::from_secs(5))
        .session_end_service(webhook(url, 6, Duration::from_millis(300)))
        .build()?;
    let app = Router::new()
        .route("/open/{key}", post(async |Path(key): Path<String>| [("x-session-id", key)]))
        .route("/end", post(async || [("x-session-end", "deleted")]))
        .layer(sessions.layer());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signal::terminate()));

    let served = async { Ok(sessions.finish(server).await.into_result()?) };
    let (report, ()) = tokio::try_join!(served, visit(address))?;
    receiver.abort();
    println!("{report}");
    if !report.is_clean() {
        return Err("the stop was not clean".into());
    }
    inbox.check(&["telegram", "discord", "slack"])
}

/// What the clients do, and the operator.
async fn visit(address: SocketAddr) -> Result<(), BoxError> {
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    let post = async |path: &str, session: &str| -> Result<(), BoxError> {
        let request = Request::post(format!("http://{address}{path}")).header("x-session-id", session);
        let response: Response<Incoming> = http.request(request.body(Full::default())?).await?;
        if response.status().is_success() { Ok(()) } else { Err(format!("{path}: {}", response.status()).into()) }
    };
    for key in ["telegram", "discord", "slack"] {
        post(&format!("/open/{key}"), key).await?;
    }
    // This end is under way when the process is told to stop: the drain waits for its tries too.
    post("/end", "discord").await?;
    println!("telling myself to stop, with SIGTERM");
    raise_sigterm()?;
    Ok(())
}

/// What the receiver knows of an event.
#[derive(Default)]
struct Event {
    tries: u32,
    taken_in: u32,
    session: String,
}

/// The receiver's memory, by `Idempotency-Key`.
#[derive(Clone, Default)]
struct Inbox(Arc<Mutex<HashMap<String, Event>>>);

impl Inbox {
    fn events(&self) -> MutexGuard<'_, HashMap<String, Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One event for each session, and each one taken in once.
    fn check(&self, sessions: &[&str]) -> Result<(), BoxError> {
        let events = self.events();
        let mut seen = BTreeMap::<&str, u32>::new();
        for (key, event) in events.iter() {
            if event.taken_in != 1 || event.tries < 4 {
                return Err(format!("{key}: taken in {} times, in {} tries", event.taken_in, event.tries).into());
            }
            *seen.entry(&event.session).or_default() += 1;
        }
        if seen != sessions.iter().map(|session| (*session, 1)).collect() {
            return Err(format!("one event expected for each of {sessions:?}, not {seen:?}").into());
        }
        println!("{} ends, and each of them was taken in once", seen.len());
        Ok(())
    }
}

async fn receive(State(inbox): State<Inbox>, headers: HeaderMap, Json(end): Json<serde_json::Value>) -> StatusCode {
    let Some(key) = headers.get(IDEMPOTENCY_KEY).and_then(|key| key.to_str().ok()) else {
        return StatusCode::BAD_REQUEST;
    };
    let tries = {
        let mut events = inbox.events();
        let event = events.entry(key.to_owned()).or_default();
        event.tries += 1;
        if event.tries == 3 {
            event.taken_in += 1;
            event.session = end["sessionId"].as_str().unwrap_or_default().to_owned();
        }
        event.tries
    };
    let told = match tries {
        1 | 2 => "500",
        3 => "taken in, and no answer",
        _ => "200, is here already",
    };
    println!(
        "{:<9} {:<9} try {tries}: {told}",
        end["sessionId"].as_str().unwrap_or("?"),
        end["reason"].as_str().unwrap_or("?")
    );
    match tries {
        1 | 2 => StatusCode::INTERNAL_SERVER_ERROR,
        3 => std::future::pending().await,
        _ => StatusCode::OK,
    }
}

/// There is no safe call for this in std, but any shell has `kill`, and its parent is this process.
fn raise_sigterm() -> io::Result<()> {
    let kill = Command::new("sh").args(["-c", "kill -s TERM $PPID"]).status()?;
    if kill.success() { Ok(()) } else { Err(io::Error::other(format!("kill: {kill}"))) }
}

#[tokio::main]
async fn main() -> ExitCode {
    // The crate says what went wrong; in a good run that is nothing.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();

    let outcome = match timeout(Duration::from_secs(30), run()).await {
        Ok(outcome) => outcome,
        Err(_) => Err("did not stop within 30 s".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("webhook failed: {error}");
            ExitCode::FAILURE
        }
    }
}
