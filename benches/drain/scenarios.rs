//! The scenarios of the drain, and the bare loops that do the same work without the crate.

use std::{
    future::pending,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, time::sleep};
use tower_session_end::{
    ActiveSessions, ActiveSessionsBuilder, DrainReport, EndReason, SessionEnd, SessionId, SessionStart,
};

use crate::{
    BUDGET, Figures,
    measure::{Fallible, memory},
    rows::{Rows, Work},
};

/// About the time of a hook that writes one row to a database.
const ROW: Duration = Duration::from_millis(10);

/// Ends per call of a batch hook.
const BATCH: usize = 1_000;

pub(crate) async fn scenario(name: String, n: usize, time: Duration) -> Fallible<Figures> {
    Ok(match name.as_str() {
        "memory/end-hook" => resident(n, false).await?,
        "memory/both-hooks" => resident(n, true).await?,
        "note/both-hooks" => notes(n).await,
        "no-op/drain" => drained(n, builder().on_session_end(no_op)).await,
        "no-op/bare-await" => bare_await(n).await,
        "no-op/bare-boxed" => bare_boxed(n).await,
        "10ms/bare-spawn" => bare_spawn(time).await,
        "hung/first-10,000-noted" => {
            let hook = move |end: SessionEnd| async move {
                // The number in the id is the position in the order of the notes.
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
        "sqlite/insert" | "sqlite/update" => {
            let rows = Rows::new(work(&name), n)?;
            let figures = drained(n, builder().on_session_end_batch(BATCH, rows.hook())).await;
            rows.check(&figures)?;
            figures
        }
        "sqlite/bare-insert" | "sqlite/bare-update" => {
            let rows = Rows::new(work(&name), n)?;
            let figures = bare_batches(&rows, n)?;
            rows.check(&figures)?;
            figures
        }
        "batch/1,000" => {
            let hook = |ends: Vec<SessionEnd>| async move { drop(black_box(ends)) };
            drained(n, builder().on_session_end_batch(BATCH, hook)).await
        }
        _ => drained(n, builder().on_session_end(|_: SessionEnd| sleep(ROW))).await,
    })
}

fn builder() -> ActiveSessionsBuilder {
    ActiveSessions::builder()
}

/// An id of 36 bytes, the length of a UUID, that begins with the number.
pub(crate) fn id(number: usize) -> String {
    format!("{number:08}-3a5e-4c0e-9d4e-5d1e6c1f8a77")
}

/// Notes `n` sessions, drains them, and returns the figures.
async fn drained(n: usize, builder: ActiveSessionsBuilder) -> Figures {
    let sessions = builder.build().expect("a valid configuration");
    for number in 0..n {
        sessions.note(id(number));
    }
    let begun = Instant::now();
    let report = sessions.drain(EndReason::Shutdown).await;
    // The time in the report ends before the report is made; this is the time that a caller waits.
    let elapsed = begun.elapsed();
    assert_eq!(report.total(), report.ended + report.failed + report.unfinished_count, "the sum holds");
    figures(&report, elapsed)
}

fn figures(report: &DrainReport, elapsed: Duration) -> Figures {
    let stage = |stage| report.unfinished.iter().filter(|unfinished| unfinished.stage == stage).count() as f64;
    vec![
        ("elapsed s", elapsed.as_secs_f64()),
        ("as reported s", report.elapsed.as_secs_f64()),
        ("ended", report.ended as f64),
        ("unfinished", report.unfinished_count as f64),
        ("of them running", stage(tower_session_end::EndStage::Running)),
    ]
}

async fn no_op(end: SessionEnd) {
    black_box(end);
}

/// The same futures, run by a bare loop.
async fn bare_await(n: usize) -> Figures {
    let events = events(n);
    let begun = Instant::now();
    for event in events {
        no_op(event).await;
    }
    vec![("elapsed s", begun.elapsed().as_secs_f64())]
}

/// As above, boxed: code that stores hooks of any type needs the boxes.
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
    (0..n).map(|number| SessionEnd::new(SessionId::new(id(number)).unwrap(), EndReason::Shutdown)).collect()
}

/// Sleeping tasks, spawned one after the other for that long: the limit of the runtime and its timer in the time of a
/// drain.
async fn bare_spawn(time: Duration) -> Figures {
    let ended = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    for spawned in 0_u64.. {
        let ended = Arc::clone(&ended);
        tokio::spawn(async move {
            sleep(ROW).await;
            ended.fetch_add(1, Ordering::Relaxed);
        });
        if spawned % 64 == 63 {
            if begun.elapsed() >= time {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let (elapsed, ended) = (begun.elapsed().as_secs_f64(), ended.load(Ordering::Relaxed) as f64);
    vec![("elapsed s", elapsed), ("ended", ended)]
}

fn work(name: &str) -> Work {
    if name.ends_with("insert") { Work::Insert } else { Work::Update }
}

/// One transaction after the other, on this thread, in random order like a drain.
fn bare_batches(rows: &Rows, n: usize) -> Fallible<Figures> {
    /// A prime, so that the steps reach every number.
    const STRIDE: usize = 7919;
    let event = |step: usize| SessionEnd::new(SessionId::new(id(step * STRIDE % n)).unwrap(), EndReason::Shutdown);
    let events: Vec<_> = (0..n).map(event).collect();
    let begun = Instant::now();
    let mut ended = 0;
    for batch in events.chunks(BATCH) {
        if begun.elapsed() >= BUDGET {
            break;
        }
        rows.write(batch)?;
        ended += batch.len();
    }
    Ok(vec![("elapsed s", begun.elapsed().as_secs_f64()), ("ended", ended as f64)])
}

/// A bare loop over a consumer that takes one end at a time.
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

/// The memory of an active session.
async fn resident(n: usize, with_start: bool) -> Fallible<Figures> {
    let started = Arc::new(AtomicU64::new(0));
    let sessions = built(&started, with_start);
    let before = memory("VmRSS")?;
    // Yields now and then, as a server does; otherwise a queue of all start hooks would be measured too.
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
    Ok(vec![("B per session", (after - before) / n as f64)])
}

/// The time of starts, with a start hook that does nothing.
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
    builder.build().expect("a valid configuration")
}
