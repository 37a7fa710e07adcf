//! [`SqliteRegistry`]: a registry for the processes of one machine.

mod changes;
mod codec;
mod dead_letters;
mod error;
mod holder;
mod lease;
mod open;
mod recovery;
mod schema;
#[cfg(test)]
mod testing;
mod transaction;
mod worker;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use tokio::sync::oneshot;

pub use self::transaction::SqliteTransactionHook;
use self::{
    holder::Holder,
    open::{OPEN_TIMEOUT, Settings},
    recovery::ClaimedOrphans,
    transaction::TransactionHook,
    worker::{Job, Reply, Worker},
};
use super::{Applied, Change, DeadLetter, Heartbeat, Orphan, Registry, RegistryError};
use crate::session::GenerationId;

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
/// * All blocking work runs on a dedicated thread, which exits when the registry and all its clones are dropped, or when the
///   lease is released. No call keeps the thread for long: a recovery of any size is read in pages of 1,000 sessions, and starts
///   and ends are recorded between them.
/// * A call that was dropped while it waited for another process is not applied.
/// * A start makes no running process wait, however long its check of the file takes.
///
/// # Requirements
///
/// * **A local file system.** SQLite's log and the locks do not work on NFS and other network file systems. Containers
///   on one machine share the *directory*, not the single file.
/// * Do not modify the directory of leases or the files `-wal` and `-shm` while a process runs: they are part of the
///   database. If the file is removed or replaced, each running process records its sessions in the new file.
/// * The file does not shrink. It reuses free pages; `sqlite3 FILE vacuum` returns them to the file system.
/// * **SQLite 3.51.3 or later, if several processes write at the same time.** One build can link one SQLite only, so rusqlite
///   0.32 to 0.43 are accepted, and cargo takes the version that fits your other crates: alone 0.43; beside diesel 2,
///   tokio-rusqlite 0.8, deadpool-sqlite 0.14 or r2d2_sqlite 0.35 it is 0.40; beside sqlx 0.9 it is 0.39; beside sqlx 0.8 or
///   sea-orm 1 it is 0.32, with SQLite 3.46.0. Before 3.51.3 SQLite has a fault (its "WAL-reset bug") that can, very rarely,
///   damage a file that several connections write.
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
/// | `dead_letters` | `id`, `reason`, `ended_at`, `error`, `attempts`, `requests`, `since`, `next`, `generation`, `details` |
///
/// A session that was lost stands in `ending_sessions` from the moment that another process recovers it. `claimed_by` is empty
/// if any process may claim the end.
///
/// # Dead letters
///
/// An end whose hooks have failed too often is kept. [`dead_letters`](Self::dead_letters) lists them,
/// [`redeliver`](Self::redeliver) and [`redeliver_all`](Self::redeliver_all) ask for another delivery. A clone of the registry
/// is a second handle of the same holder: keep one for that, because the builder of the sessions takes the registry.
///
/// ```
/// # use tower_session_end::{ActiveSessions, registry::{RegistryError, SqliteRegistry}};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = std::env::temp_dir().join(format!("registry-dead-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let file = dir.join("sessions.db");
/// let registry = SqliteRegistry::open(&file)?;
/// let sessions = ActiveSessions::builder().registry(registry.clone()).build()?;
///
/// for letter in registry.dead_letters(100).await? {
///     println!("{} failed {} times: {}", letter.record.session.id, letter.attempts, letter.error);
/// }
/// println!("{} ends are delivered again", registry.redeliver_all().await?);
/// # drop((sessions, registry));
/// # std::fs::remove_dir_all(dir)?;
/// # Ok(())
/// # }
/// ```
///
/// # Damaged files
///
/// [`open`](Self::open) checks that the file is a database of this crate, has a known version and all tables, and
/// passes SQLite's `quick_check` (for up to one second). Otherwise it returns an error that names the file. With
/// [`set_aside_damaged`](SqliteRegistryBuilder::set_aside_damaged) it renames a damaged file and creates a new one. A
/// single record that cannot be read does not affect the others: it is logged, and stays in the view `dead_letters` for the
/// operator.
///
/// A file of schema 1, 2 or 3 was written by an older version of this crate, and is refused. Start that version once, let it
/// deliver what is pending, and remove the file.
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
#[derive(Clone)]
pub struct SqliteRegistry {
    jobs: mpsc::Sender<Job>,
    path: PathBuf,
    heartbeat_interval: Duration,
    hook: Option<Arc<TransactionHook>>,
}

impl SqliteRegistry {
    /// Opens the file, or creates it, with the defaults of [`builder`](Self::builder).
    ///
    /// This call blocks: usually for a few milliseconds, up to 1 s if the file is large, and up to 10 s if other
    /// processes write or create the file at the same time. Call it before the server accepts connections.
    ///
    /// # Errors
    ///
    /// * [`Unavailable`](RegistryError::Unavailable): the directory is missing, read-only or full, or other processes
    ///   locked it for more than 10 s.
    /// * [`Invalid`](RegistryError::Invalid): the file is damaged, has another version, is not a file of this crate, or was made
    ///   for another [`deployment`](SqliteRegistryBuilder::deployment).
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
            deployment: None,
            hook: None,
        }
    }

    /// Returns up to `max` dead letters, the oldest sessions first.
    ///
    /// A record that cannot be read is left out; it stands in the view `dead_letters`.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](RegistryError::Unavailable): the file cannot be used at the moment, or the lease was released: then this
    /// handle is closed.
    ///
    /// # Cancel safety
    ///
    /// Nothing is changed.
    ///
    /// ```
    /// # use tower_session_end::registry::{RegistryError, SqliteRegistry};
    /// # async fn example(registry: SqliteRegistry) -> Result<(), RegistryError> {
    /// for letter in registry.dead_letters(100).await? {
    ///     println!("{}: {}", letter.record.session.id, letter.error);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn dead_letters(&self, max: usize) -> Result<Vec<DeadLetter>, RegistryError> {
        let (mut letters, mut next) = (Vec::new(), Some(0));
        while let Some(after) = next
            && letters.len() < max
        {
            let limit = max - letters.len();
            let mut page = self.call(|reply| Job::DeadLetters { after, limit, reply }).await?;
            letters.append(&mut page.items);
            next = page.next;
        }
        Ok(letters)
    }

    /// Asks for another delivery of a dead letter, with new attempts. Any process that uses the file claims it after its next
    /// heartbeat. Returns false if there is no such dead letter.
    ///
    /// # Errors
    ///
    /// As [`dead_letters`](Self::dead_letters).
    ///
    /// # Cancel safety
    ///
    /// The request may have been recorded. It may be repeated.
    ///
    /// ```
    /// # use tower_session_end::{GenerationId, registry::{RegistryError, SqliteRegistry}};
    /// # async fn example(registry: SqliteRegistry, generation: GenerationId) -> Result<(), RegistryError> {
    /// if !registry.redeliver(generation).await? {
    ///     println!("there is no dead letter of {generation}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn redeliver(&self, generation: GenerationId) -> Result<bool, RegistryError> {
        self.call(|reply| Job::Redeliver(generation, reply)).await
    }

    /// As [`redeliver`](Self::redeliver), for all dead letters. Returns their number.
    ///
    /// # Errors
    ///
    /// As [`dead_letters`](Self::dead_letters). Some may have been asked for; the call may be repeated.
    ///
    /// # Cancel safety
    ///
    /// As after an error.
    ///
    /// ```
    /// # use tower_session_end::registry::{RegistryError, SqliteRegistry};
    /// # async fn example(registry: SqliteRegistry) -> Result<(), RegistryError> {
    /// println!("{} ends are delivered again", registry.redeliver_all().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn redeliver_all(&self) -> Result<u64, RegistryError> {
        let (mut count, mut next) = (0, Some(0));
        while let Some(after) = next {
            let page = self.call(|reply| Job::RedeliverAfter { after, reply }).await?;
            count += page.items.len() as u64;
            next = page.next;
        }
        Ok(count)
    }

    /// The path of the file, with symbolic links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn call<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, RegistryError> {
        let closed = "the lease was released, and this handle is closed";
        let gone = || RegistryError::unavailable(format!("{}: {closed}", self.path.display()));
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
    ///
    /// [`has_more`](Heartbeat::has_more) is also true if the last [`claim_orphans`](Registry::claim_orphans) left pages of a
    /// recovery unread.
    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        self.call(Job::Heartbeat).await
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        self.call(|reply| Job::ClaimOrphans(max, 0, reply)).await.map(ClaimedOrphans::take)
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.call(Job::ReleaseLease).await
    }

    fn transaction_hook(&self) -> Option<&str> {
        self.hook.as_ref().map(|hook| hook.name.as_str())
    }

    fn heartbeat_interval(&self) -> Duration {
        self.heartbeat_interval
    }
}

impl fmt::Debug for SqliteRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { jobs: _, path, heartbeat_interval, hook } = self;
        f.debug_struct("SqliteRegistry")
            .field("path", path)
            .field("heartbeat_interval", heartbeat_interval)
            .field("hook", hook)
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
    deployment: Option<String>,
    hook: Option<Arc<TransactionHook>>,
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

    /// The name of the deployment to which the file belongs, `production` or `staging` for example. By default it has none.
    ///
    /// The name is written into a new file. [`open`](Self::open) refuses a file that was made under another name, or under none,
    /// and a file with a name if none is set here. Set it where a database may be copied from one deployment to another: the
    /// sessions in the copy are then not ended a second time, in the wrong place. All processes of a deployment have to use the
    /// same name. It cannot be changed later: use a new file.
    ///
    /// ```no_run
    /// # use tower_session_end::registry::SqliteRegistry;
    /// let registry = SqliteRegistry::builder("sessions.db").deployment("production").open()?;
    /// # Ok::<(), tower_session_end::registry::RegistryError>(())
    /// ```
    pub fn deployment(mut self, name: impl Into<String>) -> Self {
        self.deployment = Some(name.into());
        self
    }

    /// A hook that writes in the transactions of the registry, with a name for logs and reports. By default there is none.
    ///
    /// All processes that use the file should set it: an end is delivered by any of them. A second call replaces the hook.
    ///
    /// See [`SqliteTransactionHook`] for an example.
    pub fn transaction_hook(mut self, name: impl Into<String>, hook: impl SqliteTransactionHook) -> Self {
        self.hook = Some(Arc::new(TransactionHook::new(name.into(), hook)));
        self
    }

    /// Opens the file, or creates it.
    ///
    /// # Errors
    ///
    /// As [`SqliteRegistry::open`].
    pub fn open(self) -> Result<SqliteRegistry, RegistryError> {
        let Self { path, busy_timeout, heartbeat_interval, set_aside_damaged, deployment, hook } = self;
        let path = open::resolve(&path)?;
        let settings = Settings { path: path.clone(), busy_timeout, set_aside_damaged, deployment, hook: hook.clone() };
        let holder = Holder::open(settings, OPEN_TIMEOUT)?;
        let (jobs, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("session-registry".to_owned())
            .spawn(move || Worker::new(holder, queue).run())
            .map_err(RegistryError::unavailable)?;
        Ok(SqliteRegistry { jobs, path, heartbeat_interval, hook })
    }
}
