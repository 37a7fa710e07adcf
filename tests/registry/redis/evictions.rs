//! A server that evicts keys with a time to live when memory is short.

use tower_session_end::{
    EndReason,
    registry::{Applied, Registry},
};

use super::{
    process::Process,
    support::{
        RedisServer, SHORT, YOURS, attempted, claim_orphans, dead_letter, done, end, hold, hold_beside, holder, one,
        record, records, release, take_over_so_many, with_lease,
    },
};

/// Writes until every key that may be evicted is gone.
fn press(server: &RedisServer) {
    server.ask("SET volatile here EX 10000");
    server.ask("CONFIG SET maxmemory 1");
    let refused = server.try_ask("SET another one");
    assert!(refused.as_ref().is_err_and(|error| error.starts_with("OOM")), "{refused:?}");
    server.ask("CONFIG SET maxmemory 0");
    assert_eq!(server.ask("EXISTS volatile"), "0", "nothing was evicted");
}

#[tokio::test]
async fn g16_a_stopped_process_learns_that_it_was_fenced_after_evictions_too() {
    let server = RedisServer::with(&["--maxmemory-policy", "volatile-lru"]);
    let (mut stopped, generation) = Process::start(&server);
    stopped.signal("STOP");
    let other = with_lease(&server, SHORT).await;
    let orphans = take_over_so_many(&other, 1).await;
    assert_eq!((orphans[0].record.generation, orphans[0].end.reason), (generation, EndReason::Lost));
    assert_eq!(one(&other, done(&orphans[0].record)).await, Applied::Ok);
    assert_eq!(claim_orphans(&other).await, []);
    press(&server);
    // It wants to end its session as deleted. That it was ended as lost is known, whatever was evicted.
    stopped.go();
    stopped.signal("CONT");
    assert_eq!(stopped.hear(), "Fenced Gone");
}

#[tokio::test]
async fn g16_a_grace_time_is_not_evicted() {
    let mut server =
        RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "volatile-lru"]);
    let (a, b) = (with_lease(&server, SHORT).await, with_lease(&server, SHORT).await);
    let held = record("a");
    assert_eq!(one(&b, hold(&held)).await, Applied::Created);
    server.kill();
    tokio::time::sleep(SHORT * 2).await;
    server.start_again();
    // The first one that is back gives the other one time, also on a server that is short of memory.
    while a.heartbeat().await.is_err() {
        tokio::time::sleep(SHORT / 20).await;
    }
    press(&server);
    assert_eq!(claim_orphans(&a).await, []);
}

#[tokio::test]
async fn no_key_has_a_time_to_live() {
    let server = RedisServer::start();
    let (a, b, dead) = (holder(&server).await, holder(&server).await, with_lease(&server, SHORT).await);
    let third = holder(&server).await;
    let records = records(40);
    a.apply(records.iter().map(hold).collect()).await.unwrap();
    third.apply(records[..3].iter().map(hold).collect()).await.unwrap();
    b.apply(records[..30].iter().map(hold).collect()).await.unwrap();
    dead.apply(records[..20].iter().map(hold).collect()).await.unwrap();
    one(&dead, hold_beside(&record("session-1"))).await;
    let claimed = record("claimed");
    dead.apply(vec![hold(&claimed)]).await.unwrap();
    assert_eq!(one(&dead, end(&claimed)).await, YOURS);
    b.apply(records[..10].iter().map(end).collect()).await.unwrap();
    a.apply(records[20..25].iter().map(|record| release(record, 1)).collect()).await.unwrap();
    drop(dead);
    let orphans = take_over_so_many(&a, 2).await;
    a.apply(vec![attempted(&orphans[0].record, 1)]).await.unwrap();
    a.apply(vec![attempted(&orphans[1].record, 5)]).await.unwrap();
    a.apply(vec![dead_letter(&orphans[1].record, "no")]).await.unwrap();
    a.release_lease().await.unwrap();
    assert!(!claim_orphans(&b).await.is_empty());
    // As after an outage.
    for holder in server.ask("ZRANGE {tower-session-end}:leases 0 -1").lines() {
        server.ask(&format!("ZADD {{tower-session-end}}:leases 1 {holder}"));
    }
    b.heartbeat().await.unwrap();
    let keys = server.keys();
    for name in [
        "adopters",
        "adopted",
        "fenced",
        "grace_until",
        "notices",
        "dead_letters",
        "leases",
        "call_numbers",
        "held",
        "claimed",
    ] {
        assert!(keys.iter().any(|key| key.contains(&format!(":{name}"))), "no {name} in {keys:?}");
    }
    for key in keys {
        assert_eq!(server.ask(&format!("TTL {key}")), "-1", "{key}");
    }
}
