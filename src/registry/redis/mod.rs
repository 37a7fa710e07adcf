//! [`RedisRegistry`]: the registry of several machines, on Redis or Valkey.

mod builder;
mod changes;
mod errors;
mod holder;
mod keys;
mod lease;
mod reply;
mod scripts;

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use redis::aio::ConnectionLike;
use tokio::sync::{Mutex, MutexGuard};

pub use self::builder::RedisRegistryBuilder;
use self::{
    builder::Settings,
    changes::batches,
    holder::{Connection, Holder, ScriptContext, random},
    keys::Keys,
    lease::Lease,
    scripts::{APPLY, HEARTBEAT, RECOVER, ScriptArgs},
};
use super::{Applied, Change, Orphan, Registry, RegistryError};

/// A [`Registry`] on Redis (6.0 or later) or Valkey, for any number of processes on any number of machines.
///
/// It runs over any connection of the `redis` crate that can be cloned: a
/// [`ConnectionManager`](::redis::aio::ConnectionManager) (recommended: it reconnects by itself), a cluster connection
/// (feature `redis-cluster`), a multiplexed one. Addresses, passwords and TLS are that crate's matter.
///
/// ```no_run
/// use std::time::Duration;
/// use redis::aio::ConnectionManagerConfig;
/// use tower_session_end::registry::RedisRegistry;
///
/// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
/// let client = redis::Client::open("redis://:secret@sessions.internal/")?;
/// // How soon it is back after an outage; the default waits up to six seconds between two attempts.
/// let config = ConnectionManagerConfig::new().set_max_delay(Duration::from_secs(1));
/// let connection = client.get_connection_manager_with_config(config).await?;
/// let registry = RedisRegistry::builder(connection).prefix("gateway").connect().await?;
/// # Ok(())
/// # }
/// ```
///
/// # What it does on the server
///
/// Every change is part of a script that first makes sure that the store is the one that was known, and that the
/// lease is still this holder's. One script carries out up to 256 changes (fewer, if they are big) and takes a server
/// some 3 ms; an [`apply`](Registry::apply) of more is several scripts, each all or nothing. If one of them fails the
/// whole call is an error, and can be repeated as a whole. A beat and a take-over with nothing to find are one script each. Calls
/// of one holder wait for each other.
///
/// Nobody is told when a session ends elsewhere: the others learn it when they let go
/// ([`Gone`](Applied::NotFound)).
///
/// # When something fails
///
/// * **A holder is silent beyond its lease** (by the server's clock): the others take over what it holds and has
///   claimed. When it is back it is [`Fenced`](RegistryError::Fenced), and none of its changes since has been carried
///   out. [`lease_is_valid`](Registry::lease_is_valid) is false before that, by its own clocks.
/// * **The server is away**, for however long: calls are [`Unavailable`](RegistryError::Unavailable) within the
///   command timeout. Whoever reaches it first afterwards sees that nobody was heard for half a lease, and takes nobody's lease
///   before another whole one has passed. So does a single process that starts long after its predecessor died: it finds what
///   that left one lease later.
/// * **It comes back empty, or another one takes its place** (a restart, a failover, a flush): the next call is
///   [`Forgotten`](RegistryError::DataLost), whether or not something is missing. What is then held again has its old
///   event ids; a [`Hold`](Change::Hold) that is answered [`Gone`](Applied::NotFound) is of a generation that this holder
///   did hold, by the record, and that another has ended since.
/// * **A call arrives late**, over a connection that was given up: later calls have been carried out, and it is not.
///
/// # What remains possible
///
/// * A server without a copy on disk or elsewhere loses everything when it dies: what the living hold they hold again,
///   what the dead had left is lost. `appendonly yes` bounds that to a second, `appendfsync always` to nothing.
/// * A failover to a replica that lagged behind revives what had ended in the last moments. A session that had been let go
///   is then still held, by the record, and is ended once more, as lost and with its old event id, when this
///   process leaves or dies. `min-replicas-to-write` and `min-replicas-max-lag` (for
///   scripts from Redis 7.0 on) keep the lag small.
/// * If two servers take themselves for the first one (a partition), each side takes over the other's sessions: they end
///   twice, with the same event id. The same settings end that.
/// * The clocks of servers that follow each other should agree to a fraction of the lease. A clock that is set forward
///   costs nobody the lease; one that is set back delays the finding of the dead by as much.
/// * All keys are needed: a server that evicts keys without an expiry (`allkeys-*`) is refused.
/// * A user that may not run `INFO` can use it, but no change of servers is noticed then.
///
/// # For operators
///
/// All keys begin with `{prefix}:`, in one slot of a cluster. With everything ended and everybody gone two remain.
///
/// | key | type | |
/// |---|---|---|
/// | `lease` | sorted set | the holders, and when their leases are over (ms) |
/// | `session:<id>` | hash | an active session: `session` (JSON), `generation`, `started` (ms), `holders` (their number), `holder:<holder>` for each |
/// | `end:<generation>` | hash | a pending end: the same, and `reason`, `ended` (ms), `requests`, `attempts`, `next` (JSON) |
/// | `held:<holder>` | set | the sessions of a holder: generation and id |
/// | `claimed:<holder>` | set | the ends that it has claimed |
/// | `told:<holder>` | sorted set | those of the last recovery call |
/// | `reaping` | sorted set | holders that are gone and not yet taken over completely |
/// | `seq` | hash | the last call of each holder |
/// | `fenced` | sorted set | holders whose leases were taken; expires after a week |
/// | `grace` | string | there while no lease may be taken; expires after a lease |
/// | `incarnation` | string | made with the store: it tells a flush from other losses |
pub struct RedisRegistry {
    settings: Settings,
    keys: Keys,
    instance: String,
    lease: Lease,
    forgotten: AtomicU64,
    holder: Mutex<Holder>,
}

impl RedisRegistry {
    /// A registry over this connection.
    ///
    /// ```
    /// use redis::{Client, aio::ConnectionManagerConfig};
    /// use tower_session_end::registry::{RedisRegistry, Registry};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let connection = Client::open("redis://127.0.0.1/")?.get_connection_manager_lazy(ConnectionManagerConfig::new())?;
    /// let registry = RedisRegistry::builder(connection).lazy();
    /// assert!(!registry.lease_is_valid()); // nothing was asked yet, so there is no lease
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder<C>(connection: C) -> RedisRegistryBuilder<C>
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        RedisRegistryBuilder::new(connection)
    }

    /// How this holder is called in the keys: each of its names (`{prefix}:held:<name>`) is this, a colon, and how often it
    /// has lost its lease.
    ///
    /// ```
    /// # use redis::{Client, aio::ConnectionManagerConfig};
    /// # use tower_session_end::registry::RedisRegistry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let connection = Client::open("redis://127.0.0.1/")?.get_connection_manager_lazy(ConnectionManagerConfig::new())?;
    /// let registry = RedisRegistry::builder(connection).lazy();
    /// assert_eq!(registry.instance().len(), 32);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    fn new(connection: Connection, settings: Settings) -> Self {
        let instance = random();
        Self {
            keys: Keys::new(&settings.prefix),
            holder: Mutex::new(Holder::new(connection, instance.clone())),
            lease: Lease::default(),
            forgotten: AtomicU64::new(0),
            instance,
            settings,
        }
    }

    fn context(&self) -> ScriptContext<'_> {
        let Self { settings, keys, lease, forgotten, .. } = self;
        ScriptContext { settings, keys, lease, forgotten }
    }

    /// One script at a time. A call that was waiting while another one learnt that the store has forgotten something
    /// was made before anything was held again, and is not carried out.
    async fn lock(&self) -> Result<MutexGuard<'_, Holder>, RegistryError> {
        let before = self.forgotten.load(Ordering::Relaxed);
        let holder = self.holder.lock().await;
        // The lock orders these; the counter changes under it only.
        if self.forgotten.load(Ordering::Relaxed) == before { Ok(holder) } else { Err(RegistryError::DataLost) }
    }

    async fn enter_at_start(&self) -> Result<(), RegistryError> {
        self.holder.lock().await.ensure_lease(&self.context(), CONNECT_TIMEOUT).await
    }
}

/// How long `connect` waits: the first call may have to make a connection first.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// After so long a take-over comes back with what it has; of a dead holder whose sessions all have others that is
/// nothing, and a later one goes on.
const RECOVERY_TIME: Duration = Duration::from_millis(500);

impl Registry for RedisRegistry {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        let mut holder = self.lock().await?;
        let mut applied = Vec::with_capacity(changes.len());
        for batch in batches(&changes, &self.keys)? {
            let answers = holder.run(&self.context(), &APPLY, batch.call).await?;
            if answers.len() != batch.len {
                return Err(RegistryError::invalid("the server answered another number of changes"));
            }
            for (answer, change) in answers.into_iter().zip(&changes[applied.len()..]) {
                applied.push(reply::applied(answer, change)?);
            }
        }
        Ok(applied)
    }

    async fn heartbeat(&self) -> Result<(), RegistryError> {
        self.lock().await?.run(&self.context(), &HEARTBEAT, ScriptArgs::default()).await.map(drop)
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        let mut holder = self.lock().await?;
        let (this, begun) = (holder.next_seq(), Instant::now());
        let mut orphans = Vec::new();
        while orphans.len() < max {
            let args = vec![
                self.keys.root().to_owned(),
                this.to_string(),
                holder.answered.to_string(),
                (max - orphans.len()).to_string(),
            ];
            let mut answers =
                holder.run(&self.context(), &RECOVER, ScriptArgs { keys: Vec::new(), args }).await?.into_iter();
            let more = answers.next().map(reply::text).transpose()?;
            for answer in answers {
                orphans.extend(reply::orphan(answer)?);
            }
            if more.as_deref() != Some("1") || begun.elapsed() > RECOVERY_TIME {
                break;
            }
        }
        // Only now: until here a caller may have given the call up, and the next one has to tell these again.
        holder.answered = this;
        Ok(orphans)
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.holder.lock().await.release_lease(&self.context()).await
    }

    fn lease_is_valid(&self) -> bool {
        self.lease.lease_is_valid(self.settings.lease)
    }

    fn heartbeat_interval(&self) -> Duration {
        self.settings.heartbeat_interval()
    }
}

impl fmt::Debug for RedisRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { settings, keys: _, instance, lease: _, forgotten: _, holder: _ } = self;
        f.debug_struct("RedisRegistry").field("settings", settings).field("instance", instance).finish_non_exhaustive()
    }
}
