//! Ten million births of distinct ids against a cap of 10,000: what the process keeps of them.
//!
//! No criterion here: the answer is memory. Prints the resident size after each million; what is born beyond the cap
//! evicts, and every evicted session has its end.
//!
//! ```text
//! cargo bench -p benches --bench births
//! ```
//!
//! Without `--bench` it does a hundredth of that.

mod line;
mod machine;

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use machine::{Fallible, memory};
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
    println!("| births | active | ended | resident MB | s |");
    println!("|---:|---:|---:|---:|---:|");
    let begun = Instant::now();
    for million in 1..=10 {
        for n in 0..step {
            sessions.note(format!("{million:04}-{n:031}"));
            if n % 1024 == 0 {
                // The hooks run on this runtime too.
                tokio::task::yield_now().await;
            }
        }
        let (births, resident) = (million * step, memory("VmRSS")? / 1e6);
        let (ended, elapsed) = (ends.load(Ordering::Relaxed), begun.elapsed().as_secs_f64());
        println!("| {births} | {} | {ended} | {resident:.1} | {elapsed:.1} |", sessions.len());
        line::point("births: memory", "a cap of 10,000", births, resident);
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    let ended = ends.load(Ordering::Relaxed);
    println!("\n{report}\n{ended} ends for {} births", 10 * step);
    if ended == 10 * step { Ok(()) } else { Err("not every birth had its end".into()) }
}
