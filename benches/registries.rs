//! What a registry costs a birth, and a request of a known session: SQLite and Redis, `Strict` and `Relaxed`.
//!
//! Births come as they do in a server: each is a response with a new id that goes through the layer, and what it waits is
//! the time until the layer lets its head go. One, 100 and 1,000 of them are under way at a time, until so many have been
//! born or the time is over. "Written" is when the last of them is on record too, which in `Relaxed` is later. The registry
//! stands in another one that counts: "births a commit" is how many of them one call of `apply` carried, which is one
//! transaction in SQLite, and one or a few scripts in Redis.
//!
//! Then there are requests of known sessions, with the id repeated in the response: if one of them makes the layer call the
//! registry, the benchmark fails.
//!
//! SQLite has a real file in the system's temporary directory (`TMPDIR`), with the defaults of `SqliteRegistry`; Redis is a
//! server of its own on a free port (`$REDIS_SERVER`, or what is in the path; without one its rows are left out). Every row
//! begins with an empty file, or an empty server.
//!
//! ```text
//! cargo bench -p benches --bench registries                  # about 40 s
//! cargo bench -p benches --bench registries -- --seconds 1
//! ```
//!
//! Without `--bench` there are a few births for each row.

#[path = "registries/counting.rs"]
mod counting;
mod line;
mod machine;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../tests/support/redis_server.rs"]
mod redis_server;
#[path = "registries/stores.rs"]
mod stores;

use std::{
    convert::Infallible,
    env,
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use counting::{Calls, Counting};
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::Empty;
use machine::{Fallible, Spread, describe};
use stores::{Kind, Store};
use tokio::task::JoinSet;
use tower_layer::Layer;
use tower_service::Service;
use tower_session_end::{
    ActiveSessions, SessionEnd, SessionService,
    registry::{Durability, Registry},
};

const UNDER_WAY: [usize; 3] = [1, 100, 1_000];

/// A registry that is out of reach for longer is not measured.
const PATIENCE: Duration = Duration::from_secs(30);

static ID: HeaderName = HeaderName::from_static("x-session-id");

/// How much is done for a row.
#[derive(Clone, Copy, Debug)]
struct Amount {
    births: usize,
    time: Duration,
    requests: usize,
}

fn main() -> Fallible<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let mut amount = if args.iter().any(|arg| arg == "--bench") {
        Amount { births: 50_000, time: Duration::from_secs(3), requests: 100_000 }
    } else {
        Amount { births: 200, time: Duration::from_millis(200), requests: 100 }
    };
    if let Some(flag) = args.iter().position(|arg| arg == "--seconds") {
        amount.time = Duration::from_secs_f64(args.get(flag + 1).ok_or("how many seconds?")?.parse()?);
    }
    println!("{}\n", describe());
    println!(
        "| registry | durability | under way | births | births/s | written/s | waits p50, ms | p99, ms | births a commit | degraded | calls for known sessions |"
    );
    println!("|---|---|{}", "---:|".repeat(9));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for kind in [Kind::Sqlite, Kind::Redis] {
        for durability in [Durability::Strict, Durability::Relaxed] {
            for under_way in UNDER_WAY {
                let Some(store) = Store::new(kind)? else {
                    println!(
                        "\n{} is left out: there is no redis-server in the path, and no $REDIS_SERVER",
                        kind.name()
                    );
                    return Ok(());
                };
                let row = Row { kind, durability, under_way, amount };
                runtime.block_on(async {
                    match &store {
                        Store::Sqlite(dir) => row.measure(dir.registry()?).await,
                        Store::Redis(server) => row.measure(stores::redis(server).await?).await,
                    }
                })?;
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
struct Row {
    kind: Kind,
    durability: Durability,
    under_way: usize,
    amount: Amount,
}

impl Row {
    async fn measure(self, registry: impl Registry) -> Fallible<()> {
        let calls = Arc::new(Calls::default());
        let sessions = ActiveSessions::builder()
            .max_sessions(usize::MAX)
            .on_session_end(async |_: SessionEnd| {})
            .registry(Counting::new(registry, Arc::clone(&calls)))
            .durability(self.durability)
            .build()?;
        let begun = Instant::now();
        let waits = self.births(&sessions).await?;
        let let_go = begun.elapsed();
        until_written(&sessions).await?;
        let written = begun.elapsed();
        let (commits, changes) = (calls.applies(), calls.changes());
        if changes < waits.len() && sessions.degradations() == 0 {
            return Err(format!("{} births, but {changes} changes", waits.len()).into());
        }
        let group = changes as f64 / commits as f64;
        self.known_sessions(&sessions).await?;
        let for_known = calls.applies() - commits;
        self.report(&Spread::of(waits), [let_go, written], group, sessions.degradations(), for_known);
        sessions.forget_all();
        if for_known == 0 { Ok(()) } else { Err("a request of a known session has called the registry".into()) }
    }

    /// What each of them waited, in milliseconds.
    async fn births(self, sessions: &ActiveSessions) -> Fallible<Vec<f64>> {
        let begun = Instant::now();
        let count = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..self.under_way {
            let (count, mut service) = (Arc::clone(&count), sessions.layer().layer(Host));
            tasks.spawn(async move {
                let mut waits = Vec::new();
                while begun.elapsed() < self.amount.time {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    if number >= self.amount.births {
                        break;
                    }
                    let request = Request::new(Some(id(number)));
                    let before = Instant::now();
                    exchange(&mut service, request).await;
                    waits.push(before.elapsed().as_secs_f64() * 1e3);
                    // In `Relaxed` nothing else lets the others have their turn.
                    tokio::task::yield_now().await;
                }
                waits
            });
        }
        Ok(tasks.join_all().await.concat())
    }

    async fn known_sessions(self, sessions: &ActiveSessions) -> Fallible<()> {
        let mut service = sessions.layer().layer(Host);
        let active = sessions.len();
        for _ in 0..self.amount.requests {
            let mut request = Request::new(Some(id(0)));
            request.headers_mut().insert(ID.clone(), id(0));
            exchange(&mut service, request).await;
        }
        if sessions.len() == active { Ok(()) } else { Err("the session was not known".into()) }
    }

    fn report(self, waits: &Spread, times: [Duration; 2], group: f64, degraded: u64, for_known: usize) {
        let Self { durability, under_way, .. } = self;
        let kind = self.kind.name();
        let births = waits.len() as f64;
        let [rate, written] = times.map(|time| births / time.as_secs_f64());
        let [median, p99] = [waits.median(), waits.at(0.99)];
        println!(
            "| {kind} | {durability:?} | {under_way} | {births} | {rate:.0} | {written:.0} | {median:.3} | {p99:.3} | {group:.1} | {degraded} | {for_known} |"
        );
        let series = format!("{kind}, {durability:?}");
        line::point("registries: births", &series, under_way, written);
        line::point("registries: group", &series, under_way, group);
        if durability == Durability::Strict {
            line::point("registries: wait", &format!("{kind}, p50"), under_way, median);
            line::point("registries: wait", &format!("{kind}, p99"), under_way, p99);
        }
    }
}

/// Changes are written in their order: with one more, all of them are. After an outage (a disk that stalls is one) that takes
/// until the registry is asked again.
async fn until_written(sessions: &ActiveSessions) -> Fallible<()> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if sessions.note(format!("the-last-one-{}", sessions.len())).recorded().await {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err("the registry does not answer".into())
}

/// 36 bytes, as a UUID has.
fn id(number: usize) -> HeaderValue {
    HeaderValue::try_from(format!("{number:08}-3a5e-4c0e-9d4e-5d1e6c1f8a77")).expect("a header value")
}

/// Until the layer lets the head go. There is no body to wait for.
async fn exchange(service: &mut SessionService<Host>, request: Request<Option<HeaderValue>>) {
    let Ok(_response) = service.call(request).await;
}

/// Answers at once, with the id that the request's body says.
struct Host;

impl Service<Request<Option<HeaderValue>>> for Host {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Option<HeaderValue>>) -> Self::Future {
        let mut response = Response::new(Empty::new());
        if let Some(id) = request.into_body() {
            response.headers_mut().insert(ID.clone(), id);
        }
        ready(Ok(response))
    }
}
