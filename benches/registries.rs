//! What a registry costs the start of a session, a request of a known one, and a recovery: SQLite, Redis and PostgreSQL,
//! `Strict` and `Relaxed`.
//!
//! Sessions start as they do in a server: a response with a new id goes through the layer. The wait is the time until
//! the layer sends its head. 1, 100 and 1,000 starts run concurrently, until the number of starts or the time is
//! reached. "Written" is the rate until the last of them is recorded too, which in `Relaxed` is later. A counting
//! registry wraps the real one: "starts per commit" is the number of starts in one call of `apply`, which is one
//! transaction in SQLite and PostgreSQL, and one or a few scripts in Redis.
//!
//! After that, requests of known sessions run, with the id repeated in the response. If one of them makes the layer
//! call the registry, the benchmark fails.
//!
//! The second table is about a process that has died with 200,000 sessions: another one ends them, with a hook that does
//! nothing, while a client starts a session about every 2 ms. Beside it, bare statements do the same with the same rows,
//! and no client (`registries/bare.rs`).
//!
//! SQLite uses a real file in the system's temporary directory (`TMPDIR`), with the defaults of `SqliteRegistry`.
//! Redis and PostgreSQL are separate servers on free ports (`$REDIS_SERVER`, or `redis-server` in the path; `postgres` in
//! the path, or where Debian has it). Without a server its rows are left out. Each row begins with an empty file or an empty
//! server. PostgreSQL syncs each commit to the disk, and Redis writes none.
//!
//! ```text
//! cargo bench -p benches --features registries --bench registries                  # about 2 minutes
//! cargo bench -p benches --features registries --bench registries -- --seconds 1
//! cargo bench -p benches --features registries --bench registries -- --recovery --store SQLite
//! ```
//!
//! `--recovery` leaves out the first table, `--store` all stores but one.
//!
//! Without `--bench` each row has a few starts only.

#[path = "registries/bare.rs"]
mod bare;
#[path = "registries/counting.rs"]
mod counting;
mod measure;
mod plot_data;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../tests/support/postgres_server.rs"]
mod postgres_server;
#[path = "registries/recovery.rs"]
mod recovery;
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
use measure::{Fallible, Spread, describe};
use stores::{Kind, Store};
use tokio::{runtime::Runtime, task::JoinSet};
use tower_layer::Layer;
use tower_service::Service;
use tower_session_end::{
    ActiveSessions, SessionEnd, SessionService,
    registry::{Durability, Registry},
};

const KINDS: [Kind; 3] = [Kind::Sqlite, Kind::Redis, Kind::Postgres];

const UNDER_WAY: [usize; 3] = [1, 100, 1_000];

/// A registry that is unreachable for longer fails the benchmark.
const PATIENCE: Duration = Duration::from_secs(30);

static ID: HeaderName = HeaderName::from_static("x-session-id");

/// The amount of work for a row.
#[derive(Clone, Copy, Debug)]
struct Amount {
    starts: usize,
    time: Duration,
    requests: usize,
    recovered: usize,
}

fn main() -> Fallible<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let mut amount = if args.iter().any(|arg| arg == "--bench") {
        Amount { starts: 50_000, time: Duration::from_secs(3), requests: 100_000, recovered: 200_000 }
    } else {
        Amount { starts: 200, time: Duration::from_millis(200), requests: 100, recovered: 2_000 }
    };
    if let Some(flag) = args.iter().position(|arg| arg == "--seconds") {
        amount.time = Duration::from_secs_f64(args.get(flag + 1).ok_or("`--seconds` needs a number")?.parse()?);
    }
    let argument = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let kinds = KINDS.into_iter().filter(|kind| argument("--store").is_none_or(|store| store == kind.name()));
    let kinds: Vec<_> = kinds.collect();
    println!("{}\n", describe());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if !args.iter().any(|arg| arg == "--recovery") {
        starts(&runtime, &kinds, amount)?;
    }
    recoveries(&runtime, &kinds, amount.recovered)
}

fn starts(runtime: &Runtime, kinds: &[Kind], amount: Amount) -> Fallible<()> {
    println!(
        "| registry | durability | concurrent | starts | starts/s | written/s | wait p50, ms | p99, ms | starts per commit | degraded | calls for known sessions |"
    );
    println!("|---|---|{}", "---:|".repeat(9));
    let rows = [Durability::Strict, Durability::Relaxed].map(|durability| UNDER_WAY.map(|n| (durability, n)));
    for &kind in kinds {
        for (durability, under_way) in rows.into_iter().flatten() {
            let Some(store) = Store::new(kind)? else {
                eprintln!("{} is left out: its server is not installed", kind.name());
                break;
            };
            let row = Row { kind, durability, under_way, amount };
            runtime.block_on(async {
                match &store {
                    Store::Sqlite(dir) => row.measure(dir.registry()?).await,
                    Store::Redis(server) => row.measure(stores::redis(server).await?).await,
                    Store::Postgres(server) => row.measure(stores::postgres(server).await?).await,
                }
            })?;
        }
    }

    Ok(())
}

fn recoveries(runtime: &Runtime, kinds: &[Kind], sessions: usize) -> Fallible<()> {
    println!("\n{}\n|---|{}", recovery::HEADING, "---:|".repeat(9));
    for &kind in kinds {
        let Some(store) = Store::new(kind)? else { continue };
        let bare = runtime.block_on(async {
            match &store {
                Store::Sqlite(dir) => {
                    recovery::record_and_die(dir.registry()?, sessions).await?;
                    bare::sqlite(&dir.registry()?, sessions)
                }
                Store::Redis(server) => {
                    recovery::record_and_die(stores::redis(server).await?, sessions).await?;
                    bare::redis(server, sessions).await
                }
                Store::Postgres(server) => {
                    recovery::record_and_die(stores::postgres(server).await?, sessions).await?;
                    bare::postgres(server, sessions).await
                }
            }
        })?;
        drop(store);
        let Some(store) = Store::new(kind)? else { continue };
        let row = recovery::Row { kind: kind.name(), sessions, bare };
        runtime.block_on(async {
            match &store {
                Store::Sqlite(dir) => row.measure(dir.registry()?, dir.registry()?).await,
                Store::Redis(server) => row.measure(stores::redis(server).await?, stores::redis(server).await?).await,
                Store::Postgres(server) => {
                    row.measure(stores::postgres(server).await?, stores::postgres(server).await?).await
                }
            }
        })?;
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
        let waits = self.starts(&sessions).await?;
        let let_go = begun.elapsed();
        until_written(&sessions).await?;
        let written = begun.elapsed();
        let (commits, changes) = (calls.applies(), calls.changes());
        if changes < waits.len() && sessions.degradations() == 0 {
            return Err(format!("{} starts, but {changes} changes", waits.len()).into());
        }
        let group = changes as f64 / commits as f64;
        self.known_sessions(&sessions).await?;
        let for_known = calls.applies() - commits;
        self.report(&Spread::of(waits), [let_go, written], group, sessions.degradations(), for_known);
        sessions.forget_all();
        if for_known == 0 { Ok(()) } else { Err("a request of a known session called the registry".into()) }
    }

    /// Starts sessions; returns the wait of each, in milliseconds.
    async fn starts(self, sessions: &ActiveSessions) -> Fallible<Vec<f64>> {
        let begun = Instant::now();
        let count = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..self.under_way {
            let (count, mut service) = (Arc::clone(&count), sessions.layer().layer(Host));
            tasks.spawn(async move {
                let mut waits = Vec::new();
                while begun.elapsed() < self.amount.time {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    if number >= self.amount.starts {
                        break;
                    }
                    let request = Request::new(Some(id(number)));
                    let before = Instant::now();
                    exchange(&mut service, request).await;
                    waits.push(before.elapsed().as_secs_f64() * 1e3);
                    // In `Relaxed` nothing else yields to the other tasks.
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
        let starts = waits.len() as f64;
        let [rate, written] = times.map(|time| starts / time.as_secs_f64());
        let [median, p99] = [waits.median(), waits.at(0.99)];
        println!(
            "| {kind} | {durability:?} | {under_way} | {starts} | {rate:.0} | {written:.0} | {median:.3} | {p99:.3} | {group:.1} | {degraded} | {for_known} |"
        );
        let series = format!("{kind}, {durability:?}");
        plot_data::point("registries: starts", &series, under_way, written);
        plot_data::point("registries: group", &series, under_way, group);
        if durability == Durability::Strict {
            plot_data::point("registries: wait", &format!("{kind}, p50"), under_way, median);
            plot_data::point("registries: wait", &format!("{kind}, p99"), under_way, p99);
        }
    }
}

/// Changes are written in order, so once one more change is written, all are. After an outage (such as a stalled disk)
/// this waits until the registry is tried again.
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

/// An id of 36 bytes, the length of a UUID.
fn id(number: usize) -> HeaderValue {
    HeaderValue::try_from(format!("{number:08}-3a5e-4c0e-9d4e-5d1e6c1f8a77")).expect("a header value")
}

/// Waits until the layer sends the head. There is no body to wait for.
async fn exchange(service: &mut SessionService<Host>, request: Request<Option<HeaderValue>>) {
    let Ok(_response) = service.call(request).await;
}

/// Answers at once, with the id in the request's body.
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
