//! What the example and its test share: three gateways, and a client that goes round them.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use crash::{Client, Error, Gone, RedisServer, Server, Settings, TempDir};

/// How many gateways there are.
pub const REPLICAS: usize = 3;

/// Three gateways on one Redis.
#[derive(Debug)]
pub struct Deployment {
    redis: RedisServer,
    dir: TempDir,
    program: std::path::PathBuf,
    replicas: Vec<Option<Server>>,
    starts: usize,
}

impl Deployment {
    /// Starts them; each is `program`, told to `serve`.
    ///
    /// # Errors
    ///
    /// There is no `redis-server`, or one of them does not start.
    pub async fn start(program: &Path) -> Result<Self, Error> {
        let (redis, dir) = (RedisServer::start().await?, TempDir::new()?);
        let replicas = (0..REPLICAS).map(|_| None).collect();
        let mut deployment = Self { redis, dir, program: program.to_owned(), replicas, starts: 0 };
        for index in 0..REPLICAS {
            deployment.replace(index).await?;
        }
        Ok(deployment)
    }

    fn settings(&self, index: usize) -> Settings {
        Settings {
            diary: self.dir.file("diary"),
            registry: self.redis.url(),
            name: format!("{}{}", char::from(b'a' + index as u8), self.starts),
            mood: "-".to_owned(),
        }
    }

    /// Starts a gateway in this place.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn replace(&mut self, index: usize) -> Result<(), Error> {
        self.starts += 1;
        let server = Server::start(&self.program, &self.settings(index)).await?;
        self.replicas[index] = Some(server);
        Ok(())
    }

    /// SIGTERM to the one in this place, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// It is not gone in time.
    pub async fn stop(&mut self, index: usize) -> Result<Gone, Error> {
        self.replicas[index].take().ok_or("nobody is there")?.terminate().await
    }

    /// SIGKILL to the one in this place.
    ///
    /// # Errors
    ///
    /// It cannot be sent.
    pub async fn kill(&mut self, index: usize) -> Result<(), Error> {
        Ok(self.replicas[index].take().ok_or("nobody is there")?.kill().await?)
    }

    /// Sends a signal, by its name, to the one in this place.
    ///
    /// # Errors
    ///
    /// It cannot be sent.
    pub async fn signal(&self, index: usize, name: &str) -> Result<(), Error> {
        self.replicas[index].as_ref().ok_or("nobody is there")?.signal(name).await
    }

    /// A client of each gateway that is there.
    #[must_use]
    pub fn clients(&self) -> Vec<(usize, Client)> {
        self.replicas.iter().enumerate().filter_map(|(n, server)| Some((n, server.as_ref()?.client()))).collect()
    }

    /// Where the hooks write.
    #[must_use]
    pub fn diary(&self) -> std::path::PathBuf {
        self.dir.file("diary")
    }

    /// A small round-robin balancer over those that are there.
    #[must_use]
    pub fn balancer(&self) -> Balancer {
        Balancer { clients: self.clients().into_iter().map(|(_, client)| client).collect(), next: AtomicUsize::new(0) }
    }
}

/// Goes round the gateways, one request each.
#[derive(Debug)]
pub struct Balancer {
    clients: Vec<Client>,
    next: AtomicUsize,
}

impl Balancer {
    /// The one whose turn it is.
    ///
    /// # Panics
    ///
    /// There is none.
    pub fn next(&self) -> &Client {
        &self.clients[self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len()]
    }
}
