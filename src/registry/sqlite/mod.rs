//! [`SqliteRegistry`]: the registry of the processes of one machine.

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
/// # What it promises
///
/// * What [`apply`](Registry::apply) has answered is on the disk: a write-ahead log, synced at every commit, so it
///   survives SIGKILL and a power cut. One call is one transaction, and calls that wait together share one.
/// * Any number of processes may use the file at the same time: several replicas, or the old and the new one while one
///   replaces the other.
/// * A process's lease is an exclusive lock on a small file in the directory `<file>-leases`. The system frees it when the
///   process ends, however it ends, so nothing has to expire: the next look of a survivor, or the next start, finds what
///   is owed. For the same reason a process that is paused loses nothing.
/// * All work is done on a thread of its own, which ends when the registry is dropped.
///
/// # What it needs
///
/// * **A local file system.** Not NFS or another network file system: neither SQLite's log nor the locks work there.
///   Containers share it as a *directory*, not as a single file, and on one machine.
/// * Leave the directory of leases alone while a process lives, and the files `-wal` and `-shm` too: they are a part of the
///   database. If somebody removes or replaces the file, a process that lives records what it holds in the new one.
/// * The file keeps the size that it once had, and uses its free pages again; `sqlite3 FILE vacuum` gives them back.
/// * A process that forks and goes on in the child without `exec` keeps its lease for as long as the child lives.
///
/// The file is made with permissions for its owner only, because ids of sessions may be credentials.
///
/// # What an operator sees
///
/// Any `sqlite3` of version 3.38 or later, while the processes run:
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
/// # When the file is no good
///
/// [`open`](Self::open) looks at it: whether it is a database of this crate, of a version that it knows, with all its tables,
/// and whether its pages hang together (SQLite's `quick_check`, of a large file as much as can be looked at in a second). What
/// cannot be used is an error that names the file, and
/// [`set_aside_damaged`](SqliteRegistryBuilder::set_aside_damaged) begins a new one instead. A single record whose content
/// is damaged does not stand in the way of the others: it is logged, and stays for the operator to see.
///
/// A disk that fills up later is [`Unavailable`](RegistryError::Unavailable) for as long as it is full.
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
/// assert!(sessions.note("4711").recorded().await); // on the disk
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
    /// Opens the file, or begins a new one, with the defaults of [`builder`](Self::builder).
    ///
    /// It blocks: usually for milliseconds, for up to a second where the file is large, and for up to ten where other
    /// processes start at the same time. Open it before you serve.
    ///
    /// # Errors
    ///
    /// * [`Unavailable`](RegistryError::Unavailable): the directory is missing, may not be written, or is full; other
    ///   processes have kept it locked for too long.
    /// * [`Unusable`](RegistryError::Invalid): the file is damaged, of a newer version, or something else.
    ///
    /// The text names the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RegistryError> {
        Self::builder(path).open()
    }

    /// For other settings than those of [`open`](Self::open).
    pub fn builder(path: impl AsRef<Path>) -> SqliteRegistryBuilder {
        SqliteRegistryBuilder {
            path: path.as_ref().to_owned(),
            busy_timeout: Duration::from_millis(750),
            heartbeat_interval: Duration::from_secs(2),
            set_aside_damaged: false,
        }
    }

    /// The file, with symbolic links resolved.
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

    /// Sees to it that nobody has removed what the lease rests on.
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
    /// How long a call waits while another process writes. 750 ms by default.
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

    /// How often a process looks for what others have left behind. 2 s by default. It costs some file operations for each
    /// of the other processes.
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

    /// Gives a damaged file another name (`<file>.damaged-20261124T170000Z-1`), logs that as an error
    /// (`session-registry-set-aside`), and begins a new one. Off by default: then a damaged file is an error, since what it
    /// owed will not be delivered, and somebody should know.
    ///
    /// A file of a newer version, or a database of another application, is an error in any case.
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

    /// Opens the file, or begins a new one.
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
