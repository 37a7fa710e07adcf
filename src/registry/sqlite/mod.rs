//! [`SqliteRegistry`]: a registry for the processes of one machine.

mod changes;
mod codec;
mod error;
mod holder;
mod lease;
mod open;
mod recovery;
mod schema;
mod worker;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use tokio::sync::oneshot;

use self::{
    holder::Holder,
    open::Settings,
    recovery::ClaimedOrphans,
    worker::{Job, Reply},
};
use super::{Applied, Change, Orphan, Registry, RegistryError};

/// A [`Registry`] in one SQLite file (feature `sqlite`), for any number of processes on one machine.
///
/// # Guarantees
///
/// * Applied changes are durable: [`apply`](Registry::apply) returns after the write-ahead log was synced, so they
///   survive SIGKILL and a power cut. One call is one transaction. Calls that wait at the same time share one
///   transaction.
/// * Any number of processes may use the file at the same time: several replicas, or the old and the new process during
///   a deployment.
/// * The lease of a process is an exclusive lock on a small file in the directory `<file>-leases`. The system releases
///   the lock when the process exits or is killed. No lease has to time out: the next
///   [`claim_orphans`](Registry::claim_orphans) of any process finds the pending ends. A paused process keeps its
///   lease.
/// * All blocking work runs on a dedicated thread, which exits when the registry is dropped.
///
/// # Requirements
///
/// * **A local file system.** SQLite's log and the locks do not work on NFS and other network file systems. Containers
///   on one machine share the *directory*, not the single file.
/// * Do not modify the directory of leases or the files `-wal` and `-shm` while a process runs: they are part of the
///   database. If the file is removed or replaced, each running process records its sessions in the new file.
/// * The file does not shrink. It reuses free pages; `sqlite3 FILE vacuum` returns them to the file system.
/// * If a process forks and its child runs without `exec`, the lease lasts until the child exits too.
///
/// The file is created with permissions for its owner only, because session ids may be credentials.
///
/// # For operators
///
/// Query the views with `sqlite3` (3.38 or later), also while processes run:
///
/// ```console
/// $ sqlite3 sessions.db 'select * from active_sessions'
/// $ sqlite3 sessions.db 'select * from ending_sessions'
/// ```
///
/// | view | columns |
/// |---|---|
/// | `active_sessions` | `id`, `since`, `held_by` (program, process, host), `key`, `agent`, `generation`, `details` (JSON) |
/// | `ending_sessions` | `id`, `reason`, `ended_at`, `claimed_by`, `attempts`, `requests`, `since`, `next`, `generation`, `details` |
///
/// # Damaged files
///
/// [`open`](Self::open) checks that the file is a database of this crate, has a known version and all tables, and
/// passes SQLite's `quick_check` (for up to one second). Otherwise it returns an error that names the file. With
/// [`set_aside_damaged`](SqliteRegistryBuilder::set_aside_damaged) it renames a damaged file and creates a new one. A
/// single record that cannot be read does not affect the others: it is logged, and stays in the view for the operator.
///
/// While the disk is full, calls return [`Unavailable`](RegistryError::Unavailable).
///
/// # Examples
///
/// ```
/// use tower_session_end::{ActiveSessions, registry::SqliteRegistry};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = std::env::temp_dir().join(format!("registry-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let file = dir.join("sessions.db");
/// let sessions = ActiveSessions::builder().registry(SqliteRegistry::open(&file)?).build()?;
/// println!("{}", sessions.recover().await);
/// assert!(sessions.note("4711").recorded().await); // durable
/// # sessions.forget("4711");
/// # drop(sessions);
/// # std::fs::remove_dir_all(dir)?;
/// # Ok(())
/// # }
/// ```
pub struct SqliteRegistry {
    jobs: mpsc::Sender<Job>,
    path: PathBuf,
    heartbeat_interval: Duration,
}

impl SqliteRegistry {
    /// Opens the file, or creates it, with the defaults of [`builder`](Self::builder).
    ///
    /// This call blocks: usually for a few milliseconds, up to 1 s if the file is large, and up to 10 s if other
    /// processes start at the same time. Call it before the server accepts connections.
    ///
    /// # Errors
    ///
    /// * [`Unavailable`](RegistryError::Unavailable): the directory is missing, read-only or full, or other processes
    ///   locked it for more than 10 s.
    /// * [`Invalid`](RegistryError::Invalid): the file is damaged, has another version, or is not a file of this crate.
    ///
    /// The text names the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RegistryError> {
        Self::builder(path).open()
    }

    /// Builds a registry with other settings than [`open`](Self::open).
    pub fn builder(path: impl AsRef<Path>) -> SqliteRegistryBuilder {
        SqliteRegistryBuilder {
            path: path.as_ref().to_owned(),
            busy_timeout: Duration::from_millis(750),
            heartbeat_interval: Duration::from_secs(2),
            set_aside_damaged: false,
        }
    }

    /// The path of the file, with symbolic links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn call<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, RegistryError> {
        let gone = || RegistryError::unavailable(format!("{}: this holder has left", self.path.display()));
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Registry for SqliteRegistry {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        self.call(|reply| Job::Apply(changes, reply)).await
    }

    /// Checks that the database file, the lease file and the holder's row still exist.
    async fn heartbeat(&self) -> Result<(), RegistryError> {
        self.call(Job::Heartbeat).await
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        self.call(|reply| Job::ClaimOrphans(max, reply)).await.map(ClaimedOrphans::take)
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.call(Job::ReleaseLease).await
    }

    fn heartbeat_interval(&self) -> Duration {
        self.heartbeat_interval
    }
}

impl fmt::Debug for SqliteRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { jobs: _, path, heartbeat_interval } = self;
        f.debug_struct("SqliteRegistry")
            .field("path", path)
            .field("heartbeat_interval", heartbeat_interval)
            .finish_non_exhaustive()
    }
}

/// Settings of a [`SqliteRegistry`]; from [`SqliteRegistry::builder`].
#[derive(Clone, Debug)]
#[must_use = "nothing is opened before `open`"]
pub struct SqliteRegistryBuilder {
    path: PathBuf,
    busy_timeout: Duration,
    heartbeat_interval: Duration,
    set_aside_damaged: bool,
}

impl SqliteRegistryBuilder {
    /// How long a call waits while another process writes. The default is 750 ms.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tower_session_end::registry::SqliteRegistry;
    /// let registry = SqliteRegistry::builder("sessions.db").busy_timeout(Duration::from_millis(200)).open()?;
    /// # Ok::<(), tower_session_end::registry::RegistryError>(())
    /// ```
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// How often this process checks its lease and looks for orphans. The default is 2 s.
    ///
    /// Each check costs a few file operations per other process.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tower_session_end::registry::SqliteRegistry;
    /// let registry = SqliteRegistry::builder("sessions.db").heartbeat_interval(Duration::from_millis(500)).open()?;
    /// # Ok::<(), tower_session_end::registry::RegistryError>(())
    /// ```
    pub fn heartbeat_interval(mut self, every: Duration) -> Self {
        self.heartbeat_interval = every;
        self
    }

    /// Whether [`open`](Self::open) renames a damaged file (`<file>.damaged-20261124T170000Z-1`) and creates a new one.
    /// The default is `false`.
    ///
    /// The rename is logged as an error (`session-registry-set-aside`), because the pending ends in the damaged file
    /// will not be delivered. By default `open` returns an error for a damaged file. It always returns an error for a
    /// file of another version or of another application.
    ///
    /// ```no_run
    /// # use tower_session_end::registry::SqliteRegistry;
    /// let registry = SqliteRegistry::builder("sessions.db").set_aside_damaged(true).open()?;
    /// # Ok::<(), tower_session_end::registry::RegistryError>(())
    /// ```
    pub fn set_aside_damaged(mut self, set_aside: bool) -> Self {
        self.set_aside_damaged = set_aside;
        self
    }

    /// Opens the file, or creates it.
    ///
    /// # Errors
    ///
    /// As [`SqliteRegistry::open`].
    pub fn open(self) -> Result<SqliteRegistry, RegistryError> {
        let Self { path, busy_timeout, heartbeat_interval, set_aside_damaged } = self;
        let path = open::resolve(&path)?;
        let holder = Holder::open(Settings { path: path.clone(), busy_timeout, set_aside_damaged })?;
        let (jobs, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("session-registry".to_owned())
            .spawn(move || worker::run(holder, &queue))
            .map_err(RegistryError::unavailable)?;
        Ok(SqliteRegistry { jobs, path, heartbeat_interval })
    }
}
