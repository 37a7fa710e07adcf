//! The server goes away, comes back, and has forgotten something or not.

use std::time::{Duration, Instant};

use tower_session_end::registry::{Applied, RedisRegistry, Registry, RegistryError};

use super::support::{
    LONG, RedisServer, SHORT, YOURS, claim_orphans, done, hold, holder, lazy_manager, one, reach, record, release,
    take_over_so_many, with_lease,
};

const OTHERS: Applied = Applied::HeldElsewhere;
const YOURS_3: Applied = Applied::Owned { requests: 3 };

/// An answer that says so, and no other.
#[track_caller]
pub(crate) fn forgotten<T: std::fmt::Debug>(answer: &Result<T, RegistryError>) {
    assert!(matches!(answer, Err(RegistryError::DataLost)), "{answer:?}");
}

#[tokio::test]
async fn g15_a_server_that_is_killed_and_has_it_on_disk_loses_nothing() {
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (a, b) = (holder(&server).await, holder(&server).await);
    let (alone, shared, ended) = (record("alone"), record("shared"), record("ended"));
    a.apply(vec![hold(&alone), hold(&shared), hold(&ended)]).await.unwrap();
    assert_eq!(one(&b, hold(&record("shared"))).await, Applied::Joined(shared.clone()));
    assert_eq!(one(&a, release(&ended, 3)).await, YOURS_3);
    server.start_again();
    // It may have come back with less than it had: hold it all again, before anything is believed.
    for holder in [&a, &b] {
        forgotten(&reach(holder, &[release(&shared, 1)]).await);
    }
    assert_eq!(a.apply(vec![hold(&alone), hold(&shared)]).await.unwrap(), [Applied::Created, Applied::Created]);
    assert_eq!(one(&b, hold(&shared)).await, Applied::Created);
    assert_eq!(one(&a, release(&ended, 3)).await, YOURS_3);
    assert_eq!(one(&a, release(&shared, 1)).await, OTHERS);
    assert_eq!(one(&b, release(&shared, 2)).await, YOURS_3);
    assert_eq!(one(&a, release(&alone, 3)).await, YOURS_3);
    a.apply(vec![done(&ended), done(&alone)]).await.unwrap();
    b.apply(vec![done(&shared)]).await.unwrap();
    a.release_lease().await.unwrap();
    assert!(claim_orphans(&b).await.is_empty());
}

#[tokio::test]
async fn g16_a_server_that_comes_back_empty_is_told_everything_again() {
    let mut server = RedisServer::start();
    let (a, b) = (holder(&server).await, holder(&server).await);
    let (alone, shared) = (record("alone"), record("shared"));
    for flushed in [true, false] {
        a.apply(vec![hold(&alone), hold(&shared)]).await.unwrap();
        b.apply(vec![hold(&shared)]).await.unwrap();
        if flushed {
            server.ask("FLUSHALL");
        } else {
            server.start_again();
        }
        forgotten(&reach(&b, &[release(&shared, 3)]).await);
        assert_eq!(b.apply(vec![hold(&shared)]).await.unwrap(), [Applied::Created]);
        forgotten(&reach(&a, &[release(&alone, 3)]).await);
        assert_eq!(a.apply(vec![hold(&alone), hold(&shared)]).await.unwrap(), [Applied::Created, Applied::Created]);
    }
    assert!(a.lease_is_valid() && b.lease_is_valid());
    assert_eq!(one(&b, release(&shared, 3)).await, OTHERS);
    assert_eq!(a.apply(vec![release(&shared, 0), release(&alone, 0)]).await.unwrap(), [YOURS_3, YOURS]);
}

#[tokio::test]
async fn a_loss_is_told_once_and_by_whichever_call_meets_it() {
    let server = RedisServer::start();
    let holder = holder(&server).await;
    server.ask("FLUSHALL");
    forgotten(&holder.heartbeat().await);
    holder.heartbeat().await.unwrap();
    server.ask("FLUSHALL");
    forgotten(&holder.claim_orphans(10).await);
    assert!(holder.claim_orphans(10).await.unwrap().is_empty());
    // Also where there is no way back in at once.
    server.ask("FLUSHALL");
    server.ask("CONFIG SET maxmemory 1");
    let answer = holder.heartbeat().await;
    assert!(matches!(answer, Err(RegistryError::Unavailable(_))), "{answer:?}");
    server.ask("CONFIG SET maxmemory 0");
    forgotten(&holder.apply(vec![]).await.and(holder.apply(vec![hold(&record("a"))]).await));
    holder.heartbeat().await.unwrap();
    server.ask("FLUSHALL");
    forgotten(&holder.release_lease().await);
    let error = holder.heartbeat().await.unwrap_err();
    assert!(error.to_string().contains("has left"), "{error}");
    assert!(server.keys().is_empty());
}

#[tokio::test]
async fn g16_a_lease_that_was_deleted_is_no_fence() {
    let server = RedisServer::start();
    let holder = holder(&server).await;
    let held = record("a");
    holder.apply(vec![hold(&held)]).await.unwrap();
    server.ask("DEL {tower-session-end}:leases");
    forgotten(&holder.apply(vec![release(&held, 0)]).await);
    assert_eq!(holder.apply(vec![hold(&held), release(&held, 0)]).await.unwrap(), [Applied::Created, YOURS]);
    holder.apply(vec![done(&held)]).await.unwrap();
    holder.release_lease().await.unwrap();
    assert_eq!(server.keys(), ["{tower-session-end}:incarnation"]);
}

#[tokio::test]
async fn g16_a_lease_alone_does_not_make_it_the_same_store() {
    let server = RedisServer::start();
    let holder = holder(&server).await;
    let held = record("a");
    holder.apply(vec![hold(&held)]).await.unwrap();
    // As by an enter that was given up, and arrives late.
    server.ask("FLUSHALL");
    server.ask(&format!("ZADD {{tower-session-end}}:leases 9999999999999 {}:0", holder.instance()));
    forgotten(&holder.apply(vec![release(&held, 0)]).await);
}

#[tokio::test]
async fn g16_a_call_that_waited_while_the_loss_was_found_is_not_answered_gone() {
    let server = RedisServer::start();
    let holder = holder(&server).await;
    let held = record("a");
    holder.apply(vec![hold(&held)]).await.unwrap();
    server.ask("FLUSHALL");
    let (beat, waiting) = tokio::join!(holder.heartbeat(), holder.apply(vec![release(&held, 0)]));
    forgotten(&beat);
    forgotten(&waiting);
    assert_eq!(holder.apply(vec![hold(&held), release(&held, 0)]).await.unwrap(), [Applied::Created, YOURS]);
}

#[tokio::test]
async fn g17_a_server_that_refuses_to_write_is_unavailable_and_does_nothing_by_halves() {
    let server = RedisServer::start();
    let holder = holder(&server).await;
    let (before, during) = (record("before"), record("during"));
    holder.apply(vec![hold(&before)]).await.unwrap();
    for (refuse, accept) in [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
    ] {
        server.ask(refuse);
        let keys = server.keys();
        for answer in [
            holder.apply(vec![release(&before, 0), hold(&during)]).await.map(drop),
            holder.heartbeat().await.map(drop),
            holder.claim_orphans(1).await.map(drop),
        ] {
            assert!(matches!(answer, Err(RegistryError::Unavailable(_))), "{refuse}: {answer:?}");
        }
        assert_eq!(server.keys(), keys, "{refuse}");
        server.ask(accept);
        holder.heartbeat().await.unwrap();
    }
    let answers = holder.apply(vec![release(&before, 0), hold(&during)]).await.unwrap();
    assert_eq!(answers, [YOURS, Applied::Created]);
}

#[tokio::test]
async fn g17_a_paused_server_is_unavailable_within_the_timeout_and_counts_nothing_twice() {
    let server = RedisServer::start();
    let holder = RedisRegistry::builder(lazy_manager(&server.url())).lease(LONG).connect().await.unwrap();
    let (first, second) = (record("first"), record("second"));
    holder.apply(vec![hold(&first), hold(&second)]).await.unwrap();
    // What writes waits, and scripts may; only so can it be ended early.
    server.ask("CLIENT PAUSE 60000 WRITE");
    let start = Instant::now();
    let changes = [release(&first, 3), release(&second, 3)];
    for _ in 0..3 {
        let error = holder.apply(changes.to_vec()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains("no answer within 200ms"), "{error}");
    }
    // Far less than the pause, whatever else the machine has to do.
    assert!(start.elapsed() < Duration::from_secs(20));
    server.ask("CLIENT UNPAUSE");
    assert_eq!(reach(&holder, &changes).await.unwrap(), [YOURS_3, YOURS_3]);
    holder.apply(vec![done(&first), done(&second)]).await.unwrap();
    holder.release_lease().await.unwrap();
    assert_eq!(server.keys(), ["{tower-session-end}:incarnation"]);
}

#[tokio::test]
async fn g17_a_server_that_is_slow_but_in_time_is_waited_for() {
    let server = RedisServer::start();
    let holder = holder(&server).await;
    for n in 0..5 {
        server.ask("CLIENT PAUSE 100 ALL");
        assert_eq!(holder.apply(vec![hold(&record(&n.to_string()))]).await.unwrap(), [Applied::Created]);
    }
}

#[tokio::test]
async fn g16_an_outage_that_is_longer_than_the_lease_takes_it_from_nobody_alive() {
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (a, b, dead) =
        (with_lease(&server, SHORT).await, with_lease(&server, SHORT).await, with_lease(&server, SHORT).await);
    let (of_b, of_dead) = (record("b"), record("dead"));
    b.apply(vec![hold(&of_b)]).await.unwrap();
    dead.apply(vec![hold(&of_dead)]).await.unwrap();
    drop(dead);
    server.kill();
    tokio::time::sleep(SHORT * 2).await;
    assert!(!a.lease_is_valid() && !b.lease_is_valid());
    server.start_again();
    // By its clock all leases are over. The first one that is back claims nothing yet ...
    forgotten(&reach(&a, &[]).await.and(reach(&a, &[hold(&record("a"))]).await));
    a.heartbeat().await.unwrap();
    assert_eq!(claim_orphans(&a).await, []);
    // ... so that the others still have theirs ...
    forgotten(&reach(&b, &[hold(&of_b)]).await);
    b.heartbeat().await.unwrap();
    assert!(b.lease_is_valid());
    // ... and only what nobody comes back for is taken over.
    let (orphans, ()) = tokio::join!(take_over_so_many(&a, 1), async {
        for _ in 0..20 {
            tokio::time::sleep(b.heartbeat_interval()).await;
            b.heartbeat().await.unwrap();
        }
    });
    assert_eq!(orphans.iter().map(|orphan| &orphan.record).collect::<Vec<_>>(), [&of_dead]);
    assert_eq!(one(&b, release(&of_b, 0)).await, YOURS);
}
