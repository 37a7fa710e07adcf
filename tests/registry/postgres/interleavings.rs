//! Transactions of several holders that meet at one moment, and settings of the server that change what they see.

use std::time::{Duration, Instant};

use sqlx::{Connection, Executor, PgConnection};
use tower_session_end::{
    BoxError, SessionEnd, SessionStart,
    registry::{Applied, Change, PostgresRegistry, PostgresTransactionHook, Record, Registry, RegistryError},
};

use super::support::{
    OWNED, PATIENCE, PostgresServer, SHORT, builder, claim_orphans, done, end, hold, holder, new_schema, one, pool,
    record, release, shared, with_lease,
};

fn acknowledge(record: &Record) -> Change {
    Change::Acknowledge { id: record.session.id.clone(), generation: record.generation }
}

/// A transaction of a test, which holds what it has locked until it is dropped or ended.
async fn transaction(server: &PostgresServer, statement: String) -> PgConnection {
    let mut conn = PgConnection::connect(&server.url()).await.unwrap();
    conn.execute("BEGIN").await.unwrap();
    conn.execute(&*statement.leak()).await.unwrap();
    conn
}

/// Waits until so many transactions wait for a lock of a row in this schema. False if a call may have given up.
async fn until_blocked(server: &PostgresServer, schema: &str, count: usize) -> bool {
    let blocked = format!(
        "SELECT count(*) >= {count} FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%\"{schema}\"%'"
    );
    let start = Instant::now();
    while server.ask(&blocked) != "t" {
        if start.elapsed() > Duration::from_millis(500) {
            return false;
        }
    }
    true
}

/// A holder that can be kept at its next acknowledgement, which is after the locks of a call and before its holds.
struct Stoppable {
    registry: PostgresRegistry,
    noticed: Record,
}

impl Stoppable {
    /// The other holder ends a session that this one holds too.
    async fn new(registry: PostgresRegistry, other: &PostgresRegistry) -> Self {
        let noticed = record("noticed");
        assert_eq!(one(&registry, hold(&noticed)).await, Applied::Created);
        assert_eq!(one(other, hold(&noticed)).await, Applied::Created);
        assert_eq!(one(other, end(&noticed)).await, OWNED);
        assert_eq!(one(other, done(&noticed)).await, Applied::Ok);
        Self { registry, noticed }
    }

    async fn stop(&self, server: &PostgresServer, schema: &str) -> PgConnection {
        let generation = self.noticed.generation;
        let lock = format!("SELECT 1 FROM \"{schema}\".notices WHERE generation = '{generation}' FOR UPDATE");
        transaction(server, lock).await
    }

    /// Applies a change, after an acknowledgement.
    fn apply(&self, change: Change) -> tokio::task::JoinHandle<Result<Vec<Applied>, RegistryError>> {
        let (registry, acknowledge) = (self.registry.clone(), acknowledge(&self.noticed));
        tokio::spawn(async move { registry.apply(vec![acknowledge, change]).await })
    }
}

/// `b` has locked the rows of the id when there were none. Then `a` creates one, and ends it while `b` looks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_a_hold_does_not_join_a_record_that_is_being_ended() {
    let Some(server) = shared() else { return };
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "a busy machine");
        let schema = new_schema();
        let (a, b) = (holder(server, &schema).await, holder(server, &schema).await);
        let of_b = Stoppable::new(b.clone(), &a).await;
        let of_a = Stoppable::new(a, &b).await;
        let (of_a_stopped, of_b_stopped) = (of_a.stop(server, &schema).await, of_b.stop(server, &schema).await);

        let (first, second) = (record("x"), record("x"));
        let joining = of_b.apply(hold(&second));
        if !until_blocked(server, &schema, 1).await {
            continue;
        }
        if of_a.registry.apply(vec![hold(&first)]).await.is_err() {
            continue;
        }
        // It has ended the record, and is stopped before its commit.
        let ending = of_a.apply(end(&first));
        if !until_blocked(server, &schema, 2).await {
            continue;
        }
        of_b_stopped.close().await.unwrap();
        // `b` goes on, and has to wait for the end.
        tokio::time::sleep(Duration::from_millis(50)).await;
        of_a_stopped.close().await.unwrap();
        let (Ok(ended), Ok(joined)) = (ending.await.unwrap(), joining.await.unwrap()) else { continue };
        assert_eq!(ended[1], OWNED);
        assert_eq!(joined[1], Applied::Created);
        assert_eq!(one(&b, release(&second, 0)).await, OWNED);
        return;
    }
}

/// An adopter waits for the row of a holder whose lease has expired, and which renews it at that moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_an_adopter_takes_nothing_of_a_holder_that_has_renewed_its_lease_meanwhile() {
    let Some(server) = shared() else { return };
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "a busy machine");
        let schema = new_schema();
        let adopter = holder(server, &schema).await;
        // It has adopted one, whose session it has not delivered yet.
        let (dead, living) = (holder(server, &schema).await, with_lease(server, &schema, SHORT).await);
        let orphan = record("orphan");
        one(&dead, hold(&orphan)).await;
        dead.release_lease().await.unwrap();
        assert_eq!(claim_orphans(&living).await.len(), 1);
        tokio::time::sleep(SHORT).await;

        let name = format!("'{}:0'", living.instance());
        let renew = format!(
            "UPDATE \"{schema}\".holders SET expires_at = expires_at + 3600000, renewals = renewals + 1 WHERE name = {name}"
        );
        let mut renewing = transaction(server, renew).await;
        let adopting = tokio::spawn({
            let adopter = adopter.clone();
            async move { adopter.claim_orphans(10).await }
        });
        if !until_blocked(server, &schema, 1).await {
            continue;
        }
        renewing.execute("COMMIT").await.unwrap();
        match adopting.await.unwrap() {
            Ok(orphans) => assert!(orphans.is_empty(), "{orphans:?}"),
            // It did not wait long enough.
            Err(RegistryError::Conflict | RegistryError::Unavailable(_)) => continue,
            Err(error) => panic!("{error:?}"),
        }
        assert_eq!(one(&living, done(&orphan)).await, Applied::Ok);
        assert_eq!(server.ask(&format!("SELECT count(*) FROM \"{schema}\".sessions")), "0");
        return;
    }
}

/// Nothing in the tables forbids such rows, and a recovery must not stop at them.
#[tokio::test]
async fn g15_holds_without_an_active_session_are_removed_by_a_recovery() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let (dead, other, survivor) =
        (holder(server, &schema).await, holder(server, &schema).await, holder(server, &schema).await);
    let (ended, active) = (record("ended"), record("active"));
    other.apply(vec![hold(&ended)]).await.unwrap();
    assert_eq!(one(&other, end(&ended)).await, OWNED);
    one(&dead, hold(&active)).await;
    let number_of_dead = format!("(SELECT number FROM \"{schema}\".holders WHERE name = '{}:0')", dead.instance());
    server.ask(&format!(
        "INSERT INTO \"{schema}\".holds (session, holder) SELECT number, {number_of_dead} FROM \"{schema}\".sessions
            WHERE id = 'ended' UNION ALL SELECT 500000, {number_of_dead} UNION ALL SELECT 1000000, {number_of_dead}"
    ));
    dead.release_lease().await.unwrap();
    let orphans = claim_orphans(&survivor).await;
    assert_eq!(orphans.iter().map(|orphan| &orphan.record).collect::<Vec<_>>(), [&active]);
    assert_eq!(one(&survivor, done(&active)).await, Applied::Ok);
    assert_eq!(server.ask(&format!("SELECT count(*) FROM \"{schema}\".holds")), "0");
    // Nothing refers to the dead holder any more.
    survivor.heartbeat().await.unwrap();
    assert_eq!(server.ask(&format!("SELECT count(*) FROM \"{schema}\".holders")), "2");
    assert_eq!(one(&other, done(&ended)).await, Applied::Ok);
}

/// What a hook may change for the rest of its transaction.
struct Settings {
    table: &'static str,
}

impl Settings {
    fn new(server: &PostgresServer, schema: &str) -> Self {
        let table = format!("parents_of_{schema}");
        server.ask(&format!(
            "CREATE TABLE {table} (id text PRIMARY KEY);
             CREATE TABLE {table}_children (id text REFERENCES {table} (id) DEFERRABLE INITIALLY DEFERRED)"
        ));
        Self { table: table.leak() }
    }

    /// The child comes before its parent.
    async fn insert(&self, transaction: &mut PgConnection, id: &str) -> Result<(), BoxError> {
        let (child, parent) = (
            format!("INSERT INTO {}_children VALUES ($1)", self.table),
            format!("INSERT INTO {} VALUES ($1)", self.table),
        );
        for insert in [child, parent] {
            sqlx::query(&*insert.leak()).bind(id).execute(&mut *transaction).await?;
        }
        Ok(())
    }
}

impl PostgresTransactionHook for Settings {
    async fn session_start(&self, transaction: &mut PgConnection, start: &SessionStart) -> Result<(), BoxError> {
        let isolation: String = sqlx::query_scalar("SHOW transaction_isolation").fetch_one(&mut *transaction).await?;
        let id = format!("{}, {isolation}", start.session.id);
        self.insert(transaction, &id).await?;
        transaction.execute("SET CONSTRAINTS ALL IMMEDIATE").await?;
        Ok(())
    }

    async fn session_end(&self, transaction: &mut PgConnection, ends: &[SessionEnd]) -> Result<(), BoxError> {
        for end in ends {
            self.insert(transaction, &format!("end of {}", end.session.id)).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn g19_a_hook_that_sets_constraints_does_not_disturb_the_next_call() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let hook = Settings::new(server, &schema);
    let table = hook.table;
    let registry = builder(&server.url(), &schema).transaction_hook("settings", hook).connect().await.unwrap();
    let (a, b) = (record("a"), record("b"));
    one(&registry, hold(&a)).await;
    assert_eq!(one(&registry, end(&a)).await, OWNED);
    let start = Instant::now();
    loop {
        match registry.apply(vec![hold(&b), done(&a)]).await {
            Ok(answers) => break assert_eq!(answers, [Applied::Created, Applied::Ok]),
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error:?}"),
        }
    }
    let rows = server.ask(&format!("SELECT id FROM {table} ORDER BY id"));
    assert_eq!(rows, "a, read committed\nb, read committed\nend of a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_with_another_default_isolation_changes_nothing() {
    let Some(server) = shared() else { return };
    for (user, isolation) in [("of_serializable", "serializable"), ("of_repeatable_read", "repeatable read")] {
        let schema = new_schema();
        let hook = Settings::new(server, &schema);
        let table = hook.table;
        server.ask(&format!(
            "CREATE USER {user} SUPERUSER; ALTER ROLE {user} SET default_transaction_isolation = '{isolation}'"
        ));
        let url = server.url_of(user);
        assert_eq!(
            sqlx::query_scalar::<_, String>("SHOW transaction_isolation").fetch_one(&pool(&url)).await.unwrap(),
            isolation
        );
        // They create the schema at once.
        let all: Vec<_> = (0..8).map(|_| tokio::spawn(builder(&url, &schema).connect())).collect();
        for one in all {
            one.await.unwrap().unwrap();
        }
        let registry = builder(&url, &schema).transaction_hook("settings", hook).connect().await.unwrap();
        one(&registry, hold(&record("a"))).await;
        assert_eq!(server.ask(&format!("SELECT id FROM {table}")), "a, read committed");
    }
}
