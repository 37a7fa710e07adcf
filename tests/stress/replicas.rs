//! Two replicas on one registry, on real threads: everything at the same time, with and without faults.
//!
//! Three rounds; `STORM_ROUNDS=50` for the long form, `STORM_SEED` to repeat one that failed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::support::random::{Random, storm_seeds};
use crate::support::recorder::{Event, assert_sum};
use crate::support::replica::Replica;
use crate::support::store::{Fault, Store};
use tower_session_end::{EndReason, GenerationId};

const IDS: u64 = 12;
const STEPS: u64 = 400;
const NOISE: u64 = 3;

/// Notes, ends, compacts and guards, on a thread of its own.
fn live(replica: &Replica, mut random: Random) {
    let sessions = &replica.sessions;
    let mut guards = Vec::new();
    for _ in 0..STEPS {
        let id = format!("s{}", random.below(IDS));
        match random.below(8) {
            0..=2 => drop(sessions.note(id)),
            3 | 4 => drop(sessions.end(id, EndReason::Deleted)),
            5 => drop(sessions.compact(id, format!("s{}", random.below(IDS)))),
            6 => guards.push(sessions.guard(id).unwrap()),
            _ => drop(guards.pop()),
        }
        if random.one_in(16) {
            std::thread::sleep(Duration::from_micros(random.below(300)));
        }
    }
}

/// What goes wrong, until it is told to stop.
async fn trouble(replicas: [Arc<Replica>; 2], mut random: Random, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        let replica = &replicas[random.below(2) as usize];
        match random.below(6) {
            0 => replica.holder.set(Fault::Down),
            1 => replica.holder.set(Fault::Deaf),
            2 => replica.holder.set(Fault::Short),
            3 => replica.holder.kill(),
            4 => replica.holder.doubt(random.one_in(2)),
            _ => replica.holder.set(Fault::None),
        }
        tokio::time::sleep(Duration::from_micros(random.below(3000))).await;
    }
    for replica in &replicas {
        replica.holder.set(Fault::None);
        replica.holder.doubt(false);
    }
}

async fn round(seed: u64, with_trouble: bool) {
    let mut random = Random::new(seed);
    let store = Store::default();
    let replicas = [0, 1].map(|_| Arc::new(Replica::with(&store, |builder| builder.max_sessions(IDS as usize - 2))));
    let drivers = replicas.each_ref().map(|replica| replica.drive());
    let stop = Arc::new(AtomicBool::new(!with_trouble));
    let troubled = tokio::spawn(trouble(replicas.clone(), random.fork(), Arc::clone(&stop)));
    let living: Vec<_> = (0..2 * NOISE)
        .map(|n| {
            let (replica, random) = (Arc::clone(&replicas[n as usize % 2]), random.fork());
            tokio::task::spawn_blocking(move || live(&replica, random))
        })
        .collect();
    for life in living {
        life.await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    troubled.await.unwrap();
    let about = format!("seed {seed}");
    for _ in 0..2000 {
        if replicas.iter().all(|replica| !replica.sessions.is_degraded()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drivers.iter().for_each(tokio::task::JoinHandle::abort);
    let mut events = Vec::new();
    for replica in &replicas {
        let report = replica.sessions.finish(async {}).await.report;
        assert_sum(&report.sessions);
        assert!(report.sessions.unfinished.is_empty() && (with_trouble || report.is_clean()), "{about}: {report}");
        replica.holder.kill();
        events.extend(replica.recorder.events());
    }
    // What was handed over, or taken over and not heard of.
    let next = Replica::new(&store);
    let report = next.sessions.recover().await;
    assert!(report.error.is_none() && (with_trouble || report.found == 0), "{about}: {report}");
    events.extend(next.recorder.events());
    assert!(store.events().is_empty(), "{about}: left {:?} {:?}", store.active(), store.owed());

    let mut told = BTreeMap::<GenerationId, (u32, u32)>::new();
    for event in &events {
        match event {
            Event::Start(start) => told.entry(start.generation).or_default().0 += 1,
            Event::End(end) => told.entry(end.generation).or_default().1 += 1,
        }
    }
    for event in store.history().recorded.keys() {
        assert!(told.get(event).is_some_and(|(_, ends)| *ends > 0), "{about}: {event} was on record, and has no end");
    }
    for (event, (starts, ends)) in &told {
        assert!(*starts <= 1 && *ends >= 1, "{about}: {event} has {starts} starts and {ends} ends");
        assert!(with_trouble || (*starts, *ends) == (1, 1), "{about}: {event} has {starts} starts and {ends} ends");
    }
    println!("{about}: {} generations, {} events", told.len(), events.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn g01_g16_two_replicas_that_do_everything_at_once_end_each_session_once() {
    let _alone = crate::ONE_AT_A_TIME.lock().await;
    for seed in storm_seeds() {
        round(seed, false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn g15_g17_two_replicas_whose_registry_comes_and_goes_lose_no_end() {
    let _alone = crate::ONE_AT_A_TIME.lock().await;
    for seed in storm_seeds() {
        round(seed, true).await;
    }
}
