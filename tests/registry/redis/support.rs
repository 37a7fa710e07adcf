//! Holders on a server, what they are told to do, and what they say.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime},
};

use redis::{
    Client,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tower_session_end::{
    EndReason, GenerationId, Session, SessionId,
    registry::{
        Applied, Change, EndRecord, HoldMode, Orphan, Record, RedisRegistry, RedisRegistryBuilder, Registry,
        RegistryError,
    },
};

pub(crate) use crate::support::redis_server::RedisServer;

/// For a holder that shall not lose its lease.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// For one that shall.
pub(crate) const SHORT: Duration = Duration::from_secs(1);

/// Nothing here takes that long unless it is stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that is made when it is needed, and made again soon.
pub(crate) fn lazy_manager(url: &str) -> ConnectionManager {
    let config = ConnectionManagerConfig::new().set_max_delay(Duration::from_millis(100));
    let config = config.set_connection_timeout(Some(Duration::from_millis(500))).set_response_timeout(None);
    Client::open(url).unwrap().get_connection_manager_lazy(config).unwrap()
}

/// With a lease and a timeout that a busy machine does not exceed.
pub(crate) fn builder(url: &str) -> RedisRegistryBuilder<ConnectionManager> {
    RedisRegistry::builder(lazy_manager(url)).lease(LONG).command_timeout(Duration::from_secs(10))
}

pub(crate) async fn holder(server: &RedisServer) -> RedisRegistry {
    builder(&server.url()).connect().await.unwrap()
}

/// One that is lost after so long.
pub(crate) async fn with_lease(server: &RedisServer, lease: Duration) -> RedisRegistry {
    builder(&server.url()).lease(lease).command_timeout(lease * 9 / 10).connect().await.unwrap()
}

/// Calls `apply` until the server can be reached.
pub(crate) async fn reach(holder: &RedisRegistry, changes: &[Change]) -> Result<Vec<Applied>, RegistryError> {
    let start = Instant::now();
    loop {
        match holder.apply(changes.to_vec()).await {
            Err(RegistryError::Unavailable(error)) => {
                assert!(start.elapsed() < PATIENCE, "the server is never back: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            answer => return answer,
        }
    }
}

/// One change and its answer.
pub(crate) async fn one(holder: &RedisRegistry, change: Change) -> Applied {
    reach(holder, &[change]).await.unwrap().pop().unwrap()
}

/// Everything that there is to take over by now.
pub(crate) async fn claim_orphans(holder: &RedisRegistry) -> Vec<Orphan> {
    let mut all = Vec::new();
    loop {
        match holder.claim_orphans(1000).await {
            Ok(some) if some.is_empty() => return all,
            Ok(some) => all.extend(some),
            // On a busy machine. They are returned again.
            Err(RegistryError::Unavailable(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Takes over, and renews the lease by that, until `count` have come.
pub(crate) async fn take_over_so_many(holder: &RedisRegistry, count: usize) -> Vec<Orphan> {
    let start = Instant::now();
    let mut all = Vec::new();
    while all.len() < count {
        assert!(start.elapsed() < PATIENCE, "only {} of {count} ends were there to take over", all.len());
        all.extend(claim_orphans(holder).await);
        tokio::time::sleep(holder.heartbeat_interval() / 2).await;
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
    Record::new(Session::new(SessionId::new(id).unwrap()).with_key("key"), generation(), started_at)
}

pub(crate) fn records(count: usize) -> Vec<Record> {
    (0..count).map(|n| record(&format!("session-{n}"))).collect()
}

pub(crate) fn hold(record: &Record) -> Change {
    Change::Hold { record: record.clone(), mode: HoldMode::JoinOrCreate }
}

/// A hold of a generation whose start hooks have been called.
pub(crate) fn hold_beside(record: &Record) -> Change {
    Change::Hold { record: record.clone(), mode: HoldMode::Create }
}

pub(crate) fn forget(record: &Record) -> Change {
    Change::Forget { id: record.session.id.clone(), generation: record.generation }
}

pub(crate) fn keep(record: &Record) -> Change {
    Change::Keep { id: record.session.id.clone(), generation: record.generation }
}

pub(crate) fn attempted(record: &Record, attempts: u32) -> Change {
    Change::Attempted { generation: record.generation, attempts }
}

pub(crate) fn dead_letter(record: &Record, error: &str) -> Change {
    Change::DeadLetter { generation: record.generation, error: error.to_owned() }
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

pub(crate) const YOURS: Applied = Applied::Owned { requests: 0 };
