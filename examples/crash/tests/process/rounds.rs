//! SIGKILL at a random moment, under load, over HTTP/1 and HTTP/2. `CRASH_ROUNDS=50 CRASH_CLIENTS=500` for a long run.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{Arc, Mutex},
    time::Duration,
};

use crash::{Client, Error, PATIENCE, Server};

use crate::support::{On, Site};

/// The number of HTTP/2 clients that share one connection. HTTP/1 clients have one connection each.
const STREAMS: usize = 25;

fn rounds() -> usize {
    set("CRASH_ROUNDS").unwrap_or(3)
}

fn set(name: &str) -> Option<usize> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

/// The clients; half of them use HTTP/2.
fn clients(server: &Server) -> Vec<Client> {
    let n = set("CRASH_CLIENTS").unwrap_or(12);
    let mut clients: Vec<_> = (0..n / 2).map(|_| server.client()).collect();
    while clients.len() < n {
        let client = Client::http2(server.address);
        clients.extend(std::iter::repeat_n(client, STREAMS.min(n - clients.len())));
    }
    clients
}

fn random(below: u64) -> u64 {
    RandomState::new().hash_one(0_u8) % below
}

/// Every id that a client has seen in a response head.
type Seen = Arc<Mutex<Vec<String>>>;

/// Starts, uses, ends and compacts sessions until the gateway exits.
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
        let clients: Vec<_> =
            clients(&server).into_iter().map(|one| tokio::spawn(client(one, Arc::clone(&seen)))).collect();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while seen.lock().unwrap().is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "round {round}: the clients make no progress");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(random(400))).await;
        server.kill().await.unwrap();
        for client in clients {
            // Its connection was closed by the kill.
            assert!(client.await.unwrap().is_err());
        }
        let seen = seen.lock().unwrap().clone();
        site.settle(&seen).await;
        repeated += site.assert_each_has_its_end(&seen);
        sessions += seen.len();
    }
    println!("{on:?}: {} rounds, {sessions} sessions, {repeated} ends delivered twice", rounds());
}

#[tokio::test(flavor = "multi_thread")]
async fn g15_sqlite_every_session_of_a_killed_process_has_its_end() {
    g15_every_session_of_a_killed_process_has_its_end(On::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn g15_redis_every_session_of_a_killed_process_has_its_end() {
    g15_every_session_of_a_killed_process_has_its_end(On::Redis).await;
}
