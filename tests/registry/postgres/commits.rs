//! A `COMMIT` that is under way when its call is given up. The process does not know whether it will succeed, until a later call is
//! answered.

use std::{
    future::pending,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use sqlx::postgres::PgPoolOptions;
use tower_session_end::{
    ActiveSessions, EndReason,
    registry::{PostgresRegistry, Registry, RegistryError},
};

use super::{
    hooks::Chats,
    support::{
        OWNED, PATIENCE, PgBouncer, PostgresServer, SHORT, claim_orphans, claim_so_many, done, end, hold, is_installed,
        new_schema, one, reach, record, shared,
    },
};

/// What becomes of the `COMMIT`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Committed,
    RolledBack,
}

const OUTCOMES: [Outcome; 2] = [Outcome::Committed, Outcome::RolledBack];

/// While it is closed, each `COMMIT` of a transaction that has removed a record lasts.
struct Gate<'a> {
    server: &'a PostgresServer,
    schema: &'a str,
}

impl<'a> Gate<'a> {
    /// The tables exist.
    fn new(server: &'a PostgresServer, schema: &'a str) -> Self {
        server.ask(&format!(
            "CREATE TABLE gate_of_{schema} (closed boolean);
             CREATE FUNCTION wait_of_{schema}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                WHILE EXISTS (SELECT FROM gate_of_{schema}) LOOP PERFORM pg_sleep(0.005); END LOOP;
                RETURN NULL;
             END $$;
             CREATE CONSTRAINT TRIGGER wait AFTER DELETE ON {schema}.sessions DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION wait_of_{schema}()"
        ));
        Self { server, schema }
    }

    fn close(&self) {
        self.server.ask(&format!("INSERT INTO gate_of_{} VALUES (true)", self.schema));
    }

    /// Waits until a `COMMIT` is under way. There is never a second one: the transaction after it waits for the lock of its holder.
    fn until_commit_waits(&self) {
        self.server.wait_until(&self.count("query = 'COMMIT'"), "1");
    }

    /// Waits until a later transaction waits for that one.
    fn until_next_waits(&self) {
        let waits = self.count("wait_event_type = 'Lock'");
        self.server.wait_until(&format!("SELECT ({waits}) > 0"), "t");
        assert_eq!(self.server.ask(&self.count("query = 'COMMIT'")), "1");
    }

    /// Lets it go on, or ends its connection first.
    fn open(&self, outcome: Outcome) {
        if outcome == Outcome::RolledBack {
            // A later transaction may come to its own `COMMIT` then.
            let pid = self.server.ask(&format!("SELECT pid {}", self.of_holders("query = 'COMMIT'")));
            self.server.ask(&format!("SELECT pg_terminate_backend({pid})"));
            self.server.wait_until(&format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"), "0");
        }
        self.server.ask(&format!("DELETE FROM gate_of_{}", self.schema));
    }

    fn count(&self, condition: &str) -> String {
        format!("SELECT count(*) {}", self.of_holders(condition))
    }

    fn of_holders(&self, condition: &str) -> String {
        let schema = self.schema;
        format!("FROM pg_stat_activity WHERE application_name = '{schema}' AND state = 'active' AND {condition}")
    }

    /// Waits until no record is left.
    fn until_delivered(&self) {
        self.server.wait_until(&format!("SELECT count(*) FROM {}.sessions", self.schema), "0");
    }
}

/// A holder with the hook. Its connections are named after the schema.
async fn with_hook(url: &str, schema: &str, chats: &Chats) -> PostgresRegistry {
    let pool = PgPoolOptions::new().max_connections(5).acquire_timeout(Duration::from_secs(10));
    let pool = pool.connect_lazy(&format!("{url}?application_name={schema}")).unwrap();
    let builder =
        PostgresRegistry::builder(pool).schema(schema).lease(2 * SHORT).transaction_hook("chats", chats.clone());
    builder.connect().await.unwrap()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: never"));
}

async fn an_end_is_committed_once(server: &PostgresServer, url: &str, outcome: Outcome) {
    let schema = &new_schema();
    let chats = Chats::new(server, schema);
    let sessions = ActiveSessions::builder()
        .registry(with_hook(url, schema, &chats).await)
        .on_session_end(async |_| {})
        .build()
        .unwrap();
    tokio::spawn(sessions.shutdown_on(pending::<()>()));
    let gate = Gate::new(server, schema);
    assert!(sessions.note("a").recorded().await);
    gate.close();
    assert!(sessions.end("a", EndReason::Deleted));
    gate.until_commit_waits();
    until("its call is given up", || sessions.is_degraded()).await;
    gate.until_next_waits();
    let calls = chats.calls.load(Ordering::SeqCst);
    assert_eq!((calls, chats.rows(server)), (2, vec!["a 1 0".to_owned()]), "{outcome:?}");
    gate.open(outcome);
    gate.until_delivered();
    assert_eq!(chats.rows(server), ["a 1 1"], "{outcome:?}");
    let again = chats.calls.load(Ordering::SeqCst) - calls;
    // A call that was rolled back is repeated.
    assert_eq!(again > 0, outcome == Outcome::RolledBack, "{outcome:?}: {again} calls");
    let report = sessions.drain(EndReason::Shutdown).await;
    assert!(report.is_clean() && report.failures.is_empty(), "{outcome:?}: {report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_an_end_whose_commit_outlasts_its_call_is_committed_once() {
    let Some(server) = shared() else { return };
    for outcome in OUTCOMES {
        an_end_is_committed_once(server, &server.url(), outcome).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_an_end_whose_commit_outlasts_its_call_is_committed_once_through_a_proxy() {
    let Some(server) = shared() else { return };
    let Some(proxy) = PgBouncer::start(server, 5) else { return };
    for outcome in OUTCOMES {
        an_end_is_committed_once(server, &proxy.url(), outcome).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_a_drain_does_not_say_what_it_does_not_know() {
    let Some(server) = shared() else { return };
    for outcome in OUTCOMES {
        let schema = &new_schema();
        let chats = Chats::new(server, schema);
        let sessions = ActiveSessions::builder()
            .registry(with_hook(&server.url(), schema, &chats).await)
            .on_session_end(async |_| {})
            .build()
            .unwrap();
        let gate = Gate::new(server, schema);
        assert!(sessions.note("a").recorded().await);
        gate.close();
        let report = sessions.drain(EndReason::Shutdown).await;
        gate.until_commit_waits();
        // Not `ended`, since it may be rolled back, and not `failed`, since it may be committed.
        assert_eq!((report.ended, report.failed, report.unfinished.len()), (0, 0, 1), "{outcome:?}: {report}");
        assert!(report.failures.is_empty(), "{outcome:?}: {:?}", report.failures);
        let _ = sessions.finish(async {}).await;
        assert_eq!(chats.rows(server), ["a 1 0"], "{outcome:?}");
        gate.open(outcome);
        // The next process delivers what was not committed.
        let next = with_hook(&server.url(), schema, &chats).await;
        match outcome {
            Outcome::Committed => gate.until_delivered(),
            Outcome::RolledBack => {
                let orphans = claim_so_many(&next, 1).await;
                reach(&next, &[done(&orphans[0].record)]).await.unwrap();
            }
        }
        assert_eq!(chats.rows(server), ["a 1 1"], "{outcome:?}");
        let _ = next.heartbeat().await;
        assert!(claim_orphans(&next).await.is_empty(), "{outcome:?}");
        gate.until_delivered();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_a_drain_that_gets_an_answer_after_all_counts_it() {
    let Some(server) = shared() else { return };
    for outcome in OUTCOMES {
        let schema = &new_schema();
        let chats = Chats::new(server, schema);
        let sessions = ActiveSessions::builder()
            .registry(with_hook(&server.url(), schema, &chats).await)
            .drain_timeout(PATIENCE)
            .on_session_end(async |_| {})
            .build()
            .unwrap();
        let gate = Gate::new(server, schema);
        assert!(sessions.note("a").recorded().await);
        gate.close();
        let draining = sessions.clone();
        let drain = tokio::spawn(async move { draining.drain(EndReason::Shutdown).await });
        gate.until_commit_waits();
        // The first call is over then.
        gate.until_next_waits();
        gate.open(outcome);
        let report = drain.await.unwrap();
        assert_eq!((report.failed, report.handed_over), (0, 0), "{outcome:?}: {report}");
        // On a busy machine the other attempts may come to nothing too.
        if report.ended == 1 {
            assert!(report.is_clean(), "{outcome:?}: {report}");
            gate.until_delivered();
            assert_eq!(chats.rows(server), ["a 1 1"], "{outcome:?}");
        } else {
            assert_eq!(report.unfinished.len(), 1, "{outcome:?}: {report}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_no_survivor_takes_an_end_whose_commit_is_under_way() {
    let Some(server) = shared() else { return };
    for outcome in OUTCOMES {
        let schema = &new_schema();
        let chats = Chats::new(server, schema);
        let dying = with_hook(&server.url(), schema, &chats).await;
        let survivor = with_hook(&server.url(), schema, &chats).await;
        let gate = Gate::new(server, schema);
        let a = record("a");
        one(&dying, hold(&a)).await;
        assert_eq!(one(&dying, end(&a)).await, OWNED);
        gate.close();
        let call = tokio::spawn(async move { dying.apply(vec![done(&a)]).await });
        gate.until_commit_waits();
        // As SIGKILL: the server is not told, and the lease is not released.
        call.abort();
        let expired = format!(
            "SELECT count(*) FROM {schema}.holders WHERE adopted_by IS NULL AND expires_at < extract(epoch FROM clock_timestamp()) * 1000"
        );
        let (mut asked, mut found) = (0, Vec::new());
        while server.ask(&expired) == "0" || asked < 10 {
            asked += 1;
            let _ = survivor.heartbeat().await;
            match survivor.claim_orphans(10).await {
                Ok(orphans) => found.extend(orphans),
                Err(RegistryError::Unavailable(_) | RegistryError::Conflict) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        gate.until_commit_waits();
        assert!(found.is_empty(), "{outcome:?}: {found:?}");
        gate.open(outcome);
        if outcome == Outcome::RolledBack {
            let orphans = claim_so_many(&survivor, 1).await;
            reach(&survivor, &[done(&orphans[0].record)]).await.unwrap();
        }
        gate.until_delivered();
        let _ = survivor.heartbeat().await;
        assert!(claim_orphans(&survivor).await.is_empty(), "{outcome:?}");
        assert_eq!(chats.rows(server), ["a 1 1"], "{outcome:?}");
    }
}

/// With synchronous replication a `COMMIT` waits for the standby when it is already on the disk of the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_a_start_whose_commit_waits_for_a_standby_ends_once() {
    if !is_installed() {
        return;
    }
    let server = &PostgresServer::start(&[]);
    let schema = &new_schema();
    let chats = Chats::new(server, schema);
    let sessions = ActiveSessions::builder()
        .registry(with_hook(&server.url(), schema, &chats).await)
        .on_session_end(async |_| {})
        .build()
        .unwrap();
    assert!(sessions.note("before").recorded().await);
    server.ask("ALTER SYSTEM SET synchronous_standby_names = 'missing'");
    server.ask("SELECT pg_reload_conf()");
    server.wait_until("SHOW synchronous_standby_names", "missing");
    assert!(!sessions.note("a").recorded().await);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'";
    server.wait_until(waiting, "1");
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.total(), report.failed), (2, 0), "{report}");
    let _ = sessions.finish(async {}).await;
    server.ask("ALTER SYSTEM RESET synchronous_standby_names");
    server.ask("SELECT pg_reload_conf()");
    let next = with_hook(&server.url(), schema, &chats).await;
    let start = Instant::now();
    while server.ask(&format!("SELECT count(*) FROM {schema}.sessions")) != "0" {
        assert!(start.elapsed() < PATIENCE, "a record is left");
        let _ = next.heartbeat().await;
        let deliveries: Vec<_> = claim_orphans(&next).await.iter().map(|orphan| done(&orphan.record)).collect();
        reach(&next, &deliveries).await.unwrap();
    }
    // On a busy machine there may be no time for the call of a start.
    let wrong = format!("SELECT id, starts, ends FROM chats_of_{schema} WHERE starts > 1 OR ends <> 1");
    assert_eq!(server.ask(&wrong), "");
}
