//! How what a session costs grows with the number of live sessions, from a thousand to ten million of them.
//!
//! Each size runs in a separate process, so that it starts with fresh memory. It notes that many sessions, then
//! repeatedly ends the oldest and notes a new one, then sends requests of known sessions through the layer in random
//! order. The longest single note (a table grew, or the system interrupted it) is measured on a second handle, because
//! reading the clock at each note takes time. For comparison, the table has the longest step of a loop that only reads
//! the clock for as long. The end hook does nothing. Ids have 36 bytes and are made outside the measured time.
//!
//! ```text
//! cargo bench -p benches --bench growth                         # about a minute; 3 GB of memory
//! cargo bench -p benches --bench growth -- --up-to 1000000
//! ```
//!
//! Without `--bench` the sizes end at 10,000.

mod measure;
mod plot_data;

use std::{
    convert::Infallible,
    env,
    future::{Ready, ready},
    hint::black_box,
    process::Command,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Empty;
use measure::{Fallible, Spread, describe, memory};
use tower_layer::Layer;
use tower_service::Service;
use tower_session_end::{ActiveSessions, EndReason, SessionEnd};

const SIZES: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];

/// The number of pairs and requests that are timed at each size. A small size is noted again until it has as many
/// notes.
const TIMED: usize = 200_000;

/// Ids that are made at a time, outside the measured time.
const STRIDE: usize = 1_000;

/// The figures that the process of one size prints, in this order.
const FIGURES: [&str; 6] = [
    "ns per note",
    "ns per end, its hook and a note",
    "ns per request",
    "bytes per session",
    "longest note, µs",
    "longest step of a bare loop, µs",
];

fn main() -> Fallible<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [flag, n] = args.as_slice()
        && flag == "--one"
    {
        return one(n.parse()?);
    }
    let mut up_to = if args.iter().any(|arg| arg == "--bench") { usize::MAX } else { 10_000 };
    if let Some(flag) = args.iter().position(|arg| arg == "--up-to") {
        up_to = args.get(flag + 1).ok_or("`--up-to` needs a number of sessions")?.parse()?;
    }
    println!("{}\n", describe());
    println!("| live sessions | {} |", FIGURES.join(" | "));
    println!("|---:|{}", "---:|".repeat(FIGURES.len()));
    for n in SIZES.into_iter().filter(|n| *n <= up_to) {
        size(n)?;
    }
    Ok(())
}

/// One size, in a separate process.
fn size(n: usize) -> Fallible<()> {
    let output = Command::new(env::current_exe()?).args(["--one", &n.to_string()]).output()?;
    if !output.status.success() {
        return Err(format!("{n} sessions: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let said = String::from_utf8(output.stdout)?;
    let values: Vec<f64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let cells: Vec<_> = values.iter().map(|value| format!("{value:.0}")).collect();
    println!("| {n} | {} |", cells.join(" | "));
    for (name, value) in FIGURES.into_iter().zip(values) {
        let figure = match name {
            "bytes per session" => "growth: memory",
            longest if longest.starts_with("longest") => "growth: longest note",
            _ => "growth: time",
        };
        plot_data::point(figure, name, n, value);
    }
    Ok(())
}

fn one(n: usize) -> Fallible<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // A task runs on a worker thread; the main thread is not one.
    let figures = runtime.block_on(runtime.spawn(figures(n)))??;
    figures.iter().for_each(|figure| println!("{figure}"));
    // Exits without dropping ten million sessions.
    std::process::exit(0)
}

async fn figures(n: usize) -> Fallible<[f64; 6]> {
    let sessions = handle()?;
    let before = memory("VmRSS")?;
    let mut a_note = vec![noted(&sessions, n).await];
    let resident = (memory("VmRSS")? - before) / n as f64;
    for _ in 1..TIMED / n {
        a_note.push(noted(&handle()?, n).await);
    }
    let a_pair = pairs(&sessions, n).await;
    let a_request = requests(&sessions, n).await;
    assert_eq!(sessions.len(), n, "the pairs leave the number of sessions unchanged");
    drop(sessions);
    let begun = Instant::now();
    let longest = longest_note(&handle()?, n).await;
    let bare = longest_step(begun.elapsed());
    let [longest, bare] = [longest, bare].map(|time| time.as_secs_f64() * 1e6);
    Ok([Spread::of(a_note).median(), a_pair, a_request, resident, longest, bare])
}

fn handle() -> Fallible<ActiveSessions> {
    let no_op = async |end: SessionEnd| drop(black_box(end));
    Ok(ActiveSessions::builder().max_sessions(usize::MAX).on_session_end(no_op).build()?)
}

fn id(number: usize) -> String {
    format!("{number:08}-3a5e-4c0e-9d4e-5d1e6c1f8a77")
}

/// Nanoseconds per note of a new session.
async fn noted(sessions: &ActiveSessions, n: usize) -> f64 {
    let mut spent = Duration::ZERO;
    for first in (0..n).step_by(STRIDE) {
        let ids: Vec<_> = (first..n.min(first + STRIDE)).map(id).collect();
        let begun = Instant::now();
        for id in ids {
            sessions.note(id);
        }
        spent += begun.elapsed();
        tokio::task::yield_now().await;
    }
    assert_eq!(sessions.len(), n, "every id must be new");
    spent.as_nanos() as f64 / n as f64
}

/// Nanoseconds per end of the oldest session and note of a new one.
async fn pairs(sessions: &ActiveSessions, n: usize) -> f64 {
    let mut spent = Duration::ZERO;
    for first in (0..TIMED).step_by(STRIDE) {
        let ids: Vec<_> = (first..first + STRIDE).map(|number| (id(number), id(n + number))).collect();
        let begun = Instant::now();
        for (number, (old, new)) in ids.into_iter().enumerate() {
            assert!(sessions.end(old, EndReason::Reset), "the session must be active");
            sessions.note(new);
            if number % 64 == 63 {
                // Yields to the hooks, which run on the same runtime.
                tokio::task::yield_now().await;
            }
        }
        spent += begun.elapsed();
    }
    spent.as_nanos() as f64 / TIMED as f64
}

/// Nanoseconds per request of a known session that the host answers at once, with the id.
async fn requests(sessions: &ActiveSessions, n: usize) -> f64 {
    let mut service = sessions.layer().layer(Echo);
    let (mut spent, mut random) = (Duration::ZERO, 1_usize);
    for _ in (0..TIMED).step_by(STRIDE) {
        let requests: Vec<_> = (0..STRIDE)
            .map(|_| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // The sessions that the pairs left active.
                let id = id(TIMED + (random >> 32) % n);
                Request::builder().header("x-session-id", id).body(()).expect("a request")
            })
            .collect();
        let begun = Instant::now();
        for request in requests {
            black_box(service.call(request).await.is_ok());
        }
        spent += begun.elapsed();
    }
    spent.as_nanos() as f64 / TIMED as f64
}

/// Repeats the id of the request.
struct Echo;

impl Service<Request<()>> for Echo {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let mut response = Response::new(Empty::new());
        let id = request.headers().get("x-session-id").cloned().unwrap_or(HeaderValue::from_static("none"));
        response.headers_mut().insert("x-session-id", id);
        ready(Ok(response))
    }
}

async fn longest_note(sessions: &ActiveSessions, n: usize) -> Duration {
    let mut longest = Duration::ZERO;
    for first in (0..n).step_by(STRIDE) {
        let ids: Vec<_> = (first..n.min(first + STRIDE)).map(id).collect();
        let mut before = Instant::now();
        for id in ids {
            sessions.note(id);
            let after = Instant::now();
            longest = longest.max(after - before);
            before = after;
        }
        tokio::task::yield_now().await;
    }
    longest
}

/// The longest interruption of a loop by the machine itself, within `time`.
fn longest_step(limit: Duration) -> Duration {
    let begun = Instant::now();
    let (mut longest, mut before) = (Duration::ZERO, begun);
    while before - begun < limit {
        let after = Instant::now();
        longest = longest.max(after - before);
        before = after;
    }
    longest
}
