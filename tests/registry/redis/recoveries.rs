//! Recoveries: large ones, repeated ones, and ones whose answers are lost.

use std::{
    collections::BTreeSet,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use tower_session_end::{
    EndReason, GenerationId,
    registry::{Applied, Orphan, RedisRegistry, Registry, RegistryError},
};

use super::{
    proxy::Way,
    support::{
        LONG, RedisServer, SHORT, YOURS, attempted, builder, claim_orphans, done, end, hold, holder, one, record,
        records, release,
    },
};

fn of(orphans: &[Orphan]) -> BTreeSet<GenerationId> {
    orphans.iter().map(|orphan| orphan.record.generation).collect()
}

#[tokio::test]
async fn g15_five_recoveries_without_a_call_of_a_hook_count_nothing() {
    let server = RedisServer::start();
    let first = holder(&server).await;
    let (lost, ended) = (record("lost"), record("ended"));
    first.apply(vec![hold(&lost), hold(&ended)]).await.unwrap();
    assert_eq!(one(&first, end(&ended)).await, YOURS);
    first.release_lease().await.unwrap();
    let mut expected = 0;
    for recovery in 0..10 {
        let recoverer = holder(&server).await;
        let orphans = claim_orphans(&recoverer).await;
        assert_eq!(of(&orphans), BTreeSet::from([lost.generation, ended.generation]));
        for orphan in &orphans {
            let reason = if orphan.record == lost { EndReason::Lost } else { EndReason::Deleted };
            assert_eq!((orphan.attempts, orphan.end.reason), (expected, reason), "recovery {recovery}");
        }
        // The first five call no hook. Each of the others calls one, and writes it twice.
        if recovery >= 5 {
            expected += 1;
            for _ in 0..2 {
                recoverer.apply(vec![attempted(&lost, expected), attempted(&ended, expected)]).await.unwrap();
            }
        }
        recoverer.release_lease().await.unwrap();
    }
}

#[tokio::test]
async fn g15_orphans_whose_answer_was_lost_are_returned_again() {
    let server = RedisServer::start();
    let way = Way::to(server.port()).await;
    // So that the server knows the scripts, and a late call is carried out: its deadline is later than this test.
    let other = builder(&way.url()).command_timeout(LONG / 2).connect().await.unwrap();
    let dead = holder(&server).await;
    one(&dead, hold(&record("first"))).await;
    dead.release_lease().await.unwrap();
    assert_eq!(claim_orphans(&other).await.len(), 1);
    let dead = holder(&server).await;
    let records = records(60);
    dead.apply(records.iter().map(hold).collect()).await.unwrap();
    dead.apply(records[..30].iter().map(end).collect()).await.unwrap();
    dead.release_lease().await.unwrap();
    let mut all = Vec::new();
    for _ in 0..3 {
        way.hold_back();
        assert!(tokio::time::timeout(SHORT, other.claim_orphans(11)).await.is_err());
        let before = server.calls("evalsha");
        way.cut();
        way.let_through();
        while server.calls("evalsha") == before {
            tokio::task::yield_now().await;
        }
        let next = loop {
            match other.claim_orphans(11).await {
                Ok(orphans) => break orphans,
                Err(RegistryError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error:?}"),
            }
        };
        assert!(!next.is_empty());
        all.extend(next);
    }
    all.extend(claim_orphans(&other).await);
    assert_eq!((all.len(), of(&all)), (60, records.iter().map(|record| record.generation).collect()));
}

/// Polls a recovery until the server has carried out this many scripts for it, and drops it.
async fn drop_after(scripts: u64, holder: &RedisRegistry, server: &RedisServer) -> Option<Vec<Orphan>> {
    let before = server.calls("evalsha");
    let mut call = pin!(holder.claim_orphans(1000));
    while server.calls("evalsha") < before + scripts {
        let polled = poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
        if let Poll::Ready(orphans) = polled {
            return Some(orphans.unwrap());
        }
        tokio::task::yield_now().await;
    }
    None
}

#[tokio::test]
async fn g15_a_recovery_that_is_dropped_half_way_is_repeated() {
    let server = RedisServer::start();
    let (dead, other) = (holder(&server).await, holder(&server).await);
    // So that the server knows the scripts.
    let first = record("first");
    one(&dead, hold(&first)).await;
    dead.release_lease().await.unwrap();
    assert_eq!(claim_orphans(&other).await.len(), 1);
    let dead = holder(&server).await;
    let records = records(60);
    dead.apply(records.iter().map(hold).collect()).await.unwrap();
    dead.apply(records[..30].iter().map(end).collect()).await.unwrap();
    dead.release_lease().await.unwrap();
    // One script adopts, the second one reads what it held, the third one what it had claimed.
    let mut found = None;
    let mut dropped = 0;
    while dropped < 20 && found.is_none() {
        found = drop_after(1 + dropped % 3, &other, &server).await;
        dropped += 1;
    }
    assert!(dropped > 1, "none was dropped");
    let orphans = match found {
        Some(orphans) => orphans,
        None => claim_orphans(&other).await,
    };
    assert_eq!((orphans.len(), of(&orphans)), (60, records.iter().map(|record| record.generation).collect()));
}

/// 20,000, or `$RECOVERY_SESSIONS`.
fn sessions() -> usize {
    std::env::var("RECOVERY_SESSIONS").map_or(20_000, |count| count.parse().unwrap())
}

/// In batches of 1,000, all of one holder.
async fn hold_all(holder: &RedisRegistry, records: &[tower_session_end::registry::Record]) {
    for part in records.chunks(1000) {
        holder.apply(part.iter().map(hold).collect()).await.unwrap();
    }
}

/// The seconds of CPU that the server has used.
fn cpu(server: &RedisServer) -> f64 {
    let info = server.ask("INFO cpu");
    let of = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse::<f64>().unwrap();
    of("used_cpu_user:") + of("used_cpu_sys:")
}

/// What a recovery cost, for whoever looks.
struct Cost {
    what: &'static str,
    cpu: f64,
    scripts: u64,
    begun: Instant,
    starts: Vec<Duration>,
}

impl Cost {
    fn new(what: &'static str, server: &RedisServer) -> Self {
        server.ask("CONFIG SET slowlog-log-slower-than 1000");
        server.ask("CONFIG SET slowlog-max-len 100000");
        server.ask("SLOWLOG RESET");
        Self { what, cpu: cpu(server), scripts: server.calls("evalsha"), begun: Instant::now(), starts: Vec::new() }
    }

    /// A start between two calls of the recovery.
    async fn start(&mut self, holder: &RedisRegistry) {
        let begun = Instant::now();
        let started = record(&format!("start-{}", self.starts.len()));
        assert_eq!(one(holder, hold(&started)).await, Applied::Created);
        self.starts.push(begun.elapsed());
    }

    fn print(mut self, count: usize, server: &RedisServer) {
        let whole = self.begun.elapsed();
        let (cpu, scripts) = (cpu(server) - self.cpu, server.calls("evalsha") - self.scripts);
        self.starts.sort();
        let p99 = self.starts.get(self.starts.len() * 99 / 100).copied().unwrap_or_default();
        // Each entry: a number, a time, the microseconds, the command.
        let log = server.ask("SLOWLOG GET -1");
        let lines: Vec<_> = log.lines().collect();
        let longest =
            lines.windows(2).filter(|pair| pair[1] == "EVALSHA").filter_map(|pair| pair[0].parse::<u64>().ok());
        println!(
            "{}: {count} sessions in {whole:?}; {scripts} scripts, {:.1} ms of CPU each, {cpu:.2} s in all, the longest took \
             {} ms; {} starts between, p99 {p99:?}",
            self.what,
            cpu / scripts as f64 * 1000.0,
            longest.max().unwrap_or_default() / 1000,
            self.starts.len(),
        );
    }
}

#[tokio::test]
async fn g15_a_large_recovery_finds_each_session_once_with_starts_between_its_calls() {
    let server = RedisServer::start();
    let (dead, other) = (holder(&server).await, holder(&server).await);
    let records = records(sessions());
    let cost = Cost::new("holds", &server);
    hold_all(&dead, &records).await;
    cost.print(records.len(), &server);
    for part in records[..records.len() / 10].chunks(1000) {
        dead.apply(part.iter().map(end).collect()).await.unwrap();
    }
    dead.release_lease().await.unwrap();
    let mut cost = Cost::new("all of the dead one", &server);
    let mut found = Vec::new();
    loop {
        let orphans = other.claim_orphans(1000).await.unwrap();
        if orphans.is_empty() {
            break;
        }
        found.extend(orphans.into_iter().map(|orphan| orphan.record));
        cost.start(&other).await;
    }
    cost.print(records.len(), &server);
    assert_eq!(found.len(), records.len());
    let mut generations: Vec<_> = found.iter().map(|record| record.generation).collect();
    generations.sort();
    assert_eq!(generations, records.iter().map(|record| record.generation).collect::<Vec<_>>());
    let cost = Cost::new("deliveries", &server);
    for part in found.chunks(1000) {
        other.apply(part.iter().map(done).collect()).await.unwrap();
    }
    cost.print(records.len(), &server);
    assert!(claim_orphans(&other).await.is_empty());
    assert!(
        !server.keys().iter().any(|key| key.contains(&dead.instance().to_owned())),
        "something of the dead one is left"
    );
}

#[tokio::test]
async fn g16_a_large_recovery_leaves_what_a_living_holder_shares() {
    let server = RedisServer::start();
    let (dead, living, other) = (holder(&server).await, holder(&server).await, holder(&server).await);
    let records = records(sessions());
    hold_all(&dead, &records).await;
    hold_all(&living, &records).await;
    // And one that it alone holds.
    let alone = record("alone");
    assert_eq!(one(&dead, hold(&alone)).await, Applied::Created);
    dead.release_lease().await.unwrap();
    let mut cost = Cost::new("shared with a living one", &server);
    let mut found = Vec::new();
    loop {
        found.extend(claim_orphans(&other).await);
        cost.start(&other).await;
        // An empty answer may not be the last one: the heartbeat says so.
        if !other.heartbeat().await.unwrap().has_more {
            break;
        }
    }
    cost.print(records.len(), &server);
    assert_eq!(found.iter().map(|orphan| &orphan.record).collect::<Vec<_>>(), [&alone]);
    assert!(!other.heartbeat().await.unwrap().has_more);
    one(&other, done(&alone)).await;
    assert_eq!(claim_orphans(&other).await, []);
    assert!(
        !server.keys().iter().any(|key| key.contains(&dead.instance().to_owned())),
        "something of the dead one is left"
    );
    for part in records.chunks(1000) {
        let answers = living.apply(part.iter().map(|record| release(record, 0)).collect()).await.unwrap();
        assert!(answers.iter().all(|answer| *answer == YOURS));
    }
}
