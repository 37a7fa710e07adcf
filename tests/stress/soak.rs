//! Births and ends without a pause, with idle expiry, the cap, streams, compactions, guards, and a registry: what the
//! process keeps of them.
//!
//! A few seconds here; `SOAK_SECONDS=3600 cargo test --release --test stress soak:: -- --nocapture` for an hour.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fs,
    future::{pending, ready},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::store::Store;
use crate::support::{Random, assert_sum};
use axum::body::{Body, Bytes};
use futures_util::{FutureExt, StreamExt};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::runtime::Handle;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_session_end::{ActiveSessions, EndReason, SessionBody};

const CAP: usize = 2000;
const CHURNERS: u64 = 2;
/// Ended sessions whose hooks are not over, at most: what the cap does not bound.
const LAG: u64 = 10_000;
/// Streams that a churner holds open.
const STREAMS: usize = 32;

/// What the hooks were told, without remembering any of it.
#[derive(Default)]
struct Tally {
    starts: AtomicU64,
    ends: AtomicU64,
}

/// A handle under load.
struct Subject {
    sessions: ActiveSessions,
    tally: Arc<Tally>,
    ids: AtomicU64,
    forgotten: AtomicU64,
    has_registry: bool,
}

impl Subject {
    fn new(store: Option<&Store>) -> Arc<Self> {
        let tally = Arc::new(Tally::default());
        let (starts, ends) = (Arc::clone(&tally), Arc::clone(&tally));
        let builder = ActiveSessions::builder()
            .drain_timeout(Duration::from_secs(30))
            .idle_timeout(Duration::from_millis(500))
            .max_sessions(CAP)
            .on_session_start(move |_| {
                starts.starts.fetch_add(1, Ordering::Relaxed);
                ready(())
            })
            .on_session_end(move |_| {
                // One in sixteen is pending for a moment, and makes a ticker.
                let slow = ends.ends.fetch_add(1, Ordering::Relaxed) % 16 == 0;
                async move {
                    if slow {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            });
        let builder = match store {
            Some(store) => builder.registry(store.holder()),
            None => builder,
        };
        let sessions = builder.build().unwrap();
        Arc::new(Self {
            sessions,
            tally,
            ids: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            has_registry: store.is_some(),
        })
    }

    fn new_id(&self) -> String {
        format!("0b6e2f0c-3a5e-4c0e-9d4e-{:012}", self.ids.fetch_add(1, Ordering::Relaxed))
    }

    fn lag(&self) -> u64 {
        let over = self.tally.ends.load(Ordering::Relaxed) + self.forgotten.load(Ordering::Relaxed);
        self.tally.starts.load(Ordering::Relaxed).saturating_sub(over + self.sessions.len() as u64)
    }

    /// Until it is told to stop.
    async fn churn(self: Arc<Self>, mut random: Random, stop: Arc<AtomicBool>) {
        let sessions = &self.sessions;
        let (mut known, mut guards, mut streams) = (VecDeque::<String>::new(), VecDeque::new(), VecDeque::new());
        for n in 0_u64.. {
            let id = self.new_id();
            match random.below(12) {
                0..=3 => drop(sessions.note(id.as_str())),
                4 => guards.push_back(sessions.guard(id.as_str()).unwrap()),
                5 => drop(self.exchange(None, &id, false).await),
                6 => streams.push_back(self.exchange(None, &id, true).await),
                7 => {
                    let old = known.pop_front().unwrap_or_default();
                    sessions.compact(&old, id.as_str());
                }
                8 | 9 => drop(sessions.end(known.pop_back().unwrap_or_default(), EndReason::Deleted)),
                10 => {
                    let forgotten = sessions.forget(known.pop_front().unwrap_or_default());
                    self.forgotten.fetch_add(u64::from(forgotten), Ordering::Relaxed);
                }
                _ => {
                    let id = known.back().cloned().unwrap_or_default();
                    drop(self.exchange(Some(&id), &id, false).await);
                }
            }
            known.push_back(id);
            if known.len() > CAP {
                known.pop_front();
            }
            if guards.len() > 16 {
                guards.pop_front();
            }
            // Polled now and then, so that it listens; then its client leaves, or its session has ended before.
            if let Some(stream) = streams.back_mut() {
                let _ = BodyExt::frame(stream).now_or_never();
                let _ = BodyExt::frame(stream).now_or_never();
            }
            if streams.len() > STREAMS {
                streams.pop_front();
            }
            if n % 64 == 0 {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                tokio::task::yield_now().await;
                while self.lag() > LAG {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    }

    async fn exchange(&self, carried: Option<&str>, id: &str, is_stream: bool) -> SessionBody<Body> {
        let id = id.to_owned();
        let host = service_fn(move |_: Request<()>| {
            let response = Response::builder().header("x-session-id", &id);
            let response = if is_stream {
                let hello = futures_util::stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"data: hello\n\n"))]);
                let body = Body::from_stream(hello.chain(futures_util::stream::pending()));
                response.header("content-type", "text/event-stream").body(body)
            } else {
                response.body(Body::empty())
            };
            ready(Ok::<_, Infallible>(response.unwrap()))
        });
        let mut request = Request::get("/");
        if let Some(id) = carried.filter(|id| !id.is_empty()) {
            request = request.header("x-session-id", id);
        }
        let service = self.sessions.layer().layer(host);
        service.oneshot(request.body(()).unwrap()).await.unwrap().into_body()
    }
}

fn resident_megabytes() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1024.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g13_memory_and_tasks_are_flat_however_many_sessions_come_and_go() {
    let _alone = crate::ONE_AT_A_TIME.lock().await;
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(4_u64);
    let metrics = Handle::current().metrics();
    let store = Store::without_history();
    let tasks_before = metrics.num_alive_tasks();
    let subjects = [Subject::new(None), Subject::new(Some(&store))];
    let drivers: Vec<_> = subjects.iter().map(|s| tokio::spawn(s.sessions.shutdown_on(pending::<()>()))).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let churners: Vec<_> = (0..CHURNERS)
        .flat_map(|n| subjects.iter().map(move |subject| (n, subject)))
        .map(|(n, subject)| tokio::spawn(Arc::clone(subject).churn(Random::new(n), Arc::clone(&stop))))
        .collect();

    println!("| s | births | ends | active | resident MB | tasks |");
    println!("|---:|---:|---:|---:|---:|---:|");
    let begun = Instant::now();
    let sum = |f: &dyn Fn(&Subject) -> u64| subjects.iter().map(|subject| f(subject)).sum::<u64>();
    let (mut resident, mut tasks) = (Vec::new(), Vec::new());
    for n in 1..=32_u64 {
        tokio::time::sleep(Duration::from_millis(seconds * 1000 / 32)).await;
        resident.push(resident_megabytes());
        tasks.push(metrics.num_alive_tasks());
        assert!(sum(&|s| s.sessions.len() as u64) <= 2 * (CAP as u64 + 200), "the cap");
        if n % 4 == 0 {
            println!(
                "| {} | {} | {} | {} | {:.1} | {} |",
                begun.elapsed().as_secs(),
                sum(&|s| s.tally.starts.load(Ordering::Relaxed)),
                sum(&|s| s.tally.ends.load(Ordering::Relaxed)),
                sum(&|s| s.sessions.len() as u64),
                resident[resident.len() - 1],
                tasks[tasks.len() - 1],
            );
        }
    }
    stop.store(true, Ordering::Relaxed);
    for churner in churners {
        churner.await.unwrap();
    }
    drivers.iter().for_each(tokio::task::JoinHandle::abort);
    for subject in &subjects {
        let report = subject.sessions.finish(async {}).await.report;
        assert_sum(&report.sessions);
        assert!(report.is_clean(), "{report}");
        let starts = subject.tally.starts.load(Ordering::Relaxed);
        let over = subject.tally.ends.load(Ordering::Relaxed) + subject.forgotten.load(Ordering::Relaxed);
        // What is forgotten before it has started has no start: with a registry, also an id that a request brought and that is
        // not on record yet.
        let forgotten = subject.forgotten.load(Ordering::Relaxed);
        let unstarted = if subject.has_registry { forgotten } else { CHURNERS };
        assert!((starts..=starts + unstarted).contains(&over), "{starts} starts, {over} are over");
    }
    assert!(store.events().is_empty());
    // Whatever the first half needed is enough for the second.
    let most = |part: &[f64]| part.iter().copied().fold(0.0, f64::max);
    let (first, second) = resident.split_at(16);
    assert!(most(second) <= most(first) * 1.2 + 8.0, "{resident:?}");
    // Workers, a ticker and a writer of each, and ours.
    let most = tasks.iter().max().unwrap();
    assert!(*most <= tasks_before + 2 * (256 + 2) + 8, "{tasks:?}");
    for _ in 0..1000 {
        if metrics.num_alive_tasks() == tasks_before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} tasks are left", metrics.num_alive_tasks() - tasks_before);
}
