//! How many sessions have ended at each moment of a drain, beside loops that end them by hand. There are 10,000
//! sessions, and a hook takes 10 ms, or hangs for every hundredth session. Prints the sessions that have
//! ended by then, and how many hooks ran at once at most:
//!
//! ```text
//! cargo bench -p benches --bench drain_over_time    # 15 s
//! ```
//!
//! Without `--bench`, as in `cargo test --benches`, it runs with 100 sessions.

mod measure;
mod plot_data;

use std::{
    env,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use measure::{Fallible, describe};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tower_session_end::{ActiveSessions, EndReason, SessionEnd};

/// The default budget of a drain.
const BUDGET: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(50);
const STEPS: u32 = 42;

/// The steps of the table; the plot has all.
const SHOWN: [u32; 5] = [2, 5, 10, 20, 42];

/// The hooks that are over, those that run, and the most that ran at once.
#[derive(Clone, Default)]
struct Ended(Arc<[AtomicUsize; 3]>);

impl Ended {
    /// About the time of a hook that writes one row to a database.
    async fn hook(self, number: usize, some_hang: bool) {
        let [over, running, most] = &*self.0;
        most.fetch_max(running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        if some_hang && number % 100 == 99 {
            pending::<()>().await;
        }
        sleep(Duration::from_millis(10)).await;
        running.fetch_sub(1, Ordering::Relaxed);
        over.fetch_add(1, Ordering::Relaxed);
    }
}

async fn drain(n: usize, some_hang: bool, ended: Ended) {
    // The number in the id is the position in the order of the notes.
    let hook = move |end: SessionEnd| {
        let number = end.session.id.as_str().parse().expect("a number");
        ended.clone().hook(number, some_hang)
    };
    let sessions = ActiveSessions::builder().on_session_end(hook).build().expect("a valid configuration");
    for number in 0..n {
        sessions.note(number.to_string());
    }
    let _ = sessions.drain(EndReason::Shutdown).await;
}

async fn one_after_the_other(n: usize, some_hang: bool, ended: Ended) {
    for number in 0..n {
        ended.clone().hook(number, some_hang).await;
    }
}

async fn a_task_each(n: usize, some_hang: bool, ended: Ended) {
    let mut tasks: JoinSet<()> = (0..n).map(|number| ended.clone().hook(number, some_hang)).collect();
    while tasks.join_next().await.is_some() {}
}

/// The sessions that have ended at each step, and then the most hooks that ran at once.
async fn watch<F: Future<Output = ()> + Send + 'static>(ending: impl FnOnce(Ended) -> F) -> (Vec<usize>, usize) {
    let ended = Ended::default();
    let [over, _, most] = &*ended.0;
    let begun = Instant::now();
    let ending = tokio::spawn(timeout(BUDGET, ending(ended.clone())));
    let mut counts = vec![0];
    for step in 1..=STEPS {
        sleep_until(begun + STEP * step).await;
        counts.push(over.load(Ordering::Relaxed));
    }
    ending.abort();
    (counts, most.load(Ordering::Relaxed))
}

fn show(series: &str, (counts, most): &(Vec<usize>, usize)) {
    let shown: Vec<_> = SHOWN.iter().map(|step| counts[*step as usize].to_string()).collect();
    println!("| {series} | {} | {most} |", shown.join(" | "));
    for (step, count) in (0_u32..).zip(counts) {
        plot_data::point("drain: over time", series, (STEP * step).as_secs_f64(), *count as f64);
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Fallible<()> {
    let n = if env::args().any(|arg| arg == "--bench") { 10_000 } else { 100 };
    println!("{}\n", describe());
    let heads: Vec<_> = SHOWN.iter().map(|step| format!("{:.2} s", (STEP * *step).as_secs_f64())).collect();
    println!("| | {} | hooks at once |\n|---|{}", heads.join(" | "), "---:|".repeat(SHOWN.len() + 1));
    show("this crate", &watch(|ended| drain(n, false, ended)).await);
    show("this crate, 1 of 100 hooks hangs", &watch(|ended| drain(n, true, ended)).await);
    show("a loop, one after the other", &watch(|ended| one_after_the_other(n, false, ended)).await);
    show("the loop, 1 of 100 hangs", &watch(|ended| one_after_the_other(n, true, ended)).await);
    show("a task each, 1 of 100 hangs", &watch(|ended| a_task_each(n, true, ended)).await);
    Ok(())
}
