//! One holder: its lease, its losses, and its transactions, which run one at a time.

use std::{
    hash::{BuildHasher, RandomState},
    mem::ManuallyDrop,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use sqlx::{
    Connection, Database, Executor, PgConnection, PgPool, Postgres, Row, TransactionManager, pool::PoolConnection,
};

use super::{
    super::{
        RegistryError,
        lease::{DualClock, Lease},
        process::process_label,
    },
    builder::Settings,
    error::{Failure, LeaseLoss},
    hook,
    recovery::Recovery,
    schema,
    sql::{Sql, now},
};

/// How long a call waits for a connection. The caller drops it after a second.
const CHECKOUT_TIMEOUT: Duration = Duration::from_millis(500);

/// The same at the start, where the first connection is made.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// No statement, no wait for a lock and no pause in a transaction is longer: the caller drops the call after a second.
const LONGEST_STEP: Duration = Duration::from_secs(1);

/// The statements are planned each time: a plan that was made for small tables reads everything when they have grown.
const BEGIN: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL jit = off; SET LOCAL plan_cache_mode = force_custom_plan";

/// A page is read in the order of an index. Without statistics PostgreSQL may expect fewer rows than a page has, and would read and
/// sort all that a holder holds. No transaction hook runs in such a transaction.
const IN_ORDER: &str = "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off";

/// The lock of the schema that a transaction takes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SchemaLock {
    /// No lock. The row of this holder is locked, so it is not adopted meanwhile.
    None,
    /// With others that change records. No holder is adopted meanwhile.
    Shared,
    /// Alone, to adopt holders.
    Exclusive,
}

/// Holders renew four times per lease, so the newest lease normally has more than half of its time left. If it has less, the
/// server or the network was down: no lease may then expire for one more full lease, so that every holder has time to renew.
macro_rules! watch_gap {
    ($lease:literal) => {
        concat!(
            "UPDATE {s}.store SET grace_until = ",
            now!(),
            " + ",
            $lease,
            " WHERE (SELECT max(expires_at) FROM {s}.holders WHERE adopted_by IS NULL AND NOT released) < ",
            now!(),
            " + ",
            $lease,
            " / 2"
        )
    };
}

/// The state of a holder. The registry locks it, so that one transaction runs at a time.
pub(super) struct Holder {
    pool: PgPool,
    pub(super) sql: Sql,
    instance: String,
    /// The number of leases that other holders have recovered; `instance:epoch` is the name of the holder in the table.
    epoch: u64,
    lease_state: LeaseState,
    /// The row of this holder, and the store in which it is.
    pub(super) entry: Entry,
    has_warned: bool,
    pub(super) recovery: Recovery,
    /// The last recovery call has found nothing and has not read everything.
    pub(super) recovery_was_cut: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    /// The number of the row in `holders`.
    pub(super) number: i64,
    name: String,
    incarnation: String,
    /// The timeline of the server's log, which changes when a replica takes over and when a backup is restored. None if this
    /// user may not read it.
    timeline: Option<String>,
    /// The last renewal that was confirmed. An older one in the table comes from a backup.
    renewals: i64,
}

#[derive(Clone, Copy, Debug)]
enum LeaseState {
    /// No lease. The loss is not reported to the caller yet.
    None(Option<LeaseLoss>),
    Held,
    Released,
}

/// What a transaction needs of the registry.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) settings: &'a Settings,
    pub(super) lease: &'a Lease,
    /// The number of data losses so far.
    pub(super) data_losses: &'a AtomicU64,
}

/// A transaction on a connection of the pool.
///
/// Its queries are not `persistent`: the driver would name the prepared statements, and a proxy that gives each transaction another
/// connection to the server does not know the names.
///
/// A connection that is dropped here is closed: its transaction may be open, and then the pool must not lend it again.
pub(super) struct Tx {
    conn: Option<PoolConnection<Postgres>>,
    pub(super) sql: Sql,
    /// The number of this holder.
    pub(super) me: i64,
    /// Releases the savepoint of a hook, and sets the limits of this transaction again.
    pub(super) keep_savepoint: &'static str,
    /// A renewal of the lease that is part of this transaction: when it was asked for, and its number.
    renewal: Option<(DualClock, i64)>,
}

impl Tx {
    /// The connection.
    pub(super) fn conn(&mut self) -> &mut PgConnection {
        // It is there until `commit` or `rollback` consumes this.
        self.conn.as_mut().expect("a transaction has its connection")
    }

    /// Nothing was changed that has to outlive a crash of the server: the row of this holder was locked, which counts as a change.
    pub(super) async fn skip_sync(&mut self) -> Result<(), Failure> {
        if self.renewal.is_none() {
            self.conn().execute("SET LOCAL synchronous_commit = off").await?;
        }
        Ok(())
    }

    pub(super) async fn commit(mut self) -> Result<(), Failure> {
        Manager::commit(self.conn()).await?;
        drop(self.conn.take());
        Ok(())
    }

    /// After an error the connection is closed, which rolls back too.
    pub(super) async fn rollback(mut self) {
        if Manager::rollback(self.conn()).await.is_ok() {
            drop(self.conn.take());
        }
    }
}

type Manager = <Postgres as Database>::TransactionManager;

impl Drop for Tx {
    fn drop(&mut self) {
        if let Some(conn) = &mut self.conn {
            conn.close_on_drop();
        }
    }
}

impl Holder {
    pub(super) fn new(pool: PgPool, schema: &str, instance: String) -> Self {
        Self {
            pool,
            sql: Sql::new(schema),
            instance,
            epoch: 0,
            lease_state: LeaseState::None(None),
            entry: Entry::default(),
            has_warned: false,
            recovery: Recovery::default(),
            recovery_was_cut: false,
        }
    }

    /// Begins a transaction under the lease, which is taken first if there is none. A loss is reported once, as an error, after
    /// a new lease was taken.
    pub(super) async fn begin(&mut self, context: Context<'_>, lock: SchemaLock) -> Result<Tx, RegistryError> {
        self.ensure_lease(context, CHECKOUT_TIMEOUT).await?;
        let loss = match self.begin_checked(context, lock).await {
            Ok(tx) => return Ok(tx),
            Err(Failure::Lost(loss)) => loss,
            Err(failure) if failure.is_missing() => LeaseLoss::DataLost,
            Err(failure) => return Err(failure.into_registry_error(&context.settings.schema)),
        };
        context.lease.lost();
        if loss == LeaseLoss::Fenced {
            self.next_epoch();
        }
        self.lease_state = LeaseState::None(Some(loss));
        let lost = || Failure::Lost(loss).into_registry_error(&context.settings.schema);
        Err(self.ensure_lease(context, CHECKOUT_TIMEOUT).await.err().unwrap_or_else(lost))
    }

    /// Commits, or rolls back after an error.
    pub(super) async fn end<T>(
        &mut self,
        context: Context<'_>,
        tx: Tx,
        answer: Result<T, Failure>,
    ) -> Result<T, RegistryError> {
        let named = |failure: Failure| failure.into_registry_error(&context.settings.schema);
        match answer {
            Ok(answer) => {
                let renewal = tx.renewal;
                tx.commit().await.map_err(named)?;
                if let Some((asked, renewals)) = renewal {
                    self.entry.renewals = renewals;
                    context.lease.renewed(asked);
                }
                Ok(answer)
            }
            Err(failure) => {
                tx.rollback().await;
                Err(named(failure))
            }
        }
    }

    /// Takes a lease if there is none.
    pub(super) async fn ensure_lease(&mut self, context: Context<'_>, timeout: Duration) -> Result<(), RegistryError> {
        let schema = &context.settings.schema;
        loop {
            let loss = match self.lease_state {
                LeaseState::Held => return Ok(()),
                LeaseState::Released => {
                    return Err(RegistryError::unavailable(format!(
                        "PostgreSQL, schema {schema:?}: the lease was released"
                    )));
                }
                LeaseState::None(loss) => loss,
            };
            context.settings.check()?;
            let asked = DualClock::now();
            let entered = self.enter(context.settings, timeout).await;
            let is_first = self.entry.name.is_empty();
            let entered = entered.map_err(|failure| if is_first { failure.at_start() } else { failure });
            match entered.map_err(|failure| failure.into_registry_error(schema))? {
                Some(entry) => {
                    self.entry = entry;
                    context.lease.renewed(asked);
                    self.lease_state = LeaseState::Held;
                    match loss {
                        None => {}
                        Some(LeaseLoss::Fenced) => return Err(RegistryError::Fenced),
                        Some(LeaseLoss::DataLost) => {
                            self.recovery = Recovery::default();
                            context.data_losses.fetch_add(1, Ordering::Relaxed);
                            return Err(RegistryError::DataLost);
                        }
                    }
                }
                // Other holders have recovered this name and its sessions. That outweighs an earlier data loss.
                None => {
                    self.next_epoch();
                    self.lease_state = LeaseState::None(loss.map(|_| LeaseLoss::Fenced));
                }
            }
        }
    }

    /// Releases the lease, if there is one. Afterwards only this call works.
    pub(super) async fn release_lease(&mut self, context: Context<'_>) -> Result<(), RegistryError> {
        context.lease.lost();
        let never_entered = self.entry.name.is_empty();
        self.lease_state = LeaseState::Released;
        if never_entered {
            return Ok(());
        }
        let mut tx = match self.begin_checked(context, SchemaLock::None).await {
            Ok(tx) => tx,
            // Others have recovered it, or there is nothing left.
            Err(Failure::Lost(_)) => return Ok(()),
            Err(failure) => return Err(failure.into_registry_error(&context.settings.schema)),
        };
        let left = leave(&mut tx).await;
        self.end(context, tx, left).await
    }

    /// Begins a transaction of an operator, which needs no lease and takes none.
    pub(super) async fn begin_as_operator(&mut self, settings: &Settings) -> Result<Tx, RegistryError> {
        settings.check()?;
        let entered = self.begin_prepared(settings).await;
        entered.map_err(|failure| failure.at_start().into_registry_error(&settings.schema))
    }

    async fn begin_prepared(&mut self, settings: &Settings) -> Result<Tx, Failure> {
        let mut conn = self.check_out(CONNECT_TIMEOUT).await?;
        schema::prepare(conn.conn(), self.sql, &settings.schema).await?;
        let mut tx = self.begin_on(conn, settings, SchemaLock::Shared).await?;
        enter_store(&mut tx, settings).await?;
        Ok(tx)
    }

    fn next_epoch(&mut self) {
        self.epoch += 1;
        self.recovery = Recovery::default();
    }

    /// Enters the store. None if other holders have recovered this name.
    async fn enter(&mut self, settings: &Settings, timeout: Duration) -> Result<Option<Entry>, Failure> {
        let mut conn = self.check_out(timeout).await?;
        schema::prepare(conn.conn(), self.sql, &settings.schema).await?;
        let name = format!("{}:{}", self.instance, self.epoch);
        let mut tx = self.begin_on(conn, settings, SchemaLock::None).await?;
        let incarnation = enter_store(&mut tx, settings).await?;
        let timeline = self.timeline(tx.conn()).await?;
        let old = tx.sql.text(concat!(
            "DELETE FROM {s}.holders WHERE empty AND adopted_at < ",
            now!(),
            " - 7 * 24 * 60 * 60 * 1000"
        ));
        sqlx::query(old).persistent(false).execute(tx.conn()).await?;
        let enter = tx.sql.text(concat!(
            "WITH grace AS (",
            watch_gap!("$3"),
            ") INSERT INTO {s}.holders AS h (name, process, since, expires_at) VALUES ($1, $2, ",
            now!(),
            ", ",
            now!(),
            " + $3) ON CONFLICT (name) DO UPDATE SET expires_at = excluded.expires_at, renewals = h.renewals + 1 \
             WHERE h.adopted_by IS NULL RETURNING number, renewals"
        ));
        let query = sqlx::query(enter).persistent(false).bind(&name).bind(process_label()).bind(lease_ms(settings));
        let Some(row) = query.fetch_optional(tx.conn()).await? else {
            tx.rollback().await;
            return Ok(None);
        };
        let (number, renewals) = (row.try_get("number")?, row.try_get("renewals")?);
        tx.commit().await?;
        Ok(Some(Entry { number, name, incarnation, timeline, renewals }))
    }

    /// Borrows a connection. No transaction has begun.
    async fn check_out(&self, timeout: Duration) -> Result<Tx, Failure> {
        let conn = match tokio::time::timeout(timeout, self.pool.acquire()).await {
            Ok(conn) => conn?,
            Err(_) => {
                let (size, idle) = (self.pool.size(), self.pool.num_idle());
                return Err(Failure::Unavailable(format!(
                    "the pool gave no connection within {timeout:?} ({size} connections, {idle} idle): the server is out of reach, \
                     or all connections are in use"
                )));
            }
        };
        Ok(Tx { conn: Some(conn), sql: self.sql, me: self.entry.number, keep_savepoint: hook::KEEP, renewal: None })
    }

    async fn begin_on(&self, mut tx: Tx, settings: &Settings, lock: SchemaLock) -> Result<Tx, Failure> {
        let (limits, number) = (limits(settings), self.sql.lock_number());
        tx.keep_savepoint = self.sql.made(format!("{}; {limits}", hook::KEEP));
        let more = match lock {
            SchemaLock::Shared => format!("; SELECT pg_advisory_xact_lock_shared({number})"),
            SchemaLock::None => format!("; {IN_ORDER}"),
            SchemaLock::Exclusive => String::new(),
        };
        let begin = format!("{BEGIN}; {limits}{more}");
        let begin = self.sql.made(begin);
        // `Tx` ends the transaction, not this guard. It has told the connection that a transaction is open.
        let _ = ManuallyDrop::new(tx.conn().begin_with(begin).await?);
        if lock == SchemaLock::Exclusive {
            // All others wait behind this one.
            let lock = format!("SET LOCAL lock_timeout = 200; SELECT pg_advisory_xact_lock({number})");
            let lock = self.sql.made(lock);
            if let Err(error) = tx.conn().execute(lock).await {
                tx.rollback().await;
                return Err(error.into());
            }
        }
        Ok(tx)
    }

    /// Begins a transaction, and checks that this holder has its lease, in the same store as before. The row is locked: a
    /// transaction of a call that was dropped has ended before.
    async fn begin_checked(&mut self, context: Context<'_>, lock: SchemaLock) -> Result<Tx, Failure> {
        let conn = self.check_out(CHECKOUT_TIMEOUT).await?;
        let mut tx = self.begin_on(conn, context.settings, lock).await?;
        match self.check_lease(&mut tx, context).await {
            Ok(()) => Ok(tx),
            Err(failure) => {
                tx.rollback().await;
                Err(failure)
            }
        }
    }

    async fn check_lease(&self, tx: &mut Tx, context: Context<'_>) -> Result<(), Failure> {
        const CHECK: &str = concat!(
            "SELECT h.adopted_by IS NULL AS lives, h.renewals, h.expires_at - ",
            now!(),
            " AS remaining, s.incarnation, NULL AS timeline
             FROM {s}.holders h, {s}.store s WHERE h.number = $1 AND h.name = $2 FOR NO KEY UPDATE OF h"
        );
        const CHECK_TIMELINE: &str = concat!(
            "SELECT h.adopted_by IS NULL AS lives, h.renewals, h.expires_at - ",
            now!(),
            " AS remaining, s.incarnation, left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline
             FROM {s}.holders h, {s}.store s WHERE h.number = $1 AND h.name = $2 FOR NO KEY UPDATE OF h"
        );
        let Entry { number, name, incarnation, timeline, renewals } = &self.entry;
        let asked = DualClock::now();
        let check = tx.sql.text(if timeline.is_some() { CHECK_TIMELINE } else { CHECK });
        let row = sqlx::query(check).persistent(false).bind(number).bind(name).fetch_optional(tx.conn()).await?;
        let Some(row) = row else { return Err(Failure::Lost(LeaseLoss::DataLost)) };
        let is_same = row.try_get::<&str, _>("incarnation")? == incarnation
            && row.try_get::<Option<&str>, _>("timeline")? == timeline.as_deref()
            && row.try_get::<i64, _>("renewals")? >= *renewals;
        if !is_same {
            return Err(Failure::Lost(LeaseLoss::DataLost));
        }
        if !row.try_get::<bool, _>("lives")? {
            return Err(Failure::Lost(LeaseLoss::Fenced));
        }
        // Not in each transaction: a row that changes often would grow while a long transaction of others prevents the cleaning.
        if row.try_get::<i64, _>("remaining")? < lease_ms(context.settings) / 2 {
            renew(tx, context, asked).await?;
        }
        Ok(())
    }

    /// The timeline of the server's log, if this user may read it.
    async fn timeline(&mut self, conn: &mut PgConnection) -> Result<Option<String>, Failure> {
        let timeline = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)";
        conn.execute("SAVEPOINT timeline").await?;
        match sqlx::query_scalar(timeline).persistent(false).fetch_one(&mut *conn).await {
            Ok(timeline) => Ok(timeline),
            Err(sqlx::Error::Database(error)) => {
                conn.execute("ROLLBACK TO SAVEPOINT timeline").await?;
                if !self.has_warned {
                    self.has_warned = true;
                    tracing::warn!(
                        name: "session-registry-unwatched",
                        %error,
                        "the session registry cannot read the timeline of the server's log, so a failover to a replica that \
                         lagged is not detected: permit pg_current_wal_lsn and pg_walfile_name to this user",
                    );
                }
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Renews the lease as part of this transaction.
pub(super) async fn renew(tx: &mut Tx, context: Context<'_>, asked: DualClock) -> Result<(), Failure> {
    let lease = lease_ms(context.settings);
    let renew = tx.sql.text(concat!(
        "WITH grace AS (",
        watch_gap!("$2"),
        ") UPDATE {s}.holders SET expires_at = ",
        now!(),
        " + $2, renewals = renewals + 1 WHERE number = $1 RETURNING renewals"
    ));
    let me = tx.me;
    let renewals = sqlx::query_scalar(renew).persistent(false).bind(me).bind(lease).fetch_one(tx.conn()).await?;
    tx.renewal = Some((asked, renewals));
    Ok(())
}

/// Writes the store's row if there is none, and checks that it is that of this deployment. Returns the incarnation.
async fn enter_store(tx: &mut Tx, settings: &Settings) -> Result<String, Failure> {
    let create = tx.sql.text("INSERT INTO {s}.store (incarnation, deployment) VALUES ($1, $2) ON CONFLICT DO NOTHING");
    let read =
        tx.sql.text("SELECT incarnation, deployment, current_setting('server_encoding') AS encoding FROM {s}.store");
    let mut row = sqlx::query(read).persistent(false).fetch_optional(tx.conn()).await?;
    if row.is_none() {
        sqlx::query(create).persistent(false).bind(random()).bind(&settings.deployment).execute(tx.conn()).await?;
        row = sqlx::query(read).persistent(false).fetch_optional(tx.conn()).await?;
    }
    let Some(row) = row else { return Err(Failure::Conflict) };
    let encoding: &str = row.try_get("encoding")?;
    if encoding != "UTF8" {
        return Err(Failure::Invalid(format!("the database is encoded in {encoding}, and not in UTF8")));
    }
    let deployment: Option<&str> = row.try_get("deployment")?;
    if deployment != settings.deployment.as_deref() {
        let name =
            |name: Option<&str>| name.map_or("no deployment".to_owned(), |name| format!("the deployment {name:?}"));
        return Err(Failure::Invalid(format!(
            "it belongs to {}, and this process to {}: if the database is a copy, drop the schema; else set the right `deployment` \
             or another `schema`",
            name(deployment),
            name(settings.deployment.as_deref())
        )));
    }
    Ok(row.try_get("incarnation")?)
}

/// Removes the row of this holder, or releases its lease if something refers to it.
async fn leave(tx: &mut Tx) -> Result<(), Failure> {
    let me = tx.me;
    let statements = [
        "DELETE FROM {s}.notices WHERE holder IN (SELECT number FROM {s}.holders WHERE number = $1 OR adopted_by = $1)",
        "UPDATE {s}.holders o SET empty = true WHERE adopted_by = $1 AND NOT empty
            AND (SELECT true FROM {s}.holds WHERE holder = o.number LIMIT 1) IS NULL
            AND (SELECT true FROM {s}.sessions WHERE claimer = o.number LIMIT 1) IS NULL",
        "DELETE FROM {s}.holders o WHERE number = $1
            AND (SELECT true FROM {s}.holds WHERE holder = $1 LIMIT 1) IS NULL
            AND (SELECT true FROM {s}.sessions WHERE claimer = $1 LIMIT 1) IS NULL
            AND NOT EXISTS (SELECT 1 FROM {s}.holders WHERE adopted_by = $1 AND NOT empty)",
        "UPDATE {s}.holders SET released = true WHERE number = $1",
    ];
    for statement in statements {
        let statement = tx.sql.text(statement);
        sqlx::query(statement).persistent(false).bind(me).execute(tx.conn()).await?;
    }
    Ok(())
}

/// A transaction does not outlive a process that is stopped in it.
fn limits(settings: &Settings) -> String {
    let longest = LONGEST_STEP.min(settings.lease).as_millis();
    format!(
        "SET LOCAL statement_timeout = {longest}; SET LOCAL lock_timeout = {}; \
         SET LOCAL idle_in_transaction_session_timeout = {longest}",
        longest * 3 / 4
    )
}

fn lease_ms(settings: &Settings) -> i64 {
    settings.lease.as_millis().try_into().unwrap_or(i64::MAX)
}

/// 128 random bits, unique to a holder or a store.
pub(super) fn random() -> String {
    let half = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", half(), half())
}
