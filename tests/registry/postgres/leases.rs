//! Leases: a holder that was silent for too long is recovered, and changes nothing afterwards.

use std::collections::BTreeSet;

use tower_session_end::{
    EndReason,
    registry::{Applied, Registry, RegistryError},
};

use super::{
    process::Process,
    support::{
        OWNED, PATIENCE, SHORT, claim_orphans, claim_so_many, done, end, hold, holder, new_schema, one, reach, record,
        records, release, shared, with_lease,
    },
};

#[tokio::test]
async fn g16_a_holder_that_was_recovered_is_fenced_and_gets_a_new_lease() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    // The longer lease first: after a short one it would look as if the server had been away.
    let other = holder(server, &schema).await;
    let slow = with_lease(server, &schema, SHORT).await;
    let (held, claimed) = (record("held"), record("claimed"));
    slow.apply(vec![hold(&held), hold(&claimed)]).await.unwrap();
    assert_eq!(one(&slow, end(&claimed)).await, OWNED);
    let mut orphans = claim_so_many(&other, 2).await;
    orphans.sort_by_key(|orphan| orphan.record.generation);
    assert!(!slow.lease_is_valid());
    let ends: Vec<_> = orphans.iter().map(|orphan| (&orphan.record, orphan.end.reason, orphan.attempts)).collect();
    assert_eq!(ends, [(&held, EndReason::Lost, 0), (&claimed, EndReason::Deleted, 0)]);

    // None of its changes is applied.
    let new = record("new");
    let answer = slow.apply(vec![release(&held, 0), done(&claimed), hold(&new)]).await;
    assert!(matches!(answer, Err(RegistryError::Fenced)), "{answer:?}");
    assert!(slow.lease_is_valid(), "it has a lease again");
    assert_eq!(one(&slow, release(&new, 0)).await, Applied::Gone);
    assert_eq!(one(&slow, release(&held, 0)).await, Applied::Gone);
    assert_eq!(one(&slow, done(&claimed)).await, Applied::Ok);
    let count = server.ask(&format!("SELECT count(*) FROM \"{schema}\".sessions"));
    assert_eq!(count, "2", "the claims of the other holder are as before");
    let names = server.ask(&format!("SELECT name FROM \"{schema}\".holders WHERE adopted_by IS NULL"));
    assert!(names.contains(&format!("{}:1", slow.instance())), "{names}");
    let next = record("held");
    assert_eq!(one(&slow, hold(&next)).await, Applied::Created);
    other.apply(orphans.iter().map(|orphan| done(&orphan.record)).collect()).await.unwrap();
    assert_eq!(one(&slow, release(&next, 0)).await, OWNED);
}

#[tokio::test]
async fn g16_a_lease_that_has_expired_and_that_no_holder_took_goes_on() {
    let Some(server) = shared() else { return };
    let holder = with_lease(server, &new_schema(), SHORT).await;
    let held = record("a");
    assert_eq!(one(&holder, hold(&held)).await, Applied::Created);
    tokio::time::sleep(SHORT).await;
    assert!(!holder.lease_is_valid());
    holder.heartbeat().await.unwrap();
    assert!(holder.lease_is_valid());
    assert_eq!(one(&holder, release(&held, 0)).await, OWNED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_of_two_that_hold_an_id_at_once_one_joins_the_other() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let (a, b, c) = (holder(server, &schema).await, holder(server, &schema).await, holder(server, &schema).await);
    for round in 0..30 {
        let of = || (0..20).map(|n| record(&format!("{round}-{n}"))).collect::<Vec<_>>();
        let (of_a, of_b, of_c) = (of(), of(), of());
        let all = |records: &[_]| records.iter().map(hold).collect::<Vec<_>>();
        // In another order: the rows are locked in the same order all the same.
        let mut reversed = all(&of_b);
        reversed.reverse();
        let (of_a, of_c) = (all(&of_a), all(&of_c));
        let (a, b, c) = tokio::join!(reach(&a, &of_a), reach(&b, &reversed), reach(&c, &of_c));
        let answers = [a, b, c].map(Result::unwrap);
        let created = answers.iter().flatten().filter(|answer| **answer == Applied::Created).count();
        assert_eq!(created, 20, "each id has one record");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_survivors_that_race_to_recover_claim_each_end_once() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let (a, b) = (holder(server, &schema).await, holder(server, &schema).await);
    let records = records(2000);
    let dead = holder(server, &schema).await;
    for some in records.chunks(1000) {
        dead.apply(some.iter().map(hold).collect()).await.unwrap();
    }
    dead.apply(records[..700].iter().map(end).collect()).await.unwrap();
    dead.release_lease().await.unwrap();
    let (mut all, of_b) = tokio::join!(claim_orphans(&a), claim_orphans(&b));
    all.extend(of_b);
    all.extend(claim_orphans(&a).await);
    all.extend(claim_orphans(&b).await);
    assert_eq!(all.len(), 2000);
    let found: BTreeSet<_> = all.iter().map(|orphan| orphan.record.generation).collect();
    assert_eq!(found, records.iter().map(|record| record.generation).collect());
}

/// The process is stopped within a transaction, with its locks. The server ends the transaction, so that the others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g16_a_process_that_is_stopped_beyond_its_lease_writes_nothing_when_it_goes_on() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    server.ask(&format!("CREATE TABLE \"ends_of_{schema}\" (generation text)"));
    let other = holder(server, &schema).await;
    let (mut process, generation) = Process::start(server, &schema);
    process.send("end");
    // It is in its hook, in the transaction that removes the record.
    assert_eq!(process.hear(), "in the hook");
    process.signal("STOP");
    let orphans = tokio::time::timeout(PATIENCE, claim_so_many(&other, 1)).await.unwrap();
    assert_eq!(orphans[0].record.generation, generation);
    process.signal("CONT");
    process.send("go");
    // Whatever it says: nothing of it was written.
    let said = process.hear();
    assert!(said.contains("Unavailable") || said.contains("Fenced"), "{said}");
    let count = |table: &str| server.ask(&format!("SELECT count(*) FROM {table}"));
    assert_eq!(count(&format!("\"ends_of_{schema}\"")), "0");
    assert_eq!(count(&format!("\"{schema}\".sessions")), "1");
    assert_eq!(one(&other, done(&orphans[0].record)).await, Applied::Ok);
}
