//! Three replicas under load: a rolling restart of all, one SIGKILL, and the shutdown. `REPLICAS_ROUNDS=20` for a long
//! run.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crash::{EventLog, Kind};
use replicas::{Balancer, Deployment, REPLICAS};

const CLIENTS: usize = 9;

/// The state that the clients share.
struct Load {
    /// Replaced when a replica starts or exits.
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

    /// Starts sessions and uses each on all replicas in turn; ends every third one.
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
                // This replica has just exited, or is shutting down; the next one answers.
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
    // Longer than the lease of the killed replica, so that the survivors have recovered its sessions.
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
    for entry in EventLog::open(&deployment.event_log(), "-").unwrap().read().unwrap() {
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
        // After a kill between the record and the start hook there is an end without a start.
        assert!(*starts <= 1, "{event}: {starts} starts");
        assert!(*ends >= 1, "{event}: no end");
        // After a kill between the hook and the removal of the record, another process repeats the end.
        assert_eq!(writers.len(), *ends, "{event}");
        repeated += ends - 1;
    }
    let seen = load.seen.lock().unwrap();
    let missing: Vec<_> = seen.difference(&ended).collect();
    assert!(missing.is_empty(), "without an end: {missing:?}");
    (generations.len(), repeated)
}

#[tokio::test(flavor = "multi_thread")]
async fn g16_each_generation_has_one_end_after_a_rolling_restart_and_a_kill() {
    let rounds = std::env::var("REPLICAS_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for _ in 0..rounds {
        let (generations, repeated) = round().await;
        println!("{generations} generations, {repeated} ends delivered twice");
        assert!(generations > CLIENTS);
        // At the kill, at most a few ends were being delivered.
        assert!(repeated <= 2 * CLIENTS, "{repeated}");
    }
}
