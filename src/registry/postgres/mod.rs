//! [`PostgresRegistry`]: a registry for several machines, on PostgreSQL.

mod builder;
mod changes;
mod codec;
mod dead_letters;
mod error;
mod holder;
mod hook;
mod recovery;
mod schema;
mod sql;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{PgPool, Row};
use tokio::sync::{Mutex, MutexGuard};

pub use self::{builder::PostgresRegistryBuilder, hook::PostgresTransactionHook};
use self::{
    builder::Settings,
    error::Failure,
    holder::{CONNECT_TIMEOUT, Context, Holder, SchemaLock, Tx, random, renew},
    sql::now,
};
use super::{
    Applied, Change, DeadLetter, Heartbeat, Notice, Orphan, Registry, RegistryError,
    lease::{DualClock, Lease},
};
use crate::session::{GenerationId, SessionId};

/// A [`Registry`] on PostgreSQL (14 or later), for any number of processes on any number of machines (feature `postgres`).
///
/// It uses a pool of the `sqlx` crate, 0.8 (exported as [`registry::sqlx`](super::sqlx)): addresses, passwords and TLS are
/// configured with that crate. It uses one connection at a time. The pool may be that of the application. But if the application has
/// used up its pool, a drain waits for a connection: a pool of its own with two connections avoids that.
///
/// ```no_run
/// use sqlx::postgres::PgPoolOptions;
/// use tower_session_end::{ActiveSessions, registry::PostgresRegistry};
///
/// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = PgPoolOptions::new().max_connections(2).connect("postgres://app@db.internal/app").await?;
/// let registry = PostgresRegistry::builder(pool).connect().await?;
/// let sessions = ActiveSessions::builder().registry(registry).build()?;
/// println!("{}", sessions.recover().await);
/// # Ok(())
/// # }
/// ```
///
/// A clone is a handle of the same holder.
///
/// # Guarantees
///
/// * One call of [`apply`](Registry::apply) is one transaction. It returns after the commit, which is as durable as the server's
///   `synchronous_commit` says. The default setting survives a crash of the server.
/// * A transaction takes the same number of statements for 1 change and for 1,000 of the same kind: 6 for starts.
/// * Each transaction that changes records checks the lease first, and no holder is adopted until it has ended. A holder that was
///   recovered changes nothing.
/// * Rows are locked in a fixed order. If transactions meet all the same, the call returns
///   [`Conflict`](RegistryError::Conflict) and is repeated at once.
/// * A recovery reads pages of up to 1,000 records, and moves no row. A dead holder is adopted by one change to its row.
/// * With a [transaction hook](PostgresTransactionHook), what the hook writes is committed together with the record.
///
/// # Leases
///
/// The clock of the server decides. A lease is a row that each holder renews four times per
/// [lease](PostgresRegistryBuilder::lease).
///
/// * **A holder is silent for longer than its lease**: another holder adopts its sessions and its claimed ends. Its next call
///   returns [`Fenced`](RegistryError::Fenced), and then it has a new lease. Its own
///   [`lease_is_valid`](Registry::lease_is_valid) is `false` before that.
/// * **The server is down**: calls return [`Unavailable`](RegistryError::Unavailable). The first holder that comes back detects the
///   gap (no renewal for half a lease), and gives every holder one more full lease before any recovery. A single process that
///   starts long after its predecessor died detects the same gap, and recovers the predecessor's sessions one lease later.
/// * **A process is stopped within a transaction**: the server ends the transaction after one second, or after the lease if that is
///   shorter (`idle_in_transaction_session_timeout`). The process can then not commit it.
/// * **The tables are gone, or come from a backup, or another server has taken over**: the next call returns
///   [`DataLost`](RegistryError::DataLost), whether or not records are missing. Sessions that are then held again keep their
///   generations. A new server is detected by the timeline of its log. A user who may not call `pg_current_wal_lsn` and
///   `pg_walfile_name` can use the registry, but a failover to a replica that lagged is then not detected. A warning says so.
///
/// # Proxies
///
/// No call depends on a session of the server: there is no `LISTEN`, no advisory lock of a session, no setting that outlives a
/// transaction, no named prepared statement. So it works through a proxy that gives each transaction another connection
/// (`pgbouncer` with `pool_mode = transaction`). The driver itself needs `ignore_startup_parameters = extra_float_digits` there.
/// Queries of a transaction hook name their statements, unless they are made with `persistent(false)`.
///
/// # For operators
///
/// All tables are in one schema, `session_end` by default. The user needs the right to create it, or to create tables in it if it
/// exists. The database must be encoded in UTF-8. Query the views, also while processes run:
///
/// ```console
/// $ psql -c 'select * from session_end.active_sessions'
/// $ psql -c 'select * from session_end.ending_sessions'
/// ```
///
/// | view | columns |
/// |---|---|
/// | `active_sessions` | `id`, `since`, `held_by` (program, process, host), `key`, `agent`, `generation`, `details` (JSON) |
/// | `ending_sessions` | `id`, `reason`, `ended_at`, `claimed_by`, `attempts`, `committed`, `requests`, `since`, `next`, `generation`, `details` |
/// | `dead_letters` | `id`, `reason`, `ended_at`, `error`, `attempts`, `committed`, `requests`, `since`, `next`, `generation`, `details` |
///
/// A session that was lost stands in `ending_sessions` from the moment that another process recovers it. `committed` says whether
/// the transaction hook has run. [`dead_letters`](Self::dead_letters), [`redeliver`](Self::redeliver) and
/// [`redeliver_all`](Self::redeliver_all) need no lease and take none. A tool that calls only these is no holder.
///
/// The table `migrations` has the version of the schema. Several processes may start at once: one of them migrates. A process
/// refuses a schema of a newer version.
#[derive(Clone)]
pub struct PostgresRegistry {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    instance: String,
    lease: Lease,
    data_losses: AtomicU64,
    holder: Mutex<Holder>,
}

/// The most notices of one heartbeat.
const NOTICES: usize = 1000;

/// How long a call of an operator waits for the server.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(5);

impl PostgresRegistry {
    /// Uses this pool, with the defaults of [`builder`](Self::builder). As [`lazy`](PostgresRegistryBuilder::lazy), it does not
    /// contact the server yet.
    ///
    /// ```
    /// use sqlx::postgres::PgPoolOptions;
    /// use tower_session_end::registry::{PostgresRegistry, Registry};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = PgPoolOptions::new().connect_lazy("postgres://app@127.0.0.1/app")?;
    /// let registry = PostgresRegistry::new(pool);
    /// assert!(!registry.lease_is_valid()); // no call yet, so there is no lease
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self::builder(pool).lazy()
    }

    /// Builds a registry with other settings than [`new`](Self::new), or one that takes its lease at once.
    ///
    /// See [`PostgresRegistryBuilder`] for an example.
    pub fn builder(pool: PgPool) -> PostgresRegistryBuilder {
        PostgresRegistryBuilder::new(pool)
    }

    /// The name of this instance in the table `holders`: `name` is this name, a colon, and the number of leases it has lost.
    ///
    /// ```
    /// # use sqlx::postgres::PgPoolOptions;
    /// # use tower_session_end::registry::PostgresRegistry;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = PgPoolOptions::new().connect_lazy("postgres://app@127.0.0.1/app")?;
    /// assert_eq!(PostgresRegistry::new(pool).instance().len(), 32);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.shared.instance
    }

    /// Returns up to `max` dead letters, the oldest sessions first.
    ///
    /// A record that cannot be read is left out; it stands in the view `dead_letters`. This call needs no lease and takes none.
    ///
    /// # Errors
    ///
    /// As [`connect`](PostgresRegistryBuilder::connect).
    ///
    /// # Cancel safety
    ///
    /// Nothing is changed.
    ///
    /// ```
    /// # use tower_session_end::registry::{PostgresRegistry, RegistryError};
    /// # async fn example(registry: PostgresRegistry) -> Result<(), RegistryError> {
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
            let mut page = self
                .as_operator(async |holder, settings| {
                    let mut tx = holder.begin_as_operator(settings).await?;
                    let page = dead_letters::list(&mut tx, after, limit).await;
                    holder.end(self.shared.context(), tx, page).await
                })
                .await?;
            letters.append(&mut page.items);
            next = page.next;
        }
        Ok(letters)
    }

    /// Asks for another delivery of a dead letter, with new attempts. The next holder that calls
    /// [`claim_orphans`](Registry::claim_orphans) gets it. Returns false if there is no such dead letter. This call needs no
    /// lease and takes none.
    ///
    /// # Errors
    ///
    /// As [`connect`](PostgresRegistryBuilder::connect).
    ///
    /// # Cancel safety
    ///
    /// The request may have been recorded. It may be repeated.
    ///
    /// ```
    /// # use tower_session_end::{GenerationId, registry::{PostgresRegistry, RegistryError}};
    /// # async fn example(registry: PostgresRegistry, generation: GenerationId) -> Result<(), RegistryError> {
    /// if !registry.redeliver(generation).await? {
    ///     println!("there is no dead letter of {generation}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn redeliver(&self, generation: GenerationId) -> Result<bool, RegistryError> {
        self.as_operator(async |holder, settings| {
            let mut tx = holder.begin_as_operator(settings).await?;
            let found = dead_letters::redeliver(&mut tx, generation).await;
            holder.end(self.shared.context(), tx, found).await
        })
        .await
    }

    /// As [`redeliver`](Self::redeliver), for all dead letters. Returns their number.
    ///
    /// # Errors
    ///
    /// As [`connect`](PostgresRegistryBuilder::connect). Some may have been asked for; the call may be repeated.
    ///
    /// # Cancel safety
    ///
    /// As after an error.
    ///
    /// ```
    /// # use tower_session_end::registry::{PostgresRegistry, RegistryError};
    /// # async fn example(registry: PostgresRegistry) -> Result<(), RegistryError> {
    /// println!("{} ends are delivered again", registry.redeliver_all().await?);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn redeliver_all(&self) -> Result<u64, RegistryError> {
        let (mut count, mut next) = (0, Some(0));
        while let Some(after) = next {
            let page = self
                .as_operator(async |holder, settings| {
                    let mut tx = holder.begin_as_operator(settings).await?;
                    let page = dead_letters::redeliver_after(&mut tx, after).await;
                    holder.end(self.shared.context(), tx, page).await
                })
                .await?;
            count += page.items;
            next = page.next;
        }
        Ok(count)
    }

    fn with(pool: PgPool, settings: Settings) -> Self {
        let instance = random();
        let shared = Shared {
            holder: Mutex::new(Holder::new(pool, &settings.schema, instance.clone())),
            lease: Lease::default(),
            data_losses: AtomicU64::new(0),
            instance,
            settings,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Other calls may come between two transactions of an operator.
    async fn as_operator<T>(
        &self,
        call: impl AsyncFnOnce(&mut Holder, &Settings) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let schema = &self.shared.settings.schema;
        let call = async {
            let mut holder = self.shared.holder.lock().await;
            call(&mut holder, &self.shared.settings).await
        };
        tokio::time::timeout(OPERATOR_TIMEOUT, call).await.unwrap_or_else(|_| {
            let text = format!("no answer within {OPERATOR_TIMEOUT:?}");
            Err(Failure::Unavailable(text).into_registry_error(schema))
        })
    }

    async fn enter_at_start(&self) -> Result<(), RegistryError> {
        self.shared.holder.lock().await.ensure_lease(self.shared.context(), CONNECT_TIMEOUT).await
    }
}

impl Shared {
    fn context(&self) -> Context<'_> {
        let Self { settings, lease, data_losses, .. } = self;
        Context { settings, lease, data_losses }
    }

    /// Serialises the calls. A call that waited while another one detected a data loss was made before the sessions
    /// were held again, so it fails too.
    async fn lock(&self) -> Result<MutexGuard<'_, Holder>, RegistryError> {
        let before = self.data_losses.load(Ordering::Relaxed);
        let holder = self.holder.lock().await;
        // The counter changes under this lock only.
        if self.data_losses.load(Ordering::Relaxed) == before { Ok(holder) } else { Err(RegistryError::DataLost) }
    }
}

/// How long a call without a deadline may take.
const CALL_LIMIT: Duration = Duration::from_secs(1);

impl Registry for PostgresRegistry {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        self.apply_before(changes, std::time::Instant::now() + CALL_LIMIT).await
    }

    /// Nothing is committed after `deadline`, except by a `COMMIT` that has left this process before.
    async fn apply_before(
        &self,
        changes: Vec<Change>,
        deadline: std::time::Instant,
    ) -> Result<Vec<Applied>, RegistryError> {
        let mut holder = self.shared.lock().await?;
        let hook = self.shared.settings.hook.as_deref();
        let mut is_banned = false;
        let left = || deadline.saturating_duration_since(std::time::Instant::now());
        loop {
            let mut tx = holder.begin(self.shared.context(), SchemaLock::Shared).await?;
            match changes::apply(&mut tx, &changes, hook.map(|hook| hook.calls(is_banned, left()))).await {
                // What was written before may be committed or not. All changes may be repeated.
                Err(Failure::HookClosedTransaction) if !is_banned => {
                    tx.rollback().await;
                    hook.inspect(|hook| hook.log_closed_transaction());
                    is_banned = true;
                }
                Ok(_) if left().is_zero() => {
                    tx.rollback().await;
                    let late = Failure::Unavailable(
                        "the time of the call was over before its changes were committed".to_owned(),
                    );
                    return Err(late.into_registry_error(&self.shared.settings.schema));
                }
                applied => return holder.end(self.shared.context(), tx, applied).await,
            }
        }
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        let mut holder = self.shared.lock().await?;
        let asked = DualClock::now();
        let finished = holder.recovery.finished();
        let mut tx = holder.begin(self.shared.context(), SchemaLock::None).await?;
        let heartbeat = beat(&mut tx, self.shared.context(), asked, &finished).await;
        let (mut heartbeat, removed) = holder.end(self.shared.context(), tx, heartbeat).await?;
        holder.recovery.remove(&removed);
        heartbeat.has_more |= std::mem::take(&mut holder.recovery_was_cut);
        Ok(heartbeat)
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        let mut holder = self.shared.lock().await?;
        recovery::claim_orphans(&mut holder, self.shared.context(), max).await
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.shared.holder.lock().await.release_lease(self.shared.context()).await
    }

    fn transaction_hook(&self) -> Option<&str> {
        self.shared.settings.hook.as_deref().map(|hook| hook.name())
    }

    fn lease_is_valid(&self) -> bool {
        self.shared.lease.lease_is_valid(self.shared.settings.lease)
    }

    fn heartbeat_interval(&self) -> Duration {
        self.shared.settings.heartbeat_interval()
    }
}

/// Renews the lease, reads the oldest notices, and removes adopted holders of which nothing is left.
async fn beat(
    tx: &mut Tx,
    context: Context<'_>,
    asked: DualClock,
    finished: &[i64],
) -> Result<(Heartbeat, Vec<i64>), Failure> {
    renew(tx, context, asked).await?;
    let me = tx.me;
    // One row at least, with the number of dead letters.
    let read = tx.sql.text(concat!(
        "SELECT d.count, n.generation, n.id, ",
        now!(),
        " - n.ended_at AS age FROM (SELECT count(*) FROM {s}.sessions WHERE dead) d
         LEFT JOIN (SELECT * FROM {s}.notices WHERE holder = $1 ORDER BY ended_at LIMIT $2) n ON true ORDER BY n.ended_at"
    ));
    let limit = i64::try_from(NOTICES + 1).unwrap_or(i64::MAX);
    let rows = sqlx::query(read).persistent(false).bind(me).bind(limit).fetch_all(tx.conn()).await?;
    let (mut notices, mut dead_letters) = (Vec::with_capacity(rows.len()), 0);
    for row in rows.iter().take(NOTICES) {
        dead_letters = row.try_get::<i64, _>("count")?.try_into().unwrap_or_default();
        let (Some(generation), Some(id)) =
            (row.try_get::<Option<&str>, _>("generation")?, row.try_get::<Option<&str>, _>("id")?)
        else {
            continue;
        };
        let age = Duration::from_millis(row.try_get::<i64, _>("age")?.try_into().unwrap_or_default());
        // A notice that cannot be read is left out.
        if let (Ok(generation), Ok(id)) = (generation.parse(), SessionId::with_max_len(id, usize::MAX)) {
            notices.push(Notice::new(id, generation, age));
        }
    }
    let removed = recovery::remove_adopted(tx, finished).await?;
    let heartbeat = Heartbeat::new(notices, rows.len() > NOTICES, dead_letters);
    Ok((heartbeat, removed))
}

impl fmt::Debug for PostgresRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { settings, instance, lease: _, data_losses: _, holder: _ } = &*self.shared;
        f.debug_struct("PostgresRegistry")
            .field("settings", settings)
            .field("instance", instance)
            .finish_non_exhaustive()
    }
}
