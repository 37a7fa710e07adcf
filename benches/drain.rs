//! How long the drain of many sessions takes, and how many of them it ends within its budget of 2 s.
//!
//! No criterion here: one run takes up to 2 s, and the time is half of the answer only; the other half is what was
//! delivered. Every run is a process of its own, so that none finds the allocator warmed up, or the memory spread out,
//! by another. Prints a table with the least, the median and the greatest of each figure:
//!
//! ```text
//! cargo bench -p benches --bench drain                        # all, three runs of each
//! cargo bench -p benches --bench drain -- --runs 5 10ms hung  # five runs of those with such a name
//! ```
//!
//! Without `--bench`, as in `cargo test --benches`, all of them run once with a thousandth of the sessions.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs,
    future::pending,
    hint::black_box,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, time::sleep};
use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, DrainReport, EndReason, SessionEnd, SessionStart};

/// A hook that writes one row somewhere takes about this long.
const ROW: Duration = Duration::from_millis(10);

/// The default budget of a drain, for the loops that do without one.
const BUDGET: Duration = Duration::from_secs(2);

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What a run found, in the order of the table.
type Figures = Vec<(&'static str, f64)>;

/// Every scenario, with its number of sessions.
const SCENARIOS: [(&str, usize); 19] = [
    ("memory/end-hook", 1_000_000),
    ("memory/both-hooks", 1_000_000),
    ("10ms/1,000", 1_000),
    ("10ms/10,000", 10_000),
    ("10ms/50,000", 50_000),
    ("10ms/1,000,000", 1_000_000),
    ("10ms/bare-spawn", 1_000_000),
    ("no-op/drain", 1_000_000),
    ("no-op/bare-await", 1_000_000),
    ("no-op/bare-boxed", 1_000_000),
    ("hung/first-10,000-noted", 20_000),
    ("hung/first-10,000-called", 20_000),
    ("hung/100,000", 100_000),
    ("hung/1,000,000", 1_000_000),
    ("blocking/10ms", 1_000),
    ("serial/drain", 1_000),
    ("serial/bare", 1_000),
    ("batch/1,000", 200_000),
    ("note/both-hooks", 1_000_000),
];

fn main() -> Fallible<()> {
    let mut args: Vec<String> = env::args().skip(1).collect();
    if let [flag, name, n] = args.as_slice()
        && flag == "--one"
    {
        return one(name, n.parse()?);
    }
    let measures = args.iter().any(|arg| arg == "--bench");
    let mut runs = if measures { 3 } else { 1 };
    if let Some(flag) = args.iter().position(|arg| arg == "--runs") {
        runs = args.get(flag + 1).ok_or("how many runs?")?.parse()?;
        args.drain(flag..flag + 2);
    }
    let wanted: Vec<_> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    println!("{}\n", machine());
    println!("| scenario | figure | min | median | max |");
    println!("|---|---|---:|---:|---:|");
    for (name, n) in SCENARIOS {
        if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            several(name, if measures { n } else { n.div_ceil(1000) }, runs)?;
        }
    }
    Ok(())
}

/// Runs one scenario several times, each in a process of its own.
fn several(name: &str, n: usize, runs: usize) -> Fallible<()> {
    let mut order = Vec::new();
    let mut figures = BTreeMap::<String, Vec<f64>>::new();
    for _ in 0..runs {
        let output = Command::new(env::current_exe()?).args(["--one", name, &n.to_string()]).output()?;
        if !output.status.success() {
            return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        for line in String::from_utf8(output.stdout)?.lines() {
            let (figure, value) = line.rsplit_once('\t').ok_or("a figure and its value")?;
            let values = figures.entry(figure.to_owned()).or_insert_with(|| {
                order.push(figure.to_owned());
                Vec::new()
            });
            values.push(value.parse()?);
        }
    }
    for figure in order {
        let values = figures.entry(figure.clone()).or_default();
        values.sort_by(f64::total_cmp);
        let (min, median, max) = (values[0], values[values.len() / 2], values[values.len() - 1]);
        let precision = if figure.ends_with(" s") { 3 } else { 0 };
        println!("| {name} | {figure} | {min:.precision$} | {median:.precision$} | {max:.precision$} |");
    }
    Ok(())
}

/// One run of one scenario.
fn one(name: &str, n: usize) -> Fallible<()> {
    // Two workers on every machine, so that the tables of different machines compare.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // As a task, and not on the main thread, which is no worker.
    let figures = runtime.block_on(runtime.spawn(scenario(name.to_owned(), n)))??;
    for (figure, value) in figures {
        println!("{figure}\t{value}");
    }
    println!("peak MB\t{}", memory("VmHWM")? / 1e6);
    // Hung hooks are not worth the time that their drop takes.
    runtime.shutdown_background();
    Ok(())
}

async fn scenario(name: String, n: usize) -> Fallible<Figures> {
    Ok(match name.as_str() {
        "memory/end-hook" => resident(n, false).await?,
        "memory/both-hooks" => resident(n, true).await?,
        "note/both-hooks" => notes(n).await,
        "no-op/drain" => drained(n, builder().on_session_end(no_op)).await,
        "no-op/bare-await" => bare_await(n).await,
        "no-op/bare-boxed" => bare_boxed(n).await,
        "10ms/bare-spawn" => bare_spawn(n).await,
        "hung/first-10,000-noted" => {
            let hook = move |end: SessionEnd| async move {
                // Ids are numbered as they are noted.
                let number = end.session.id.as_str()[..8].parse::<usize>().unwrap_or_default();
                if number < n / 2 { pending().await } else { sleep(ROW).await }
            };
            drained(n, builder().on_session_end(hook)).await
        }
        "hung/first-10,000-called" => {
            let calls = Arc::new(AtomicU64::new(0));
            let hook = move |_: SessionEnd| {
                let call = calls.fetch_add(1, Ordering::Relaxed);
                async move { if call < n as u64 / 2 { pending().await } else { sleep(ROW).await } }
            };
            drained(n, builder().on_session_end(hook)).await
        }
        "hung/100,000" | "hung/1,000,000" => {
            let called = Arc::new(AtomicU64::new(0));
            let count = Arc::clone(&called);
            let hook = move |_: SessionEnd| {
                count.fetch_add(1, Ordering::Relaxed);
                pending::<()>()
            };
            let mut figures = drained(n, builder().on_session_end(hook)).await;
            figures.push(("called", called.load(Ordering::Relaxed) as f64));
            figures
        }
        "blocking/10ms" => {
            let hook = |_: SessionEnd| async { std::thread::sleep(ROW) };
            drained(n, builder().on_session_end(hook)).await
        }
        "serial/drain" => {
            let resource = Arc::new(Mutex::new(()));
            let hook = move |_: SessionEnd| serial_row(Arc::clone(&resource));
            drained(n, builder().on_session_end(hook)).await
        }
        "serial/bare" => bare_serial(n).await,
        "batch/1,000" => {
            let hook = |ends: Vec<SessionEnd>| async move { drop(black_box(ends)) };
            drained(n, builder().on_session_end_batch(1000, hook)).await
        }
        _ => drained(n, builder().on_session_end(|_: SessionEnd| sleep(ROW))).await,
    })
}

fn builder() -> ActiveSessionsBuilder {
    ActiveSessions::builder()
}

/// 36 bytes, as a UUID has, with the number in front.
fn id(number: usize) -> String {
    format!("{number:08}-3a5e-4c0e-9d4e-5d1e6c1f8a77")
}

/// Notes so many sessions, drains them, and says what came of it.
async fn drained(n: usize, builder: ActiveSessionsBuilder) -> Figures {
    let sessions = builder.build().expect("a legal configuration");
    for number in 0..n {
        sessions.note(id(number));
    }
    let begun = Instant::now();
    let report = sessions.drain(EndReason::Shutdown).await;
    // The report's own time ends before the report is made; what a caller waits for counts here.
    let elapsed = begun.elapsed();
    assert_eq!(report.total(), report.ended + report.failed + report.unfinished.len() as u64, "the sum holds");
    figures(&report, elapsed)
}

fn figures(report: &DrainReport, elapsed: Duration) -> Figures {
    let stage = |stage| report.unfinished.iter().filter(|unfinished| unfinished.stage == stage).count() as f64;
    vec![
        ("elapsed s", elapsed.as_secs_f64()),
        ("as reported s", report.elapsed.as_secs_f64()),
        ("ended", report.ended as f64),
        ("unfinished", report.unfinished.len() as f64),
        ("of them running", stage(tower_session_end::EndStage::Running)),
    ]
}

async fn no_op(end: SessionEnd) {
    black_box(end);
}

/// The same futures with nobody to run them but a loop.
async fn bare_await(n: usize) -> Figures {
    let events = events(n);
    let begun = Instant::now();
    for event in events {
        no_op(event).await;
    }
    vec![("elapsed s", begun.elapsed().as_secs_f64())]
}

/// As above, in boxes: whoever keeps hooks of any type needs those.
async fn bare_boxed(n: usize) -> Figures {
    let events = events(n);
    let begun = Instant::now();
    for event in events {
        let future: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(no_op(event));
        black_box(future).await;
    }
    vec![("elapsed s", begun.elapsed().as_secs_f64())]
}

fn events(n: usize) -> Vec<SessionEnd> {
    (0..n).map(|number| SessionEnd::new(id(number), EndReason::Shutdown)).collect()
}

/// A task for each of them, at once: what the runtime and its timer can do in the time of a drain.
async fn bare_spawn(n: usize) -> Figures {
    let ended = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    for spawned in 0..n {
        let ended = Arc::clone(&ended);
        tokio::spawn(async move {
            sleep(ROW).await;
            ended.fetch_add(1, Ordering::Relaxed);
        });
        if spawned % 64 == 63 {
            if begun.elapsed() >= BUDGET {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    while begun.elapsed() < BUDGET && ended.load(Ordering::Relaxed) < n as u64 {
        sleep(Duration::from_millis(1)).await;
    }
    let (elapsed, ended) = (begun.elapsed().as_secs_f64(), ended.load(Ordering::Relaxed) as f64);
    vec![("elapsed s", elapsed), ("ended", ended)]
}

/// A row of a consumer that takes one at a time.
async fn serial_row(resource: Arc<Mutex<()>>) {
    let _turn = resource.lock().await;
    sleep(ROW).await;
}

async fn bare_serial(n: usize) -> Figures {
    let resource = Arc::new(Mutex::new(()));
    let begun = Instant::now();
    let mut ended = 0;
    while ended < n && tokio::time::timeout_at((begun + BUDGET).into(), serial_row(resource.clone())).await.is_ok() {
        ended += 1;
    }
    vec![("elapsed s", begun.elapsed().as_secs_f64()), ("ended", ended as f64)]
}

/// What an active session keeps of the machine's memory.
async fn resident(n: usize, with_start: bool) -> Fallible<Figures> {
    let started = Arc::new(AtomicU64::new(0));
    let sessions = built(&started, with_start);
    let before = memory("VmRSS")?;
    // In turns, as requests come: a queue that held all starts at once would be measured too.
    for number in 0..n {
        sessions.note(id(number));
        if with_start && number % 64 == 63 {
            tokio::task::yield_now().await;
        }
    }
    while with_start && started.load(Ordering::Relaxed) < n as u64 {
        sleep(Duration::from_millis(1)).await;
    }
    let after = memory("VmRSS")?;
    drop(sessions);
    Ok(vec![("B a session", (after - before) / n as f64)])
}

/// How fast births are, with a start hook that does nothing.
async fn notes(n: usize) -> Figures {
    let started = Arc::new(AtomicU64::new(0));
    let sessions = built(&started, true);
    let ids: Vec<_> = (0..n).map(id).collect();
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    for (number, id) in ids.into_iter().enumerate() {
        let before = Instant::now();
        sessions.note(id);
        longest = longest.max(before.elapsed());
        if number % 64 == 63 {
            tokio::task::yield_now().await;
        }
    }
    let noted = begun.elapsed().as_secs_f64();
    while started.load(Ordering::Relaxed) < n as u64 {
        sleep(Duration::from_millis(1)).await;
    }
    vec![
        ("noted s", noted),
        ("all started s", begun.elapsed().as_secs_f64()),
        ("longest note s", longest.as_secs_f64()),
    ]
}

fn built(started: &Arc<AtomicU64>, with_start: bool) -> ActiveSessions {
    let started = Arc::clone(started);
    let mut builder = builder().on_session_end(no_op);
    if with_start {
        builder = builder.on_session_start(move |start: SessionStart| {
            black_box(start);
            started.fetch_add(1, Ordering::Relaxed);
            std::future::ready(())
        });
    }
    builder.build().expect("a legal configuration")
}

/// A figure of `/proc/self/status`, in bytes.
fn memory(name: &str) -> Fallible<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(f64::NAN);
    Ok(kib * 1024.0)
}

/// Where these figures come from.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let rustc = Command::new("rustc").arg("--version").output().map_or_else(|_| Vec::new(), |output| output.stdout);
    let model = model.trim_start_matches([' ', '\t', ':']);
    format!("{cores} cores, {model}, {}", String::from_utf8_lossy(&rustc).trim())
}
