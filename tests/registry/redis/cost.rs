//! Round trips, and what is left in the end.

use tower_session_end::{
    Session, SessionId,
    registry::{Applied, Record, Registry},
};

use super::support::{RedisServer, YOURS, claim_orphans, done, hold, holder, one, record, records, release};

#[tokio::test]
async fn g17_ten_thousand_releases_are_forty_scripts() {
    let server = RedisServer::start();
    let holder = holder(&server).await;
    let records = records(10_000);
    let held = holder.apply(records.iter().map(hold).collect()).await.unwrap();
    assert!(held.iter().all(|answer| *answer == Applied::Created));
    let before = (server.calls("evalsha"), server.calls("eval"));
    let released = holder.apply(records.iter().map(|record| release(record, 0)).collect()).await.unwrap();
    assert!(released.iter().all(|answer| *answer == YOURS));
    assert_eq!((server.calls("evalsha") - before.0, server.calls("eval") - before.1), (40, 0));
    holder.apply(records.iter().map(done).collect()).await.unwrap();
    let before = server.calls("evalsha");
    holder.heartbeat().await.unwrap();
    holder.heartbeat().await.unwrap();
    // One, which the server did not know yet, and had to be told.
    assert_eq!(server.calls("evalsha") - before, 2);
    let before = server.calls("evalsha");
    assert!(holder.claim_orphans(1000).await.unwrap().is_empty());
    assert_eq!(server.calls("evalsha") - before, 1);
    assert!(holder.apply(Vec::new()).await.unwrap().is_empty());
    assert_eq!(server.calls("evalsha") - before, 1);

    holder.release_lease().await.unwrap();
    assert_eq!(server.keys(), ["{tower-session-end}:incarnation"]);
}

#[tokio::test]
async fn a_recovery_is_a_script_for_500_and_leaves_nothing() {
    let server = RedisServer::start();
    let (dead, other) = (holder(&server).await, holder(&server).await);
    let records = records(2560);
    dead.apply(records.iter().map(hold).collect()).await.unwrap();
    dead.release_lease().await.unwrap();
    let before = server.calls("evalsha");
    let orphans = claim_orphans(&other).await;
    assert_eq!(orphans.len(), 2560);
    let scripts = server.calls("evalsha") - before;
    // Six pages, of which a call reads two; one of what it had claimed; and one for each of four calls, which adopts.
    assert_eq!(scripts, 11);
    other.apply(orphans.iter().map(|orphan| done(&orphan.record)).collect()).await.unwrap();
    assert!(claim_orphans(&other).await.is_empty());
    other.release_lease().await.unwrap();
    assert_eq!(server.keys(), ["{tower-session-end}:incarnation"]);
}

#[tokio::test]
async fn big_details_go_in_smaller_batches() {
    let server = RedisServer::start();
    let (dead, other) = (holder(&server).await, holder(&server).await);
    // From here on the server knows the script.
    let first = record("first");
    one(&dead, hold(&first)).await;
    let big: Vec<_> = (0..64)
        .map(|n| {
            let Record { generation, started_at, .. } = record("x");
            let id = SessionId::with_max_len(format!("{n}{}", "x".repeat(50_000)), usize::MAX).unwrap();
            Record::new(Session::new(id).with_attribute("ü", "ü".repeat(50_000)), generation, started_at)
        })
        .collect();
    let before = server.calls("evalsha");
    dead.apply(big.iter().map(hold).collect()).await.unwrap();
    let scripts = server.calls("evalsha") - before;
    assert!((16..=64).contains(&scripts), "{scripts} scripts for 13 MB");
    dead.release_lease().await.unwrap();
    let mut found: Vec<_> = claim_orphans(&other).await.into_iter().map(|orphan| orphan.record).collect();
    found.sort_by_key(|record| record.generation);
    assert!(found[0] == first && found[1..] == big[..], "they came back otherwise");
}
