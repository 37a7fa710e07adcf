//! A private `redis-server` on a free port, without persistence.

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

/// A `redis-server`, killed on drop.
#[derive(Debug)]
pub struct RedisServer {
    _child: Child,
    _dir: TempDir,
    port: u16,
}

impl RedisServer {
    /// Starts the server, and waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// `redis-server` is not installed, or does not start.
    pub async fn start() -> Result<Self, Error> {
        Self::with(&[]).await
    }

    /// As [`start`](Self::start), with these options, for example `--enable-debug-command yes`.
    ///
    /// # Errors
    ///
    /// As of [`start`](Self::start).
    pub async fn with(options: &[&str]) -> Result<Self, Error> {
        let dir = TempDir::new()?;
        // The port is free now. If another process takes it first, Redis fails to start.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(dir.path()).args(options);
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn();
        let mut child = started.map_err(|error| {
            format!(
                "cannot start `redis-server` ({error}); install it, for example from Debian's package `redis-server`"
            )
        })?;
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            if let Some(status) = child.try_wait()? {
                return Err(format!("redis-server exited at once: {status}").into());
            }
            if Instant::now() > deadline {
                return Err("redis-server does not accept connections".into());
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(Self { _child: child, _dir: dir, port })
    }

    /// The port of the server.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The URL of the server.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}
