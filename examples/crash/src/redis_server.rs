//! A Redis of one's own: a real `redis-server` on a free port, with nothing on disk.

use std::{
    net::{Ipv4Addr, TcpListener},
    process::Stdio,
    time::Duration,
};

use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep},
};

use crate::{Error, PATIENCE, TempDir};

/// A `redis-server`. It is killed if this is dropped.
#[derive(Debug)]
pub struct RedisServer {
    _child: Child,
    _dir: TempDir,
    port: u16,
}

impl RedisServer {
    /// Starts one, and waits until it takes connections.
    ///
    /// # Errors
    ///
    /// There is no `redis-server` on this machine, or it does not start.
    pub async fn start() -> Result<Self, Error> {
        let dir = TempDir::new()?;
        // Free now; somebody else may take it, and then Redis says so.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(dir.path());
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn();
        let mut child = started.map_err(|error| {
            format!("cannot start `redis-server` ({error}); Debian has it in the package of that name")
        })?;
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            if let Some(status) = child.try_wait()? {
                return Err(format!("redis-server ended at once: {status}").into());
            }
            if Instant::now() > deadline {
                return Err("redis-server takes no connections".into());
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(Self { _child: child, _dir: dir, port })
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}
