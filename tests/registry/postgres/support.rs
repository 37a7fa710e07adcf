//! Holders on a server, their changes and their answers.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime},
};

use sqlx::{PgPool, postgres::PgPoolOptions};
use tower_session_end::{
    EndReason, GenerationId, Session, SessionId,
    registry::{
        Applied, Change, EndRecord, HoldMode, Orphan, PostgresRegistry, PostgresRegistryBuilder, Record, Registry,
        RegistryError,
    },
};

pub(crate) use crate::support::postgres_server::{PgBouncer, PostgresServer, is_installed, shared};

/// For a holder that shall not lose its lease.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// For one that shall.
pub(crate) const SHORT: Duration = Duration::from_secs(1);

/// Nothing here takes that long unless it is stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A pool that connects when it is needed.
pub(crate) fn pool(url: &str) -> PgPool {
    PgPoolOptions::new().max_connections(5).acquire_timeout(Duration::from_secs(10)).connect_lazy(url).unwrap()
}

/// A schema that no other test uses.
pub(crate) fn new_schema() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    format!("session_end_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A holder with a lease that a busy machine does not exceed.
pub(crate) fn builder(url: &str, schema: &str) -> PostgresRegistryBuilder {
    PostgresRegistry::builder(pool(url)).schema(schema).lease(LONG)
}

pub(crate) async fn holder(server: &PostgresServer, schema: &str) -> PostgresRegistry {
    builder(&server.url(), schema).connect().await.unwrap()
}

/// One whose lease expires after so long.
pub(crate) async fn with_lease(server: &PostgresServer, schema: &str, lease: Duration) -> PostgresRegistry {
    builder(&server.url(), schema).lease(lease).connect().await.unwrap()
}

/// Calls `apply` until the server can be reached.
pub(crate) async fn reach(holder: &PostgresRegistry, changes: &[Change]) -> Result<Vec<Applied>, RegistryError> {
    let start = Instant::now();
    loop {
        match holder.apply(changes.to_vec()).await {
            Err(error @ (RegistryError::Unavailable(_) | RegistryError::Conflict)) => {
                assert!(start.elapsed() < PATIENCE, "the server is never back: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            answer => return answer,
        }
    }
}

/// One change and its answer.
pub(crate) async fn one(holder: &PostgresRegistry, change: Change) -> Applied {
    reach(holder, &[change]).await.unwrap().pop().unwrap()
}

/// All orphans that there are now.
pub(crate) async fn claim_orphans(holder: &PostgresRegistry) -> Vec<Orphan> {
    let mut all = Vec::new();
    loop {
        match holder.claim_orphans(1000).await {
            Ok(some) if some.is_empty() => return all,
            Ok(some) => all.extend(some),
            // On a busy machine. They are returned again.
            Err(RegistryError::Unavailable(_) | RegistryError::Conflict) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Claims, and renews the lease by that, until `count` have come.
pub(crate) async fn claim_so_many(holder: &PostgresRegistry, count: usize) -> Vec<Orphan> {
    let start = Instant::now();
    let mut all = Vec::new();
    while all.len() < count {
        assert!(start.elapsed() < PATIENCE, "only {} of {count} orphans", all.len());
        let _ = holder.heartbeat().await;
        all.extend(claim_orphans(holder).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    all
}

fn generation() -> GenerationId {
    static GENERATION: AtomicU64 = AtomicU64::new(1);
    format!("{:032x}-{}", std::process::id(), GENERATION.fetch_add(1, Ordering::Relaxed)).parse().unwrap()
}

/// A new generation of this session.
pub(crate) fn record(id: &str) -> Record {
    // Records come back in milliseconds.
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let started_at = SystemTime::UNIX_EPOCH + Duration::from_millis(since.try_into().unwrap());
    Record::new(
        Session::new(SessionId::new(id).unwrap()).with_key("key").with_agent_id("main"),
        generation(),
        started_at,
    )
}

pub(crate) fn records(count: usize) -> Vec<Record> {
    (0..count).map(|n| record(&format!("session-{n}"))).collect()
}

pub(crate) fn hold(record: &Record) -> Change {
    Change::Hold { record: record.clone(), mode: HoldMode::JoinOrCreate }
}

pub(crate) fn release(record: &Record, requests: u64) -> Change {
    let end = EndRecord::new(EndReason::Shutdown, None, SystemTime::now(), requests);
    Change::Release { id: record.session.id.clone(), generation: record.generation, end }
}

pub(crate) fn end(record: &Record) -> Change {
    let end = EndRecord::new(EndReason::Deleted, None, SystemTime::now(), 0);
    Change::End { id: record.session.id.clone(), generation: record.generation, end }
}

pub(crate) fn done(record: &Record) -> Change {
    Change::Delivered { generation: record.generation }
}

pub(crate) fn dead_letter(record: &Record, error: &str) -> Change {
    Change::DeadLetter { generation: record.generation, error: error.to_owned() }
}

/// The answer to a release or an end of a session without other holders and requests.
pub(crate) const OWNED: Applied = Applied::Owned { requests: 0 };
