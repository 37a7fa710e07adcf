//! SIGKILL at a random moment, under load. `CRASH_ROUNDS=50` for a long run.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{Arc, Mutex},
    time::Duration,
};

use crash::{Client, Error, PATIENCE};

use crate::support::{On, Site};

const CLIENTS: usize = 12;

fn rounds() -> usize {
    std::env::var("CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

fn random(below: u64) -> u64 {
    RandomState::new().hash_one(0_u8) % below
}

/// Every id that a client has seen in a response head.
type Seen = Arc<Mutex<Vec<String>>>;

/// Opens, uses, ends and compacts sessions until the gateway is gone.
async fn client(client: Client, seen: Seen) -> Result<(), Error> {
    let see = |id: &String| seen.lock().unwrap().push(id.clone());
    loop {
        let mut id = client.open().await?;
        see(&id);
        client.say(&id).await?;
        if random(3) == 0 {
            id = client.compact(&id).await?;
            see(&id);
        }
        if random(3) == 0 {
            client.end(&id).await?;
        }
    }
}

async fn g15_every_session_of_a_killed_process_has_its_end(on: On) {
    let mut repeated = 0;
    let mut sessions = 0;
    for round in 0..rounds() {
        let site = Site::new(on).await;
        let server = site.start("killed", "-").await;
        let seen = Seen::default();
        let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(client(server.client(), Arc::clone(&seen)))).collect();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while seen.lock().unwrap().is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "round {round}: nobody comes to anything");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(random(400))).await;
        server.kill().await.unwrap();
        for client in clients {
            // Its connection broke, whatever it was about.
            assert!(client.await.unwrap().is_err());
        }
        let seen = seen.lock().unwrap().clone();
        site.settle(&seen).await;
        repeated += site.assert_each_has_its_end(&seen);
        sessions += seen.len();
    }
    println!("{on:?}: {} rounds, {sessions} sessions, {repeated} of them told twice", rounds());
}

#[tokio::test(flavor = "multi_thread")]
async fn g15_sqlite_every_session_of_a_killed_process_has_its_end() {
    g15_every_session_of_a_killed_process_has_its_end(On::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g15_redis_every_session_of_a_killed_process_has_its_end() {
    g15_every_session_of_a_killed_process_has_its_end(On::Redis).await;
}
