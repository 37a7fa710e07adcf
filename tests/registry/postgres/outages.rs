//! The server is away, comes back, or comes back without its tables.

use std::time::{Duration, Instant};

use sqlx::postgres::PgPoolOptions;
use tower_session_end::registry::{Applied, PostgresRegistry, Registry, RegistryError};

use super::support::{
    LONG, OWNED, PATIENCE, PostgresServer, SHORT, claim_orphans, claim_so_many, done, end, hold, holder, is_installed,
    new_schema, one, pool, reach, record, records, release, shared, with_lease,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_a_server_that_is_away_for_a_while_loses_nothing() {
    if !is_installed() {
        return;
    }
    let mut server = PostgresServer::start(&[]);
    let (a, b) = (with_lease(&server, "s", 2 * SHORT).await, with_lease(&server, "s", 2 * SHORT).await);
    let (held, claimed) = (record("held"), record("claimed"));
    a.apply(vec![hold(&held), hold(&claimed)]).await.unwrap();
    assert_eq!(one(&a, end(&claimed)).await, OWNED);
    server.kill();
    let start = Instant::now();
    let answer = a.apply(vec![hold(&record("new"))]).await;
    assert!(matches!(answer, Err(RegistryError::Unavailable(_))), "{answer:?}");
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(matches!(b.heartbeat().await, Err(RegistryError::Unavailable(_))));
    // Longer than the lease.
    tokio::time::sleep(3 * SHORT).await;
    assert!(!a.lease_is_valid());
    server.start_again();
    // The outage has expired no lease: each gets time to renew its own.
    assert_eq!(reach(&b, &[hold(&record("of-b"))]).await.unwrap(), [Applied::Created]);
    assert!(claim_orphans(&b).await.is_empty());
    assert_eq!(reach(&a, &[release(&held, 0), done(&claimed)]).await.unwrap(), [OWNED, Applied::Ok]);
    a.heartbeat().await.unwrap();
    assert!(a.lease_is_valid());
    // One that does not come back is recovered after that time.
    drop(a);
    let orphans = claim_so_many(&b, 1).await;
    assert_eq!(orphans[0].record, held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_a_server_that_is_restarted_at_once_loses_no_change_that_was_answered() {
    if !is_installed() {
        return;
    }
    let mut server = PostgresServer::start(&[]);
    let registry = holder(&server, "s").await;
    let all = records(300);
    for (n, some) in all.chunks(100).enumerate() {
        reach(&registry, &some.iter().map(hold).collect::<Vec<_>>()).await.unwrap();
        if n == 1 {
            server.restart_immediately();
        }
    }
    server.restart_immediately();
    let answers = reach(&registry, &all.iter().map(end).collect::<Vec<_>>()).await.unwrap();
    assert!(answers.iter().all(|answer| *answer == OWNED), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_connections_that_are_killed_are_replaced() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let registry = {
        let options = PgPoolOptions::new().max_connections(3).acquire_timeout(Duration::from_secs(10));
        let url = format!("{}?application_name={schema}", server.url());
        PostgresRegistry::builder(options.connect_lazy(&url).unwrap())
            .schema(&schema)
            .lease(LONG)
            .connect()
            .await
            .unwrap()
    };
    let all = records(40);
    for record in &all {
        let kill = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '{schema}'"
        );
        server.ask(&kill);
        assert_eq!(reach(&registry, &[hold(record)]).await.unwrap(), [Applied::Created]);
    }
    let answers = reach(&registry, &all.iter().map(end).collect::<Vec<_>>()).await.unwrap();
    assert!(answers.iter().all(|answer| *answer == OWNED), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_a_pool_that_the_app_has_used_up_is_an_outage_that_says_so() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let options = PgPoolOptions::new().max_connections(2).acquire_timeout(Duration::from_secs(30));
    let pool = options.connect_lazy(&server.url()).unwrap();
    let registry = PostgresRegistry::builder(pool.clone()).schema(&schema).lease(LONG).connect().await.unwrap();
    let used = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    let start = Instant::now();
    let Err(RegistryError::Unavailable(error)) = registry.heartbeat().await else { panic!("not unavailable") };
    assert!(error.to_string().contains("2 connections, 0 idle"), "{error}");
    assert!(start.elapsed() < PATIENCE);
    drop(used);
    assert_eq!(reach(&registry, &[hold(&record("a"))]).await.unwrap(), [Applied::Created]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_a_store_that_was_emptied_or_restored_is_a_data_loss() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    for loss in [
        "DROP SCHEMA {s} CASCADE",
        "TRUNCATE {s}.sessions, {s}.holds, {s}.holders, {s}.notices, {s}.store",
        "UPDATE {s}.holders SET renewals = -1",
    ] {
        let registry = holder(server, &schema).await;
        let a = record("a");
        assert_eq!(one(&registry, hold(&a)).await, Applied::Created);
        server.ask(&loss.replace("{s}", &format!("\"{schema}\"")));
        let answer = registry.apply(vec![release(&a, 0)]).await;
        assert!(matches!(answer, Err(RegistryError::DataLost)), "{loss}: {answer:?}");
        assert!(registry.lease_is_valid());
        // Held again with its generation, it goes on.
        assert_eq!(one(&registry, hold(&a)).await, Applied::Created, "{loss}");
        assert_eq!(one(&registry, release(&a, 0)).await, OWNED, "{loss}");
        assert_eq!(one(&registry, done(&a)).await, Applied::Ok, "{loss}");
        registry.release_lease().await.unwrap();
    }
}

/// A call that is dropped in its transaction: the pool never lends a connection whose transaction is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_call_leaves_no_open_transaction_in_the_pool() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let pool = pool(&server.url());
    let registry = PostgresRegistry::builder(pool.clone()).schema(&schema).lease(LONG).connect().await.unwrap();
    server.ask(&format!("CREATE TABLE \"of_the_app_{schema}\" (n integer)"));
    for n in 0..60 {
        let call = registry.apply(vec![hold(&record("a"))]);
        let _ = tokio::time::timeout(Duration::from_micros(100 * n), call).await;
        // In an open transaction, this would not be committed.
        let insert = format!("INSERT INTO \"of_the_app_{schema}\" VALUES (1)");
        sqlx::query(&*insert.leak()).execute(&pool).await.unwrap();
        let count = server.ask(&format!("SELECT count(*) FROM \"of_the_app_{schema}\""));
        assert_eq!(count, (n + 1).to_string());
    }
    registry.heartbeat().await.unwrap();
}
