//! Posts each `session_end` as JSON to a URL, with tower's timeout around each attempt and tower's retry around them.
//!
//! ```text
//! cargo run --example webhook
//! ```
//!
//! The receiver is unreliable. It answers the first two attempts for each event with 500. It stores the third but
//! never answers, so the attempt times out and the sender cannot know that it succeeded. The fourth attempt is
//! harmless because of its `Idempotency-Key`: the receiver already has the key, and answers 200. The program counts,
//! and fails if an event was stored twice or not at all.

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

/// The header by which a receiver recognises repeated attempts for one event.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A service that posts ends to `url` in up to `tries` attempts, each for up to `patience`.
pub(crate) fn webhook(
    url: Uri,
    tries: u32,
    patience: Duration,
) -> impl Service<SessionEnd, Response = (), Error = BoxError, Future: Send> + Clone + Send + 'static {
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    ServiceBuilder::new()
        // An end that the receiver never accepted is an error, so the report counts it as failed.
        .map_result(|answer: Result<StatusCode, BoxError>| match answer? {
            status if status.is_success() => Ok(()),
            status => Err(format!("the receiver answered {status}").into()),
        })
        .retry(Retry { left: tries.saturating_sub(1), wait: Duration::from_millis(20) })
        .timeout(patience)
        .service(service_fn(move |end| deliver(http.clone(), url.clone(), end)))
}

/// One attempt.
async fn deliver(http: Http, url: Uri, end: SessionEnd) -> Result<StatusCode, BoxError> {
    let request = Request::post(url)
        .header(CONTENT_TYPE, "application/json")
        .header(IDEMPOTENCY_KEY, end.idempotency_key().to_string())
        .body(Full::from(serde_json::to_vec(&end)?))?;
    let response = http.request(request).await?;
    let status = response.status();
    // Reads to the end, so that the connection can be reused.
    response.into_body().collect().await?;
    Ok(status)
}

/// Retries after temporary errors, and doubles the wait each time.
#[derive(Clone)]
struct Retry {
    left: u32,
    wait: Duration,
}

impl Policy<SessionEnd, StatusCode, BoxError> for Retry {
    type Future = Sleep;

    fn retry(&mut self, end: &mut SessionEnd, answer: &mut Result<StatusCode, BoxError>) -> Option<Sleep> {
        let is_temporary = match answer {
            Ok(status) => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Err(_) => true, // unreachable, disconnected, or too slow
        };
        // An attempt past the deadline is useless. Another attempt is made only if the time until the deadline covers
        // the wait and as much time again for the attempt; otherwise the report has the error of this one.
        let is_in_time = end.deadline.is_none_or(|deadline| Instant::now() + self.wait * 2 < deadline.into());
        self.left = self.left.checked_sub(1).filter(|_| is_temporary && is_in_time)?;
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

    // All attempts for an event are one hook in the pool and one delivery in the report.
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
        return Err("the shutdown was not clean".into());
    }
    inbox.check(&["telegram", "discord", "slack"])
}

/// The requests of the clients, and the SIGTERM of the operator.
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
    // This end is being delivered when SIGTERM arrives. The drain waits for its attempts too.
    post("/end", "discord").await?;
    println!("sending SIGTERM to this process");
    raise_sigterm()?;
    Ok(())
}

/// The receiver's record of an event.
#[derive(Default)]
struct Event {
    tries: u32,
    stored: u32,
    session: String,
}

/// The receiver's records, by `Idempotency-Key`.
#[derive(Clone, Default)]
struct Inbox(Arc<Mutex<HashMap<String, Event>>>);

impl Inbox {
    fn events(&self) -> MutexGuard<'_, HashMap<String, Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that there is one event for each session, and each was stored once.
    fn check(&self, sessions: &[&str]) -> Result<(), BoxError> {
        let events = self.events();
        let mut seen = BTreeMap::<&str, u32>::new();
        for (key, event) in events.iter() {
            if event.stored != 1 || event.tries < 4 {
                return Err(format!("{key}: stored {} times, in {} attempts", event.stored, event.tries).into());
            }
            *seen.entry(&event.session).or_default() += 1;
        }
        if seen != sessions.iter().map(|session| (*session, 1)).collect() {
            return Err(format!("expected one event for each of {sessions:?}, got {seen:?}").into());
        }
        println!("{} ends, and each of them was stored once", seen.len());
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
            event.stored += 1;
            event.session = end["sessionId"].as_str().unwrap_or_default().to_owned();
        }
        event.tries
    };
    let told = match tries {
        1 | 2 => "500",
        3 => "stored, no answer",
        _ => "200, already stored",
    };
    println!(
        "{:<9} {:<9} attempt {tries}: {told}",
        end["sessionId"].as_str().unwrap_or("?"),
        end["reason"].as_str().unwrap_or("?")
    );
    match tries {
        1 | 2 => StatusCode::INTERNAL_SERVER_ERROR,
        3 => std::future::pending().await,
        _ => StatusCode::OK,
    }
}

/// std has no safe call for this. The shell that runs `kill` is a child of this process.
fn raise_sigterm() -> io::Result<()> {
    let kill = Command::new("sh").args(["-c", "kill -s TERM $PPID"]).status()?;
    if kill.success() { Ok(()) } else { Err(io::Error::other(format!("kill: {kill}"))) }
}

#[tokio::main]
async fn main() -> ExitCode {
    // Shows warnings and errors; a successful run logs none.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();

    let outcome = match timeout(Duration::from_secs(30), run()).await {
        Ok(outcome) => outcome,
        Err(_) => Err("did not shut down within 30 s".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("webhook failed: {error}");
            ExitCode::FAILURE
        }
    }
}
