//! Three replicas under load: a rolling restart of all, one SIGKILL, and the stop. `REPLICAS_ROUNDS=20` for a long run.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crash::{Diary, Kind};
use replicas::{Balancer, Deployment, REPLICAS};

const CLIENTS: usize = 9;

/// What the clients share.
struct Load {
    /// Replaced whenever a replica comes or goes.
    balancer: Mutex<Arc<Balancer>>,
    seen: Mutex<HashSet<String>>,
    stop: AtomicBool,
}

impl Load {
    fn balancer(&self) -> Arc<Balancer> {
        Arc::clone(&self.balancer.lock().unwrap())
    }

    fn look(&self, deployment: &Deployment) {
        *self.balancer.lock().unwrap() = Arc::new(deployment.balancer());
    }

    fn see(&self, id: &str) {
        self.seen.lock().unwrap().insert(id.to_owned());
    }

    /// Opens sessions and uses each on all replicas in turn; every third is ended by the client.
    async fn client(&self) {
        for n in 0_u32.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let Ok(id) = self.balancer().next().open().await else {
                tokio::task::yield_now().await;
                continue;
            };
            self.see(&id);
            for _ in 0..2 * REPLICAS {
                // One that has just gone, or is going: the next one answers.
                let _ = self.balancer().next().say(&id).await;
            }
            if n.is_multiple_of(3) {
                let _ = self.balancer().next().end(&id).await;
            }
        }
    }
}

async fn round() -> (usize, usize) {
    let mut deployment = Deployment::start(Path::new(env!("CARGO_BIN_EXE_replicas"))).await.unwrap();
    let load = Arc::new(Load {
        balancer: Mutex::new(Arc::new(deployment.balancer())),
        seen: Mutex::default(),
        stop: AtomicBool::new(false),
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let load = Arc::clone(&load);
            tokio::spawn(async move { load.client().await })
        })
        .collect();

    for index in 0..REPLICAS {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let gone = deployment.stop(index).await.unwrap();
        assert_eq!(gone.code, Some(0), "{}", gone.report);
        load.look(&deployment);
        deployment.replace(index).await.unwrap();
        load.look(&deployment);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    deployment.kill(REPLICAS - 1).await.unwrap();
    load.look(&deployment);
    // Beyond the lease of the killed one, so that the survivors have taken over.
    tokio::time::sleep(Duration::from_millis(4000)).await;
    load.stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    for index in 0..REPLICAS - 1 {
        let gone = deployment.stop(index).await.unwrap();
        assert_eq!(gone.code, Some(0), "{}", gone.report);
    }

    let mut generations = HashMap::<_, (usize, HashSet<String>, usize)>::new();
    let mut ended = HashSet::new();
    for entry in Diary::open(&deployment.diary(), "-").unwrap().read().unwrap() {
        let (starts, writers, ends) = generations.entry(entry.event).or_default();
        match entry.kind {
            Kind::Start => *starts += 1,
            Kind::End => {
                *ends += 1;
                writers.insert(entry.writer);
                ended.insert(entry.id);
            }
        }
    }
    let mut repeated = 0;
    for (event, (starts, writers, ends)) in &generations {
        // Killed between the record and the start hook: then there is an end alone.
        assert!(*starts <= 1, "{event}: {starts} starts");
        assert!(*ends >= 1, "{event}: no end");
        // More than one only where the kill fell between the hook and the record: by another process.
        assert_eq!(writers.len(), *ends, "{event}");
        repeated += ends - 1;
    }
    let seen = load.seen.lock().unwrap();
    let missing: Vec<_> = seen.difference(&ended).collect();
    assert!(missing.is_empty(), "without an end: {missing:?}");
    (generations.len(), repeated)
}

#[tokio::test(flavor = "multi_thread")]
async fn g16_a_rolling_restart_and_a_kill_leave_exactly_one_end_for_each_generation() {
    let rounds = std::env::var("REPLICAS_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for _ in 0..rounds {
        let (generations, repeated) = round().await;
        println!("{generations} generations, {repeated} ends told twice");
        assert!(generations > CLIENTS);
        // The clients of the killed one had a handful of ends under way, at most.
        assert!(repeated <= 2 * CLIENTS, "{repeated}");
    }
}
