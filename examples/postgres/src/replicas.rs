//! The processes of the replicas, and the clients.

use std::{
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crash::{Client, Error, Gone, Server};
use tokio::{task::JoinSet, time::sleep};

/// The running replicas.
pub(crate) struct Replicas {
    program: PathBuf,
    url: String,
    servers: Vec<Server>,
    pub(crate) balancer: Arc<Balancer>,
}

impl Replicas {
    /// Each runs `program serve url`.
    pub(crate) async fn start(program: PathBuf, url: String, count: usize) -> Result<Self, Error> {
        let mut replicas = Self { program, url, servers: Vec::new(), balancer: Arc::default() };
        for _ in 0..count {
            replicas.start_one().await?;
        }
        Ok(replicas)
    }

    /// Returns the report of its recovery.
    pub(crate) async fn start_one(&mut self) -> Result<String, Error> {
        let server = Server::start(&self.program, &[&self.url]).await?;
        let recovery = server.recovery.clone();
        self.servers.push(server);
        self.balance();
        Ok(recovery)
    }

    /// Sends SIGTERM to the oldest replica. The clients turn to the others before.
    pub(crate) async fn stop_oldest(&mut self) -> Result<Gone, Error> {
        let server = self.servers.remove(0);
        self.balance();
        server.terminate().await
    }

    /// Sends SIGKILL to the oldest replica. The clients notice it by their errors.
    pub(crate) async fn kill_oldest(&mut self) -> Result<(), Error> {
        self.servers.remove(0).kill().await?;
        self.balance();
        Ok(())
    }

    /// Sends SIGTERM to all at once.
    pub(crate) async fn stop_all(&mut self) -> Result<Vec<Gone>, Error> {
        for server in &self.servers {
            server.signal("TERM").await?;
        }
        let mut all = Vec::new();
        for server in std::mem::take(&mut self.servers) {
            all.push(server.gone().await?);
        }
        self.balance();
        Ok(all)
    }

    /// A client of each replica, the oldest first.
    pub(crate) fn clients(&self) -> Vec<Client> {
        self.servers.iter().map(Server::client).collect()
    }

    fn balance(&self) {
        *self.balancer.clients.write().unwrap_or_else(PoisonError::into_inner) = self.clients();
    }
}

/// One request for each replica in turn.
#[derive(Default)]
pub(crate) struct Balancer {
    clients: RwLock<Vec<Client>>,
    turn: AtomicUsize,
}

impl Balancer {
    pub(crate) fn next(&self) -> Result<Client, Error> {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        Ok(clients.get(turn % clients.len().max(1)).ok_or("no replica is running")?.clone())
    }
}

/// Clients that open, use and end chats until they are stopped.
pub(crate) struct Load {
    clients: JoinSet<Vec<String>>,
    is_over: Arc<AtomicBool>,
}

impl Load {
    pub(crate) fn start(balancer: &Arc<Balancer>, count: usize) -> Self {
        let mut load = Self { clients: JoinSet::new(), is_over: Arc::default() };
        for _ in 0..count {
            load.clients.spawn(client(Arc::clone(balancer), Arc::clone(&load.is_over)));
        }
        load
    }

    /// Returns the ids of all chats of which the clients know.
    pub(crate) async fn stop(self) -> Vec<String> {
        self.is_over.store(true, Ordering::Relaxed);
        self.clients.join_all().await.into_iter().flatten().collect()
    }
}

async fn client(balancer: Arc<Balancer>, is_over: Arc<AtomicBool>) -> Vec<String> {
    let mut ids = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        // An error does not stop the clients: a replica is killed, or the database restarts.
        let pause = if chat(&balancer, &mut ids).await.is_ok() { 20 } else { 200 };
        sleep(Duration::from_millis(pause)).await;
    }
    ids
}

/// A chat with a message to each replica. The client ends every second one.
async fn chat(balancer: &Balancer, ids: &mut Vec<String>) -> Result<(), Error> {
    let id = balancer.next()?.open().await?;
    ids.push(id.clone());
    for _ in 0..3 {
        sleep(Duration::from_millis(20)).await;
        balancer.next()?.say(&id).await?;
    }
    if ids.len().is_multiple_of(2) {
        balancer.next()?.end(&id).await?;
    }
    Ok(())
}
