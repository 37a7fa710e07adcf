//! Memory of the process while ten million sessions start against `max_sessions` of 10,000.
//!
//! Prints the resident size after each million starts. Each start beyond the cap evicts a session, and every evicted
//! session has its end.
//!
//! ```text
//! cargo bench -p benches --bench max_sessions
//! ```
//!
//! Without `--bench` it runs a hundredth of that.

mod measure;
mod plot_data;

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use measure::{Fallible, memory};
use tower_session_end::{ActiveSessions, EndReason};

const CAP: usize = 10_000;

#[tokio::main(worker_threads = 2)]
async fn main() -> Fallible<()> {
    let step = if env::args().any(|argument| argument == "--bench") { 1_000_000 } else { 10_000_u64 };
    let ends = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&ends);
    let sessions = ActiveSessions::builder()
        .max_sessions(CAP)
        .on_session_end(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::ready(())
        })
        .build()?;
    println!("| starts | active | ended | resident MB | s |");
    println!("|---:|---:|---:|---:|---:|");
    let begun = Instant::now();
    for million in 1..=10 {
        for n in 0..step {
            sessions.note(format!("{million:04}-{n:031}"));
            if n % 1024 == 0 {
                // Yields to the hooks, which run on the same runtime.
                tokio::task::yield_now().await;
            }
        }
        let (starts, resident) = (million * step, memory("VmRSS")? / 1e6);
        let (ended, elapsed) = (ends.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
        println!("| {starts} | {} | {ended} | {resident:.1} | {elapsed:.1} |", sessions.len());
        plot_data::point("max_sessions: memory", "max_sessions of 10,000", starts, resident);
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    let ended = ends.load(Ordering::Relaxed);
    println!("\n{report}\n{ended} ends for {} starts", 10 * step);
    if ended == 10 * step { Ok(()) } else { Err("not every session had its end".into()) }
}
