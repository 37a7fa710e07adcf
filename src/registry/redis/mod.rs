//! [`RedisRegistry`]: a registry for several machines, on Redis or Valkey.

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
/// It uses any connection of the `redis` crate that implements `Clone`: a
/// [`ConnectionManager`](::redis::aio::ConnectionManager) (recommended, because it reconnects), a cluster connection
/// (feature `redis-cluster`) or a multiplexed connection. Addresses, passwords and TLS are configured with that crate.
///
/// ```no_run
/// use std::time::Duration;
/// use redis::aio::ConnectionManagerConfig;
/// use tower_session_end::registry::RedisRegistry;
///
/// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
/// let client = redis::Client::open("redis://:secret@sessions.internal/")?;
/// // The longest delay between two reconnects; the default is about 6 s.
/// let config = ConnectionManagerConfig::new().set_max_delay(Duration::from_secs(1));
/// let connection = client.get_connection_manager_with_config(config).await?;
/// let registry = RedisRegistry::builder(connection).prefix("gateway").connect().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Scripts
///
/// Every change is part of a script that first checks the identity of the store and this holder's lease. One script
/// applies up to 256 changes (fewer if they are large) and takes about 3 ms on the server. A larger
/// [`apply`](Registry::apply) runs several scripts, each of them atomic. If one script fails, the call returns an error
/// and can be repeated. A heartbeat is one script, and so is a [`claim_orphans`](Registry::claim_orphans) call that
/// finds nothing. The calls of one holder run one after the other.
///
/// Holders are not notified when another holder ends a session. They learn it from [`NotFound`](Applied::NotFound) when
/// they release it.
///
/// # Failures
///
/// * **A holder is silent for longer than its lease** (by the server's clock): other holders recover its sessions and
///   its claimed ends. Its next call returns [`Fenced`](RegistryError::Fenced), and none of its changes
///   since that recovery is applied. Its own [`lease_is_valid`](Registry::lease_is_valid) is `false` before that.
/// * **The server is down**: calls return [`Unavailable`](RegistryError::Unavailable) within the command timeout. The
///   first holder to reconnect detects the gap (no renewal for half a lease) and grants every holder one more full
///   lease before any recovery. A single process that starts long after its predecessor died detects the same gap, and
///   recovers the predecessor's sessions one lease later.
/// * **The server comes back empty, or another server replaces it** (a restart, a failover, a flush): the next call
///   returns [`DataLost`](RegistryError::DataLost), whether or not records are missing. Sessions that are then held
///   again keep their event ids. If the answer to such a [`Hold`](Change::Hold) is [`NotFound`](Applied::NotFound), the
///   record shows that another holder has ended that generation.
/// * **A call arrives late**, over a dropped connection: it is not applied if a later call of the same holder was.
///
/// # Limits
///
/// * A server without persistence or replicas loses all records when it dies. Running processes hold their sessions
///   again. Pending ends of dead processes are lost. `appendonly yes` limits the loss to one second, and
///   `appendfsync always` avoids it.
/// * A failover to a replica that lagged revives sessions that ended within the lag. A session that this process had
///   released is then recorded as held, and ends again, as lost and with the same event id, when this process leaves or
///   dies. `min-replicas-to-write` and `min-replicas-max-lag` keep the lag small (for scripts from Redis 7.0 on).
/// * If two servers both act as the primary (a partition), the holders on each side recover the sessions of the other
///   side. These sessions end twice, with the same event id. The same two settings prevent that.
/// * The clocks of the primary and its replicas should agree to a fraction of the lease. Setting a clock forward
///   expires no lease early. Setting a clock back delays dead-holder detection by the same amount.
/// * A server that evicts keys without an expiry (`allkeys-*`) is rejected, because every key is needed.
/// * A user without permission for `INFO` can use the registry, but a change of servers is then not detected.
///
/// # For operators
///
/// All keys begin with `{prefix}:`, in one slot of a cluster. Two keys remain when all sessions have ended and all
/// holders have left.
///
/// | key | type | |
/// |---|---|---|
/// | `lease` | sorted set | the holders, and when their leases expire (ms) |
/// | `session:<id>` | hash | an active session: `session` (JSON), `generation`, `started` (ms), `holders` (a number), `holder:<holder>` for each |
/// | `end:<generation>` | hash | a pending end: the same, and `reason`, `ended` (ms), `requests`, `attempts`, `next` (JSON) |
/// | `held:<holder>` | set | the sessions of a holder: generation and id |
/// | `claimed:<holder>` | set | the ends that a holder has claimed |
/// | `told:<holder>` | sorted set | the ends that its last recovery call returned |
/// | `reaping` | sorted set | expired holders whose recovery is not complete |
/// | `seq` | hash | the number of the last call of each holder |
/// | `fenced` | sorted set | holders whose leases have expired; the key expires after a week |
/// | `grace` | string | exists while no lease may expire; the key expires after one lease |
/// | `incarnation` | string | created with the store; shows a flush |
pub struct RedisRegistry {
    settings: Settings,
    keys: Keys,
    instance: String,
    lease: Lease,
    data_losses: AtomicU64,
    holder: Mutex<Holder>,
}

impl RedisRegistry {
    /// Builds a registry that uses this connection.
    ///
    /// ```
    /// use redis::{Client, aio::ConnectionManagerConfig};
    /// use tower_session_end::registry::{RedisRegistry, Registry};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let connection = Client::open("redis://127.0.0.1/")?.get_connection_manager_lazy(ConnectionManagerConfig::new())?;
    /// let registry = RedisRegistry::builder(connection).lazy();
    /// assert!(!registry.lease_is_valid()); // no call yet, so there is no lease
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder<C>(connection: C) -> RedisRegistryBuilder<C>
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        RedisRegistryBuilder::new(connection)
    }

    /// The name of this instance in the keys: `<holder>` is this name, a colon, and the number of leases it has lost.
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
            data_losses: AtomicU64::new(0),
            instance,
            settings,
        }
    }

    fn context(&self) -> ScriptContext<'_> {
        let Self { settings, keys, lease, data_losses, .. } = self;
        ScriptContext { settings, keys, lease, data_losses }
    }

    /// Serialises the scripts. A call that waited while another one detected a data loss was made before the sessions
    /// were held again, so it fails too.
    async fn lock(&self) -> Result<MutexGuard<'_, Holder>, RegistryError> {
        let before = self.data_losses.load(Ordering::Relaxed);
        let holder = self.holder.lock().await;
        // The counter changes under this lock only.
        if self.data_losses.load(Ordering::Relaxed) == before { Ok(holder) } else { Err(RegistryError::DataLost) }
    }

    async fn enter_at_start(&self) -> Result<(), RegistryError> {
        self.holder.lock().await.ensure_lease(&self.context(), CONNECT_TIMEOUT).await
    }
}

/// The timeout of `connect`: its first call may have to establish the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A recovery call returns after this time with the orphans it has claimed. There may be none if other holders share
/// the sessions of the expired holder; the next call continues.
const RECOVERY_TIME: Duration = Duration::from_millis(500);

impl Registry for RedisRegistry {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        let mut holder = self.lock().await?;
        let mut applied = Vec::with_capacity(changes.len());
        for batch in batches(&changes, &self.keys)? {
            let answers = holder.run(&self.context(), &APPLY, batch.call).await?;
            if answers.len() != batch.len {
                return Err(RegistryError::invalid("the server did not answer each change once"));
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
        let (this, started) = (holder.next_seq(), Instant::now());
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
            if more.as_deref() != Some("1") || started.elapsed() > RECOVERY_TIME {
                break;
            }
        }
        // Set last: if the caller drops this call before, the next one must return the same orphans.
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
        let Self { settings, keys: _, instance, lease: _, data_losses: _, holder: _ } = self;
        f.debug_struct("RedisRegistry").field("settings", settings).field("instance", instance).finish_non_exhaustive()
    }
}
