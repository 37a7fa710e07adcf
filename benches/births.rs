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

use std::{
    env,
    error::Error,
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tower_session_end::{ActiveSessions, EndReason};

const CAP: usize = 10_000;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
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
        println!(
            "| {} | {} | {} | {:.1} | {:.1} |",
            million * step,
            sessions.len(),
            ends.load(Ordering::Relaxed),
            resident_megabytes()?,
            begun.elapsed().as_secs_f64(),
        );
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    let ended = ends.load(Ordering::Relaxed);
    println!("\n{report}\n{ended} ends for {} births", 10 * step);
    if ended == 10 * step { Ok(()) } else { Err("not every birth had its end".into()) }
}

fn resident_megabytes() -> Result<f64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes / 1024.0)
}
