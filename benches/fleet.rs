//! Many replicas on one registry: what one costs at rest, and how long the sessions of dead ones stay without an end.
//!
//! 10, 30 and 100 replicas hold 2,000 sessions each, every one over connections of its own. First they rest, and their calls
//! of the registry are counted, and what the server does for them: commands of Redis (those within a script too), transactions of
//! PostgreSQL. Then half of them are dropped without a word, as SIGKILL would, and the others end their sessions. If one has no end, or
//! two, the benchmark fails.
//!
//! The second table has one replica with more sessions: what one heartbeat takes.
//!
//! All replicas run in this process, on a runtime for each half. The lease is 4 s, so a heartbeat comes each second.
//!
//! ```text
//! cargo bench -p benches --features registries --bench fleet                  # about 3 minutes
//! ```
//!
//! Without `--bench` there are 3 replicas with a few sessions.

#[path = "registries/counting.rs"]
mod counting;
mod measure;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../tests/support/postgres_server.rs"]
mod postgres_server;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../tests/support/redis_server.rs"]
mod redis_server;
#[path = "fleet/servers.rs"]
mod servers;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "registries/stores.rs"]
mod stores;

use std::{
    collections::HashMap,
    env,
    future::{pending, ready},
    ops::Range,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use counting::{Calls, Counting};
use measure::{Fallible, Spread, describe};
use servers::LEASE;
use stores::{Kind, Store};
use tokio::runtime::Runtime;
use tower_session_end::{ActiveSessions, SessionEnd};

const KINDS: [Kind; 2] = [Kind::Redis, Kind::Postgres];

/// The longest wait for the ends of dead replicas.
const PATIENCE: Duration = Duration::from_secs(120);

/// The heartbeats that are timed.
const HEARTBEATS: u32 = 20;

/// The ends so far, by id.
type Ends = Arc<Mutex<HashMap<String, u32>>>;

#[derive(Clone, Copy, Debug)]
struct Amount {
    fleets: &'static [usize],
    sessions: usize,
    rest: Duration,
    /// Of one replica whose heartbeats are timed.
    many_sessions: &'static [usize],
}

fn main() -> Fallible<()> {
    let amount = if env::args().any(|arg| arg == "--bench") {
        let many_sessions = &[1_000, 100_000];
        Amount { fleets: &[10, 30, 100], sessions: 2_000, rest: Duration::from_secs(10), many_sessions }
    } else {
        Amount { fleets: &[4], sessions: 50, rest: Duration::from_secs(1), many_sessions: &[100] }
    };
    println!("{}\n", describe());
    println!(
        "| registry | replicas | sessions | calls a second of one at rest | served for it a second | all ends of dead ones after, s |"
    );
    println!("|---|{}", "---:|".repeat(5));
    for kind in KINDS {
        for &replicas in amount.fleets {
            // An empty one for each row.
            let Some(store) = Store::new(kind)? else { break };
            measure_fleet(kind, &store, replicas, amount)?;
        }
    }
    println!("\n| registry | sessions of the replica | one heartbeat, median, ms | longest, ms |");
    println!("|---|{}", "---:|".repeat(3));
    for kind in KINDS {
        for &sessions in amount.many_sessions {
            let Some(store) = Store::new(kind)? else { break };
            measure_heartbeat(kind, &store, sessions)?;
        }
    }
    Ok(())
}

fn measure_fleet(kind: Kind, store: &Store, replicas: usize, amount: Amount) -> Fallible<()> {
    let (living, dying) = (runtime()?, runtime()?);
    let ends = Ends::default();
    let half = replicas / 2;
    let start = |runtime: &Runtime, replicas| runtime.block_on(start(store, replicas, amount.sessions, &ends));
    let (survivors, dead) = (start(&living, half..replicas)?, start(&dying, 0..half)?);
    // What is written comes before the rest.
    std::thread::sleep(LEASE / 2);

    let calls = || survivors.iter().map(|replica| replica.calls.all()).sum::<usize>();
    let (calls_before, served_before, begun) = (calls(), servers::served(store)?, Instant::now());
    std::thread::sleep(amount.rest);
    let seconds = begun.elapsed().as_secs_f64();
    let called = (calls() - calls_before) as f64 / survivors.len() as f64 / seconds;
    let served = (servers::served(store)? - served_before) as f64 / replicas as f64 / seconds;

    let killed = Instant::now();
    dying.shutdown_background();
    drop(dead);
    let expected = half * amount.sessions;
    while ends.lock().expect("no hook panics").len() < expected && killed.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    let ended = killed.elapsed().as_secs_f64();
    // A second end would come by now.
    std::thread::sleep(LEASE / 2);
    let ends = ends.lock().expect("no hook panics");
    let is_one = |replica: usize, n| ends.get(&id(replica, n)) == Some(&1);
    let once = (0..half).flat_map(|replica| (0..amount.sessions).map(move |n| (replica, n)));
    let once = once.filter(|&(replica, n)| is_one(replica, n)).count();
    if (once, ends.len()) != (expected, expected) {
        return Err(format!("of {expected} sessions {once} have one end, and {} ids have ends", ends.len()).into());
    }
    let all = replicas * amount.sessions;
    println!("| {} | {replicas} | {all} | {called:.2} | {served:.2} | {ended:.2} |", kind.name());
    survivors.iter().for_each(|replica| {
        replica.sessions.forget_all();
    });
    Ok(())
}

fn measure_heartbeat(kind: Kind, store: &Store, sessions: usize) -> Fallible<()> {
    let runtime = runtime()?;
    let replicas = runtime.block_on(start(store, 0..1, sessions, &Ends::default()))?;
    // Those while the sessions were recorded do not count.
    let before = replicas[0].calls.heartbeats().len();
    std::thread::sleep(HEARTBEATS * LEASE / 4);
    let times = Spread::of(replicas[0].calls.heartbeats().split_off(before));
    println!("| {} | {sessions} | {:.2} | {:.2} |", kind.name(), times.median(), times.max());
    replicas[0].sessions.forget_all();
    Ok(())
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

struct Replica {
    sessions: ActiveSessions,
    calls: Arc<Calls>,
}

/// Starts replicas, and waits until all their sessions are on record.
async fn start(store: &Store, replicas: Range<usize>, sessions: usize, ends: &Ends) -> Fallible<Vec<Replica>> {
    let mut started = Vec::new();
    for number in replicas {
        let (calls, ends) = (Arc::new(Calls::default()), Arc::clone(ends));
        let replica = ActiveSessions::builder()
            .max_sessions(usize::MAX)
            .on_session_end(move |end: SessionEnd| {
                let mut ends = ends.lock().expect("no hook panics");
                *ends.entry(end.session.id.to_string()).or_default() += 1;
                ready(())
            })
            .registry(Counting::new(servers::registry(store).await?, Arc::clone(&calls)))
            .build()?;
        tokio::spawn(replica.shutdown_on(pending::<()>()));
        for n in 1..sessions {
            replica.note(id(number, n));
        }
        // Changes are written in order.
        if !replica.note(id(number, 0)).recorded().await {
            return Err("the registry does not answer".into());
        }
        started.push(Replica { sessions: replica, calls });
    }
    Ok(started)
}

/// An id of 36 bytes, the length of a UUID.
fn id(replica: usize, number: usize) -> String {
    format!("{replica:08}-{number:06}-4c0e-9d4e-5d1e6c1f8a77")
}
