//! Many clients over real sockets open, end and compact sessions while the stop comes at a random moment.
//!
//! Three rounds; `STORM_ROUNDS=50` for the long form, `STORM_SEED` to repeat one that failed.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::support::{Random, Recorder, assert_sum, h1_client, h2_client, serve, storm_seeds, within};
use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::post,
};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use tokio::sync::Notify;
use tower_session_end::{ActiveSessions, Phase, SessionEnd, SessionId};

const CLIENTS: u64 = 500;
/// Tasks that share one connection over HTTP/2, each with a stream of its own.
const STREAMS: u64 = 25;

/// Ids of sessions that a head opened.
type Opened = Arc<Mutex<Vec<String>>>;

fn remember(opened: &Opened, response: &http::response::Parts) {
    if response.status == StatusCode::OK && response.headers.contains_key("x-opened") {
        opened.lock().unwrap().push(response.headers["x-session-id"].to_str().unwrap().to_owned());
    }
}

/// The gateway: it believes whatever id it is told, and takes a few turns for each answer.
fn host(sessions: &ActiveSessions, left: Opened) -> Router {
    let ids = Arc::new(AtomicU64::new(0));
    let new_id = move || format!("s-{}", ids.fetch_add(1, Ordering::SeqCst));
    let (open, compact) = (new_id.clone(), new_id);
    let turns = async |n: u64| {
        for _ in 0..n {
            tokio::task::yield_now().await;
        }
    };
    Router::new()
        .route(
            "/open",
            post(async move || {
                turns(3).await;
                [("x-session-id", open()), ("x-opened", String::new())].into_response()
            }),
        )
        .route(
            "/compact",
            post(async move |old: SessionId| {
                turns(2).await;
                let (new, old) = (compact(), old.to_string());
                [("x-session-id", new), ("x-session-compacted-from", old), ("x-opened", String::new())].into_response()
            }),
        )
        .route(
            "/end",
            post(async move || {
                turns(2).await;
                ([("x-session-end", "deleted")], "over").into_response()
            }),
        )
        .route(
            "/chat",
            post(async move |id: SessionId| {
                turns(1).await;
                ([("x-session-id", id.to_string())], "chat").into_response()
            }),
        )
        .layer(sessions.layer())
        // What the layer lets out, whether or not the client comes to see it.
        .layer(axum::middleware::map_response(move |response: Response| {
            let (parts, body) = response.into_parts();
            remember(&left, &parts);
            std::future::ready(Response::from_parts(parts, body))
        }))
}

/// Longer than any answer takes, and shorter than a round's patience with its clients.
const HEARING: std::time::Duration = std::time::Duration::from_secs(10);

/// What the clients saw.
#[derive(Clone, Default)]
struct Clients {
    seen: Opened,
    /// Bodies that were torn after their head had come.
    torn: Arc<AtomicU64>,
    answers: Arc<AtomicU64>,
    /// Requests that came to nobody, and were given up.
    unheard: Arc<AtomicU64>,
    /// Told at every answer.
    news: Arc<Notify>,
}

impl Clients {
    /// One request; false if there was no answer, or none of the host's.
    async fn call(
        &self,
        client: &Client<HttpConnector, Body>,
        base: &str,
        path: &str,
        id: &mut Option<String>,
    ) -> bool {
        let mut request = Request::post(format!("{base}{path}"));
        if let Some(id) = id {
            request = request.header("x-session-id", &*id);
        }
        let answer = tokio::time::timeout(HEARING, client.request(request.body(Body::empty()).unwrap())).await;
        let Ok(answer) = answer else {
            // A pooled client may fail to learn that nobody listens any more. What came to the host is counted there:
            // a head that left and was not seen, or a request without a head, is found by the checks of the round.
            self.unheard.fetch_add(1, Ordering::SeqCst);
            return false;
        };
        let Ok(response) = answer else { return false };
        let (parts, body) = response.into_parts();
        remember(&self.seen, &parts);
        if within("a body", body.collect()).await.is_err() {
            self.torn.fetch_add(1, Ordering::SeqCst);
        }
        self.answers.fetch_add(1, Ordering::SeqCst);
        self.news.notify_one();
        *id = parts.headers.get("x-session-id").map(|id| id.to_str().unwrap().to_owned());
        parts.status == StatusCode::OK
    }

    /// Until the server is gone.
    async fn live(self, client: Client<HttpConnector, Body>, base: String, mut random: Random) {
        let mut id = None;
        loop {
            let path = match (&id, random.below(8)) {
                (None, _) => "/open",
                (Some(_), 0) => "/end",
                (Some(_), 1) => "/compact",
                // It forgets its session, which is then the drain's to end.
                (Some(_), 2) => {
                    id = None;
                    "/open"
                }
                (Some(_), _) => "/chat",
            };
            // An impatient one asks twice for the same, at the same time.
            let mut again = id.clone();
            let twice = path != "/open" && random.below(2) == 0;
            let again = async { !twice || self.call(&client, &base, path, &mut again).await };
            let (first, second) = tokio::join!(self.call(&client, &base, path, &mut id), again);
            if !(first && second) {
                return;
            }
        }
    }

    async fn answers(&self, n: u64) {
        while self.answers.load(Ordering::SeqCst) < n {
            self.news.notified().await;
        }
    }
}

fn sorted(ids: &Opened) -> Vec<String> {
    let mut ids = ids.lock().unwrap().clone();
    ids.sort();
    ids
}

async fn round(seed: u64) {
    let mut random = Random::new(seed);
    let recorder = Recorder::default();
    let sessions = recorder
        .hooks(ActiveSessions::builder())
        .on_session_end(async |_: SessionEnd| tokio::task::yield_now().await)
        .build()
        .unwrap();
    let left = Opened::default();
    let mut server = serve(&sessions, host(&sessions, Arc::clone(&left))).await;
    let base = format!("http://{}", server.addr);

    let clients = Clients::default();
    let h1 = h1_client();
    let mut h2 = h2_client();
    let mut living = tokio::task::JoinSet::new();
    for n in 0..CLIENTS {
        if n % STREAMS == 0 {
            h2 = h2_client();
        }
        let client = if n % 2 == 0 { h1.clone() } else { h2.clone() };
        living.spawn(clients.clone().live(client, base.clone(), random.fork()));
    }
    let moment = random.below(3000);
    within("the moment of the stop", clients.answers(moment)).await;
    server.signal();
    let report = server.report().await;
    while let Some(client) = within("the clients' end", living.join_next()).await {
        client.unwrap();
    }

    let unheard = clients.unheard.load(Ordering::SeqCst);
    let about = format!("seed {seed}, stopped after {moment} answers, {unheard} unheard: {report}");
    if unheard > 0 {
        println!("{about}");
    }
    let left = sorted(&left);
    assert_eq!(left.iter().collect::<BTreeSet<_>>().len(), left.len(), "the host repeated itself; {about}");
    let mut ended: Vec<_> = recorder.ends().iter().map(|end| end.session.id.to_string()).collect();
    ended.sort();
    assert_eq!(ended, left, "exactly one end for each session whose head left; {about}");
    assert_eq!(recorder.started(), left, "{about}");
    assert_eq!(sorted(&clients.seen), left, "every head came to its client; {about}");
    assert_eq!(clients.torn.load(Ordering::SeqCst), 0, "a body was cut short; {about}");

    assert!(report.is_clean() && report.signalled && !report.connections.timed_out, "{about}");
    assert_sum(&report.drain);
    assert_sum(&report.sessions);
    assert_eq!(report.connections.open_responses, 0, "{about}");
    assert!(sessions.is_empty() && sessions.phase() == Phase::Closed, "{about}");
    let at_the_stop = recorder.ends().iter().filter(|end| end.reason.may_resume()).count() as u64;
    assert!(at_the_stop <= report.sessions.ended, "{about}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g01_g08_every_session_in_a_response_head_gets_exactly_one_end() {
    let _alone = crate::ONE_AT_A_TIME.lock().await;
    for seed in storm_seeds() {
        round(seed).await;
    }
}
