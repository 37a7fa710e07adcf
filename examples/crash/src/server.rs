//! The gateway as a child process, and a temporary directory.

use std::{
    collections::hash_map::RandomState,
    env,
    ffi::OsStr,
    fs,
    hash::BuildHasher,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::{Client, Error};

/// Longer than any step takes on a busy machine; only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway in a child process, killed on drop.
#[derive(Debug)]
pub struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// The address on which it listens.
    pub address: SocketAddr,
    /// The report of its recovery.
    pub recovery: String,
}

/// The result of a gateway that has exited.
#[derive(Debug)]
pub struct Gone {
    /// Its exit code; `None` after SIGKILL.
    pub code: Option<i32>,
    /// The output after the address.
    pub report: String,
}

impl Server {
    /// Starts `program serve` with these arguments as a gateway, and waits until it listens.
    ///
    /// # Errors
    ///
    /// The process does not start, or exits before it listens.
    pub async fn start(program: &Path, args: &[impl AsRef<OsStr>]) -> Result<Self, Error> {
        Self::spawn(program, args)?.listening().await
    }

    /// As [`start`](Self::start), but does not wait until it listens.
    ///
    /// # Errors
    ///
    /// The process does not start.
    pub fn spawn(program: &Path, args: &[impl AsRef<OsStr>]) -> io::Result<Starting> {
        let mut command = Command::new(program);
        command.arg("serve").args(args).stdout(Stdio::piped()).kill_on_drop(true);
        Ok(Starting(command.spawn()?))
    }

    /// As [`start`](Self::start), with stderr appended to a file.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or the process does not start, or exits before it listens.
    pub async fn start_with_log(program: &Path, args: &[impl AsRef<OsStr>], log: &Path) -> Result<Self, Error> {
        let log = fs::OpenOptions::new().append(true).create(true).open(log)?;
        let mut command = Command::new(program);
        command.arg("serve").args(args).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        Starting(command.spawn()?).listening().await
    }

    /// A client of the gateway.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Sends SIGKILL.
    ///
    /// # Errors
    ///
    /// The signal cannot be sent.
    pub async fn kill(mut self) -> io::Result<()> {
        self.child.kill().await
    }

    /// Sends a signal by its name.
    ///
    /// # Errors
    ///
    /// The signal cannot be sent.
    pub async fn signal(&self, name: &str) -> Result<(), Error> {
        let pid = self.child.id().ok_or("the process has exited")?;
        // The `kill` built into the shell works where the program `kill` is not installed.
        let kill = Command::new("sh").arg("-c").arg(format!("kill -s {name} {pid}")).status().await?;
        if kill.success() { Ok(()) } else { Err(format!("kill -s {name} {pid}: {kill}").into()) }
    }

    /// Sends SIGTERM, and waits until the process exits.
    ///
    /// # Errors
    ///
    /// The process does not exit in time.
    pub async fn terminate(self) -> Result<Gone, Error> {
        self.signal("TERM").await?;
        self.gone().await
    }

    /// Waits until the process exits.
    ///
    /// # Errors
    ///
    /// The process does not exit in time.
    pub async fn gone(mut self) -> Result<Gone, Error> {
        let mut report = String::new();
        let all = async {
            self.stdout.read_to_string(&mut report).await?;
            self.child.wait().await
        };
        let status = timeout(PATIENCE, all).await??;
        Ok(Gone { code: status.code(), report })
    }
}

/// A gateway that does not listen yet.
#[derive(Debug)]
pub struct Starting(Child);

impl Starting {
    /// Waits until it listens.
    ///
    /// # Errors
    ///
    /// The process exits first.
    pub async fn listening(mut self) -> Result<Server, Error> {
        let mut stdout = BufReader::new(self.0.stdout.take().ok_or("stdout is not piped")?);
        let (mut recovery, mut listening) = (String::new(), String::new());
        let lines = async {
            stdout.read_line(&mut recovery).await?;
            stdout.read_line(&mut listening).await
        };
        timeout(PATIENCE, lines).await??;
        let address =
            listening.trim().strip_prefix("listening on http://").ok_or("the process did not print its address")?;
        let address = address.parse()?;
        Ok(Server { child: self.0, stdout, address, recovery: recovery.trim().to_owned() })
    }

    /// Sends SIGKILL.
    ///
    /// # Errors
    ///
    /// The signal cannot be sent.
    pub async fn kill(mut self) -> io::Result<()> {
        self.0.kill().await
    }
}

/// A temporary directory, removed on drop.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Creates a new, empty directory.
    ///
    /// # Errors
    ///
    /// The directory cannot be created.
    pub fn new() -> io::Result<Self> {
        let name = format!("tower-session-end-{:016x}", RandomState::new().hash_one(std::process::id()));
        let path = env::temp_dir().join(name);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// The path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of a file in the directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
