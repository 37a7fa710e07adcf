//! [`RedisRegistry`]: a registry for several machines, on Redis or Valkey.

mod builder;
mod changes;
mod errors;
mod holder;
mod recovery;
mod reply;
mod scripts;
mod server_clock;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{Value, aio::ConnectionLike};
use tokio::sync::{Mutex, MutexGuard};

pub use self::builder::RedisRegistryBuilder;
use self::{
    builder::Settings,
    changes::batches,
    holder::{Connection, Holder, ScriptContext, random},
    scripts::{ADOPT, APPLY, DEAD_LETTERS, HEARTBEAT, READ_ORPHANS, REDELIVER, RedisScript},
};
use super::{Applied, Change, DeadLetter, Heartbeat, Orphan, Registry, RegistryError, lease::Lease};
use crate::session::GenerationId;

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
/// A clone is a handle of the same holder.
///
/// # Scripts
///
/// Every change is part of a script that first checks the identity of the store and this holder's lease. One script
/// applies up to 256 changes (fewer if they are large) and takes about 6 ms on the server. A larger
/// [`apply`](Registry::apply) runs several scripts, each of them atomic. If one script fails, the call returns an error
/// and can be repeated. A heartbeat is one script, and so is a [`claim_orphans`](Registry::claim_orphans) call that
/// finds nothing. The calls of one holder run one after the other.
///
/// A recovery reads records and does not change them, but for sessions that another holder holds too: the hold of the dead
/// one is removed. One call looks at 8,000 records at most. If they were all such sessions, its answer is empty although there
/// may be orphans, and the next heartbeat says [`has_more`](Heartbeat::has_more).
///
/// # Failures
///
/// * **A holder is silent for longer than its lease** (by the server's clock): another holder adopts its sessions and
///   its claimed ends. Its next call returns [`Fenced`](RegistryError::Fenced), and none of its changes
///   since that adoption is applied. Its own [`lease_is_valid`](Registry::lease_is_valid) is `false` before that.
/// * **The server is down**: calls return [`Unavailable`](RegistryError::Unavailable) within the command timeout. The
///   first holder to reconnect detects the gap (no renewal for half a lease) and grants every holder one more full
///   lease before any recovery. A single process that starts long after its predecessor died detects the same gap, and
///   recovers the predecessor's sessions one lease later.
/// * **The server comes back empty, or another server replaces it** (a restart, a failover, a flush): the next call
///   returns [`DataLost`](RegistryError::DataLost), whether or not records are missing. Sessions that are then held
///   again keep their generations. If the answer to such a [`Hold`](Change::Hold) is [`Gone`](Applied::Gone), the
///   store shows that another holder has ended that generation.
/// * **A call arrives late**, over a dropped connection: it is not applied if a later call of the same holder was.
/// * **A call was given up** (the command timeout, or [`apply_before`](Registry::apply_before)): if the server gets to it
///   only afterwards, it refuses it. Each script has a deadline by the clock of the server, whose time is in every answer.
///
/// # Limits
///
/// * A server without persistence or replicas loses all records when it dies. Running processes hold their sessions
///   again. Pending ends of dead processes are lost. `appendonly yes` limits the loss to one second, and
///   `appendfsync always` avoids it.
/// * A failover to a replica that lagged revives sessions that ended within the lag. A session that this process had
///   released is then recorded as held, and ends again, as lost and with the same generation, when this process leaves or
///   dies. `min-replicas-to-write` and `min-replicas-max-lag` keep the lag small (for scripts from Redis 7.0 on).
/// * If two servers both act as the primary (a partition), the holders on each side recover the sessions of the other
///   side. These sessions end twice, with the same generation. The same two settings prevent that.
/// * The clocks of the primary and its replicas should agree to a fraction of the lease. Setting a clock forward
///   expires no lease early. Setting a clock back delays dead-holder detection by the same amount. A call that is in flight
///   at that moment, and was given up, may then be applied by that much too late.
/// * No key has a time to live, so `maxmemory-policy volatile-*` evicts none of them. A server that evicts keys without an
///   expiry (`allkeys-*`) is rejected at the start, because every key is needed.
/// * While a cluster moves the slot to another node, calls return [`Unavailable`](RegistryError::Unavailable): some of the keys
///   are on either node. Afterwards the next call returns [`DataLost`](RegistryError::DataLost), as after a failover.
/// * A user without permission for `INFO` can use the registry, but a change of servers and that policy are then not
///   detected. A warning says so.
///
/// # For operators
///
/// [`dead_letters`](Self::dead_letters), [`redeliver`](Self::redeliver) and [`redeliver_all`](Self::redeliver_all) need no
/// lease and take none. A tool that calls only these, on a registry from [`lazy`](RedisRegistryBuilder::lazy), is no holder.
///
/// All keys begin with `{prefix}:`, in one slot of a cluster. `incarnation` and `deployment` remain when all sessions have
/// ended and all holders have left, and `fenced` until it is empty.
///
/// | key | type | |
/// |---|---|---|
/// | `session:<generation>` | hash | the record of a generation: `id`, `session` (JSON), `started_at` (ms), `requests`, `holder:<holder>` for each that holds it, `released:<holder>` for each that has released it; after its end `reason`, `next` (JSON), `ended_at` (ms), `claimer`, `attempts`; of a dead letter `error` |
/// | `id:<id>` | sorted set | the generations of the active records of this id, by their start |
/// | `held:<holder>` | sorted set | the generations that a holder holds |
/// | `claimed:<holder>` | sorted set | the generations whose ends a holder has claimed |
/// | `notices:<holder>` | sorted set | what other holders have ended: generation and id, by the time (ms) |
/// | `dead_letters` | sorted set | the generations of the dead letters, by their time (ms) |
/// | `leases` | sorted set | the holders, and when their leases expire (ms) |
/// | `unadopted` | sorted set | holders that have left something behind, until another one adopts them |
/// | `adopters` | hash | for each dead holder that has something left: since when (ms), and by whom it is adopted |
/// | `adopted:<holder>` | set | the dead holders that this one has adopted |
/// | `fenced` | sorted set | holders whose leases have expired, and when (ms), for a week |
/// | `grace_until` | string | until then (ms) no lease expires |
/// | `call_numbers` | hash | the number of the last call of each holder |
/// | `incarnation` | string | the version of this layout, and a random number by which a flush is detected |
/// | `deployment` | string | the name of the [`deployment`](RedisRegistryBuilder::deployment), if it has one |
#[derive(Clone)]
pub struct RedisRegistry {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
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
        &self.shared.instance
    }

    /// The oldest dead letters in the store, `max` at most: ends whose hooks have failed too often.
    ///
    /// Large answers are read in parts, so a letter that is redelivered meanwhile may be missing, and another one with it.
    /// This call needs no lease and takes none. Dropping it changes nothing.
    ///
    /// # Errors
    ///
    /// As [`connect`](RedisRegistryBuilder::connect).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use redis::{Client, aio::ConnectionManagerConfig};
    /// use tower_session_end::registry::RedisRegistry;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let connection = Client::open("redis://127.0.0.1/")?.get_connection_manager_lazy(ConnectionManagerConfig::new())?;
    /// let registry = RedisRegistry::builder(connection).lazy();
    /// for letter in registry.dead_letters(100).await? {
    ///     println!("{}: {} calls, {}", letter.record.generation, letter.attempts, letter.error);
    ///     registry.redeliver(letter.record.generation).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn dead_letters(&self, max: usize) -> Result<Vec<DeadLetter>, RegistryError> {
        let mut letters = Vec::new();
        let mut skip = 0;
        while skip < max {
            let args = [skip.to_string(), (max - skip).min(DEAD_LETTERS_PER_SCRIPT).to_string()];
            let mut answers = self.run_as_operator(&DEAD_LETTERS, args).await?.into_iter();
            let has_more = answers.next().map(reply::text).transpose()?.as_deref() == Some("1");
            skip += answers.len();
            for answer in answers {
                letters.extend(reply::dead_letter(answer)?);
            }
            if !has_more {
                break;
            }
        }
        Ok(letters)
    }

    /// Asks for the delivery of a dead letter. The next holder that calls [`claim_orphans`](Registry::claim_orphans) gets it
    /// as an orphan, with no attempts. Returns whether there was such a dead letter.
    ///
    /// This call needs no lease and takes none. If it is dropped, the letter may or may not be redelivered; it can be
    /// repeated.
    ///
    /// # Errors
    ///
    /// As [`connect`](RedisRegistryBuilder::connect).
    ///
    /// # Examples
    ///
    /// See [`dead_letters`](Self::dead_letters).
    pub async fn redeliver(&self, generation: GenerationId) -> Result<bool, RegistryError> {
        let args = [random(), generation.to_string(), String::new()];
        Ok(reply::redelivered(self.run_as_operator(&REDELIVER, args).await?)?.1 > 0)
    }

    /// Asks for the delivery of all dead letters that exist now. Returns how many there were.
    ///
    /// As [`redeliver`](Self::redeliver): it needs no lease, and can be repeated after an error or if it was dropped.
    ///
    /// # Errors
    ///
    /// As [`connect`](RedisRegistryBuilder::connect). Some of the letters may be redelivered then.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use redis::{Client, aio::ConnectionManagerConfig};
    /// use tower_session_end::registry::RedisRegistry;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let connection = Client::open("redis://127.0.0.1/")?.get_connection_manager_lazy(ConnectionManagerConfig::new())?;
    /// let registry = RedisRegistry::builder(connection).lazy();
    /// println!("{} ends are delivered again", registry.redeliver_all().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn redeliver_all(&self) -> Result<u64, RegistryError> {
        let mut all = 0;
        let mut until = String::new();
        loop {
            // Letters that fail again meanwhile have a later time.
            let args = [random(), String::new(), until];
            let (time, count) = reply::redelivered(self.run_as_operator(&REDELIVER, args).await?)?;
            if count == 0 {
                return Ok(all);
            }
            all += count;
            until = time;
        }
    }

    fn new(connection: Connection, settings: Settings) -> Self {
        let instance = random();
        let shared = Shared {
            holder: Mutex::new(Holder::new(connection, instance.clone())),
            lease: Lease::default(),
            data_losses: AtomicU64::new(0),
            instance,
            settings,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Other calls may come between two scripts of an operator.
    async fn run_as_operator<const N: usize>(
        &self,
        lua: &RedisScript,
        args: [String; N],
    ) -> Result<Vec<Value>, RegistryError> {
        self.shared.holder.lock().await.run_as_operator(&self.shared.settings, lua, args).await
    }

    async fn enter_at_start(&self) -> Result<(), RegistryError> {
        self.shared.holder.lock().await.ensure_lease(&self.shared.context(), CONNECT_TIMEOUT).await
    }
}

impl Shared {
    fn context(&self) -> ScriptContext<'_> {
        let Self { settings, lease, data_losses, .. } = self;
        ScriptContext { settings, lease, data_losses }
    }

    /// Serialises the scripts. A call that waited while another one detected a data loss was made before the sessions
    /// were held again, so it fails too.
    async fn lock(&self) -> Result<MutexGuard<'_, Holder>, RegistryError> {
        let before = self.data_losses.load(Ordering::Relaxed);
        let holder = self.holder.lock().await;
        // The counter changes under this lock only.
        if self.data_losses.load(Ordering::Relaxed) == before { Ok(holder) } else { Err(RegistryError::DataLost) }
    }

    async fn apply(&self, changes: &[Change], given_up_at: Option<Instant>) -> Result<Vec<Applied>, RegistryError> {
        let mut holder = self.lock().await?;
        let mut applied = Vec::with_capacity(changes.len());
        for batch in batches(changes)? {
            let answers = holder.run(&self.context(), &APPLY, batch.args, given_up_at).await?;
            if answers.len() != batch.len {
                return Err(RegistryError::invalid("the server did not answer each change once"));
            }
            for (answer, change) in answers.into_iter().zip(&changes[applied.len()..]) {
                applied.push(reply::applied(answer, change, &holder.recovery)?);
            }
        }
        Ok(applied)
    }
}

/// The timeout of `connect`: its first call may have to establish the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A recovery call that reads this many pages of 500 records returns the orphans that it has found. There may be none if
/// other holders share the sessions of the dead one.
const PAGES_PER_CALL: usize = 16;

/// How many dead letters one script reads.
const DEAD_LETTERS_PER_SCRIPT: usize = 256;

impl Registry for RedisRegistry {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        self.shared.apply(&changes, None).await
    }

    async fn apply_before(&self, changes: Vec<Change>, deadline: Instant) -> Result<Vec<Applied>, RegistryError> {
        self.shared.apply(&changes, Some(deadline)).await
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        let mut holder = self.shared.lock().await?;
        let mut heartbeat = reply::heartbeat(holder.run(&self.shared.context(), &HEARTBEAT, Vec::new(), None).await?)?;
        heartbeat.has_more |= std::mem::take(&mut holder.recovery_was_cut);
        Ok(heartbeat)
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        let mut holder = self.shared.lock().await?;
        let mut recovery = holder.recovery.clone();
        loop {
            let mut answers = holder.run(&self.shared.context(), &ADOPT, Vec::new(), None).await?.into_iter();
            let has_more = answers.next().map(reply::text).transpose()?;
            recovery.set_adopted(answers.map(reply::text).collect::<Result<_, _>>()?);
            // The rest is adopted, by this holder or another one, once this is read.
            if has_more.as_deref() != Some("1") || recovery.next().is_some() {
                break;
            }
        }
        let mut orphans = Vec::new();
        for _ in 0..PAGES_PER_CALL {
            let Some((dead, kind, after)) = recovery.next().filter(|_| orphans.len() < max) else { break };
            let args = vec![dead.clone(), kind.name().to_owned(), after, (max - orphans.len()).to_string()];
            let mut answers = holder.run(&self.shared.context(), &READ_ORPHANS, args, None).await?.into_iter();
            let last = answers.next().map(reply::text).transpose()?.unwrap_or_default();
            for answer in answers {
                orphans.extend(reply::orphan(answer)?);
            }
            recovery.advance(&dead, kind, last);
        }
        holder.recovery_was_cut = orphans.is_empty() && max > 0 && recovery.next().is_some();
        // Set last: if the caller drops this call before, the next one must return the same orphans.
        holder.recovery = recovery;
        Ok(orphans)
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.shared.holder.lock().await.release_lease(&self.shared.context()).await
    }

    fn lease_is_valid(&self) -> bool {
        self.shared.lease.lease_is_valid(self.shared.settings.lease)
    }

    fn heartbeat_interval(&self) -> Duration {
        self.shared.settings.heartbeat_interval()
    }
}

impl fmt::Debug for RedisRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { settings, instance, lease: _, data_losses: _, holder: _ } = &*self.shared;
        f.debug_struct("RedisRegistry").field("settings", settings).field("instance", instance).finish_non_exhaustive()
    }
}
