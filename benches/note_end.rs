//! Starts and ends from two threads among a million live sessions, compared with the same on a bare sharded table.
//!
//! ```text
//! cargo bench -p benches --bench note_end   # about ten seconds
//! ```
//!
//! All tables are in one process and take turns of a few thousand pairs, because the speed of the machine varies. A
//! ratio compares two neighbouring turns; the table has the median of these ratios. Without `--bench` there are a
//! hundredth as many sessions.

mod plot_data;

use std::{
    env,
    error::Error,
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use hashbrown::{DefaultHashBuilder, HashTable};
use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, EndReason, SessionEnd, SessionId};

const THREADS: usize = 2;
const TURNS: usize = 401;

/// The tracker's number of shards.
const SHARDS: usize = 2048;

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Fallible<()> {
    let live = if env::args().any(|arg| arg == "--bench") { 1_000_000 } else { 10_000 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let rates = runtime.block_on(compare(live))?;
    println!(
        "| {live} live, {THREADS} threads | pairs per second | relative to the bare table: first quartile | median | third quartile |"
    );
    println!("|---|---:|---:|---:|---:|");
    for (keeper, of_keeper) in NAMES.iter().zip(&rates) {
        let ratios = sorted(of_keeper.iter().zip(&rates[0]).map(|(ours, bare)| ours / bare));
        let (rate, ratio) = (sorted(of_keeper.iter().copied())[TURNS / 2], ratios[TURNS / 2]);
        println!("| {keeper} | {rate:.0} | {:.2} | {ratio:.2} | {:.2} |", ratios[TURNS / 4], ratios[TURNS * 3 / 4]);
        plot_data::point("note and end: rate", "two threads", keeper, rate);
        plot_data::point("note and end: ratio", "two threads", keeper, ratio);
    }
    Ok(())
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

const NAMES: [&str; 3] = ["bare table", "note + end", "note + end, end hook"];

/// The rates of each table, turn by turn.
async fn compare(live: usize) -> Fallible<[Vec<f64>; 3]> {
    let sessions = ActiveSessions::builder().max_sessions(usize::MAX);
    let hooked = sessions_with_a_hook();
    let keepers: [Arc<dyn Keeper>; 3] =
        [Arc::new(Bare::default()), Arc::new(sessions.build()?), Arc::new(hooked.build()?)];
    for keeper in &keepers {
        for thread in 0..THREADS {
            assert!((0..live / THREADS).all(|n| keeper.note(&id(thread, n))), "every id must be new");
        }
    }
    let turn = live / THREADS / TURNS;
    let mut rates = [const { Vec::new() }; 3];
    for number in 0..TURNS {
        // Made in advance: the ids to end, the oldest first, and the ids to note.
        let ids: Vec<Vec<_>> = (0..THREADS)
            .map(|thread| {
                let first = number * turn;
                (first..first + turn).map(|n| (id(thread, n), id(thread, live / THREADS + n))).collect()
            })
            .collect();
        let ids = Arc::new(ids);
        for (keeper, rates) in keepers.iter().zip(&mut rates) {
            let begun = Instant::now();
            let threads: Vec<_> =
                (0..THREADS).map(|thread| tokio::spawn(work(Arc::clone(keeper), Arc::clone(&ids), thread))).collect();
            for thread in threads {
                thread.await?;
            }
            rates.push((turn * THREADS) as f64 / begun.elapsed().as_secs_f64());
        }
    }
    Ok(rates)
}

async fn work(keeper: Arc<dyn Keeper>, ids: Arc<Vec<Vec<(String, String)>>>, thread: usize) {
    for (n, (old, new)) in ids[thread].iter().enumerate() {
        assert!(keeper.note(new), "the session must be new");
        assert!(keeper.end(old), "the session must be active");
        if n % 64 == 63 {
            // Yields to the hooks, which run on the same runtime.
            tokio::task::yield_now().await;
        }
    }
}

fn sessions_with_a_hook() -> ActiveSessionsBuilder {
    ActiveSessions::builder().max_sessions(usize::MAX).on_session_end(async |_: SessionEnd| {})
}

/// An id of 36 bytes, the length of a UUID.
fn id(thread: usize, n: usize) -> String {
    format!("{thread:04}{n:08}-5a7e-4c0e-9d4e-5d1e6c1f8a")
}

trait Keeper: Send + Sync + 'static {
    fn note(&self, id: &str) -> bool;
    fn end(&self, id: &str) -> bool;
}

impl Keeper for ActiveSessions {
    fn note(&self, id: &str) -> bool {
        Self::note(self, id).is_new()
    }

    fn end(&self, id: &str) -> bool {
        Self::end(self, id, EndReason::Reset)
    }
}

/// The same sharded table without generations, order of hooks, counts, phases or a clock.
struct Bare {
    shards: Vec<Mutex<HashTable<Arc<SessionId>>>>,
    hasher: DefaultHashBuilder,
}

impl Default for Bare {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: DefaultHashBuilder::default() }
    }
}

impl Bare {
    fn hash(&self, id: &str) -> u64 {
        self.hasher.hash_one(id.as_bytes())
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, HashTable<Arc<SessionId>>> {
        self.shards[(hash >> 40) as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper for Bare {
    fn note(&self, id: &str) -> bool {
        let Ok(id) = SessionId::new(id) else { return false };
        let hash = self.hash(id.as_str());
        let mut shard = self.shard(hash);
        let is_new = shard.find(hash, |other| **other == id).is_none();
        if is_new {
            shard.insert_unique(hash, Arc::new(id), |other| self.hash(other.as_str()));
        }
        is_new
    }

    fn end(&self, id: &str) -> bool {
        let hash = self.hash(id);
        let ended = self.shard(hash).find_entry(hash, |other| other.as_str() == id).ok().map(|entry| entry.remove().0);
        ended.is_some()
    }
}
