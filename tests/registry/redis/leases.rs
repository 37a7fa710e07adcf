//! Holders that are late, and what others do meanwhile.

use std::{collections::BTreeSet, time::Duration};

use tower_session_end::{
    EndReason,
    registry::{Applied, Orphan, Registry, RegistryError},
};

use super::{
    proxy::Way,
    support::{
        LONG, RedisServer, SHORT, YOURS, builder, claim_orphans, done, end, hold, holder, one, reach, record, records,
        release, take_over_so_many, with_lease,
    },
};

#[tokio::test]
async fn g16_a_holder_that_misses_its_beats_is_fenced() {
    let server = RedisServer::start();
    let (slow, other) = (with_lease(&server, SHORT).await, with_lease(&server, SHORT).await);
    let (held, claimed) = (record("held"), record("claimed"));
    slow.apply(vec![hold(&held), hold(&claimed)]).await.unwrap();
    assert_eq!(one(&slow, end(&claimed)).await, YOURS);
    assert!(slow.lease_is_valid());
    let mut orphans = take_over_so_many(&other, 2).await;
    // It knows that its lease is over before anybody tells it.
    assert!(!slow.lease_is_valid());
    orphans.sort_by_key(|orphan| orphan.record.generation);
    let ends: Vec<_> = orphans.iter().map(|orphan| (&orphan.record, orphan.end.reason, orphan.attempts)).collect();
    assert_eq!(ends, [(&held, EndReason::Lost, 0), (&claimed, EndReason::Deleted, 0)]);

    // None of its changes is carried out.
    let born = record("born");
    let answer = slow.apply(vec![release(&held, 0), done(&claimed), hold(&born)]).await;
    assert!(matches!(answer, Err(RegistryError::Fenced)), "{answer:?}");
    assert!(slow.lease_is_valid(), "it has a lease again");
    assert_eq!(one(&slow, release(&born, 0)).await, Applied::Gone);
    assert_eq!(one(&slow, release(&held, 0)).await, Applied::Gone);
    // What it says about the claim that it had does not touch the one that the other has.
    assert_eq!(one(&slow, done(&claimed)).await, Applied::Ok);
    assert_eq!(server.ask(&format!("EXISTS {{tower-session-end}}:session:{}", claimed.generation)), "1");
    // What is alive there goes on as a new generation.
    let next = record("held");
    assert_eq!(one(&slow, hold(&next)).await, Applied::Created);
    assert!(server.keys().contains(&format!("{{tower-session-end}}:held:{}:1", slow.instance())));
    other.apply(orphans.iter().map(|orphan| done(&orphan.record)).collect()).await.unwrap();
    assert_eq!(one(&slow, release(&next, 0)).await, YOURS);
}

#[tokio::test]
async fn g16_a_lease_that_is_over_and_that_nobody_took_goes_on() {
    let server = RedisServer::start();
    let holder = with_lease(&server, SHORT).await;
    let held = record("a");
    assert_eq!(one(&holder, hold(&held)).await, Applied::Created);
    tokio::time::sleep(SHORT).await;
    assert!(!holder.lease_is_valid());
    holder.heartbeat().await.unwrap();
    assert!(holder.lease_is_valid());
    assert_eq!(one(&holder, release(&held, 0)).await, YOURS);
}

#[tokio::test]
async fn g16_survivors_that_race_to_take_over_claim_each_end_once() {
    let server = RedisServer::start();
    let (a, b) = (holder(&server).await, holder(&server).await);
    let records = records(2000);
    let lease = Duration::from_secs(2);
    let dead = with_lease(&server, lease).await;
    dead.apply(records.iter().map(hold).collect()).await.unwrap();
    dead.apply(records[..700].iter().map(end).collect()).await.unwrap();
    drop(dead);
    tokio::time::sleep(lease * 2).await;
    let (mut all, of_b) = tokio::join!(claim_orphans(&a), claim_orphans(&b));
    // One of them has adopted it, with all that it had.
    assert!(all.is_empty() != of_b.is_empty(), "{} and {}", all.len(), of_b.len());
    all.extend(of_b);
    assert!(claim_orphans(&a).await.is_empty() && claim_orphans(&b).await.is_empty());
    assert_eq!(all.len(), 2000);
    assert_eq!(ids(&all), records.iter().map(|record| record.generation).collect());
}

fn ids(orphans: &[Orphan]) -> BTreeSet<tower_session_end::GenerationId> {
    orphans.iter().map(|orphan| orphan.record.generation).collect()
}

#[tokio::test]
async fn g16_a_call_that_was_given_up_changes_nothing_when_it_arrives_late() {
    let server = RedisServer::start();
    let way = Way::to(server.port()).await;
    // Its deadline is later than this test.
    let holder = builder(&way.url()).command_timeout(LONG / 2).connect().await.unwrap();
    let (first, second) = (record("a"), record("b"));
    // So that the server knows the script, and the late call is one that counts.
    assert_eq!(one(&holder, hold(&first)).await, Applied::Created);
    way.hold_back();
    assert!(tokio::time::timeout(SHORT, holder.apply(vec![hold(&second)])).await.is_err());
    // Over a new connection the session lives and dies, before the first birth arrives.
    way.cut();
    assert_eq!(reach(&holder, &[hold(&second)]).await.unwrap(), [Applied::Created]);
    assert_eq!(one(&holder, release(&second, 0)).await, YOURS);
    assert_eq!(one(&holder, done(&second)).await, Applied::Ok);
    let before = server.calls("evalsha");
    way.let_through();
    while server.calls("evalsha") == before {
        tokio::task::yield_now().await;
    }
    assert!(!server.keys().contains(&format!("{{tower-session-end}}:session:{}", second.generation)), "it lives again");
    holder.heartbeat().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_read_is_still_ended() {
    let server = RedisServer::start();
    let dead = holder(&server).await;
    let damaged = record("damaged");
    dead.apply(vec![hold(&damaged)]).await.unwrap();
    server.ask(&format!("HSET {{tower-session-end}}:session:{} session {{damaged", damaged.generation));
    let other = holder(&server).await;
    let Applied::Joined(joined) = one(&other, hold(&record("damaged"))).await else { panic!("not joined") };
    assert_eq!((&joined.session.id, joined.generation), (&damaged.session.id, damaged.generation));
    other.release_lease().await.unwrap();
    dead.release_lease().await.unwrap();
    let other = builder(&server.url()).connect().await.unwrap();
    let orphans = claim_orphans(&other).await;
    assert_eq!(orphans.len(), 1);
    assert_eq!(orphans[0].record.session.id, damaged.session.id);
    assert_eq!(orphans[0].record.generation, damaged.generation);
}
