//! Shared by the example and its tests: three gateways and a round-robin client.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use crash::{Client, Error, Gone, RedisServer, Server, Settings, TempDir};

/// The number of gateways.
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
    /// Starts the gateways: each runs `program serve`.
    ///
    /// # Errors
    ///
    /// `redis-server` is missing, or a gateway does not start.
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
            event_log: self.dir.file("event_log"),
            registry: self.redis.url(),
            name: format!("{}{}", char::from(b'a' + index as u8), self.starts),
            fault: "-".to_owned(),
        }
    }

    /// Starts the gateway with this index.
    ///
    /// # Errors
    ///
    /// The gateway does not start.
    pub async fn replace(&mut self, index: usize) -> Result<(), Error> {
        self.starts += 1;
        let server = Server::start(&self.program, &self.settings(index).to_args()).await?;
        self.replicas[index] = Some(server);
        Ok(())
    }

    /// Sends SIGTERM to the gateway with this index, and waits until it exits.
    ///
    /// # Errors
    ///
    /// The gateway does not exit in time.
    pub async fn stop(&mut self, index: usize) -> Result<Gone, Error> {
        self.replicas[index].take().ok_or("this gateway is not running")?.terminate().await
    }

    /// Sends SIGKILL to the gateway with this index.
    ///
    /// # Errors
    ///
    /// The signal cannot be sent.
    pub async fn kill(&mut self, index: usize) -> Result<(), Error> {
        Ok(self.replicas[index].take().ok_or("this gateway is not running")?.kill().await?)
    }

    /// Sends a signal, by its name, to the gateway with this index.
    ///
    /// # Errors
    ///
    /// The signal cannot be sent.
    pub async fn signal(&self, index: usize, name: &str) -> Result<(), Error> {
        self.replicas[index].as_ref().ok_or("this gateway is not running")?.signal(name).await
    }

    /// A client of each running gateway.
    #[must_use]
    pub fn clients(&self) -> Vec<(usize, Client)> {
        self.replicas.iter().enumerate().filter_map(|(n, server)| Some((n, server.as_ref()?.client()))).collect()
    }

    /// The file to which the hooks write.
    #[must_use]
    pub fn event_log(&self) -> std::path::PathBuf {
        self.dir.file("event_log")
    }

    /// A round-robin balancer over the running gateways.
    #[must_use]
    pub fn balancer(&self) -> Balancer {
        Balancer { clients: self.clients().into_iter().map(|(_, client)| client).collect(), next: AtomicUsize::new(0) }
    }
}

/// A round-robin balancer: one request per gateway.
#[derive(Debug)]
pub struct Balancer {
    clients: Vec<Client>,
    next: AtomicUsize,
}

impl Balancer {
    /// The next gateway.
    ///
    /// # Panics
    ///
    /// No gateway is running.
    pub fn next(&self) -> &Client {
        &self.clients[self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len()]
    }
}
