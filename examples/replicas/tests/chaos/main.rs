//! Three gateways on one registry under load, while a random schedule of faults pauses, kills and replaces them, and stops
//! the registry.
//!
//! `CHAOS_SECONDS` is the length of the load, 10 by default. `CHAOS_SEED` repeats a schedule. `CHAOS_FAULTS` chooses some
//! faults, for example `kill,store`; the names are those of [`faults::Fault`]. A run that fails leaves its files, and says
//! where.

mod balance;
mod faults;
mod load;
mod postgres;
#[path = "../../../../tests/support/postgres_server.rs"]
#[allow(dead_code, reason = "the tests of the crate use more of it")]
mod postgres_server;
#[path = "../../../../tests/support/random.rs"]
#[allow(dead_code, reason = "the tests of the crate use more of it")]
mod random;
mod site;
mod store;

use std::{env, sync::Arc, time::Duration};

use crash::now;
use site::Site;
use store::{Kind, Store};

pub(crate) use crate::random::Random;
use crate::{balance::Balance, faults::Faults, load::Load};

impl Random {
    /// From `from` to `to` milliseconds.
    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap())
}

/// A run needs the machine for itself.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn chaos(kind: Kind) {
    let _alone = ONE_AT_A_TIME.lock().await;
    let seed = number("CHAOS_SEED").unwrap_or_else(|| now() % 1_000_000_007);
    let length = Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(10));
    let chosen = env::var("CHAOS_FAULTS").unwrap_or_default();
    println!("{kind:?}: CHAOS_SEED={seed} CHAOS_SECONDS={} CHAOS_FAULTS={chosen}", length.as_secs());

    let mut random = Random::new(seed);
    let store = Store::start(kind).await.unwrap();
    let site = Arc::new(Site::start(store, seed).await.unwrap());
    let load = Arc::new(Load::default());
    let clients = load.start(&site, &mut random);
    let faults = Faults::new(&chosen);
    faults.run(&site, random, length).await;

    // The faults are over. What they have delayed is delivered under load, and the rest by the shutdown.
    tokio::time::sleep(Duration::from_secs(3)).await;
    load.stop();
    for client in clients {
        tokio::time::timeout(crash::PATIENCE, client).await.expect("a client is stuck").unwrap();
    }
    let exits = site.stop_all().await.unwrap();
    let settled = site.settle().await;
    let left = site.store.left().await.unwrap();
    let balance = Balance::of(&site, &load).unwrap();
    let report = balance.report(exits, settled, &left);
    println!("{report}");
    if let Err(violations) = balance.check(&left, settled) {
        let dir = site.keep(&format!("{report}\n{violations}")).unwrap();
        let shown: String = violations.chars().take(20_000).collect();
        panic!("{shown}\nseed {seed}; all of it, the event log and the logs of the processes are in {}", dir.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "random faults on a busy machine; `.ci/long` runs it"]
async fn g15_g16_g17_redis_each_generation_ends_once_whatever_happens_to_processes_and_registry() {
    chaos(Kind::Redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "random faults on a busy machine; `.ci/long` runs it"]
async fn g15_g16_g17_sqlite_each_generation_ends_once_whatever_happens_to_processes_and_registry() {
    chaos(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "random faults on a busy machine; `.ci/long` runs it"]
async fn g15_g16_g17_postgres_each_generation_ends_once_whatever_happens_to_processes_and_registry() {
    if postgres_server::is_installed() {
        chaos(Kind::Postgres).await;
    }
}
