//! One living holder adopts a dead one with all that it had adopted, and alone delivers its ends.

use std::collections::BTreeSet;

use tower_session_end::{
    EndReason, GenerationId,
    registry::{Applied, Orphan, Record, Registry},
};

use super::support::{
    RedisServer, SHORT, YOURS, claim_orphans, done, end, hold, holder, keep, one, record, records, release,
    take_over_so_many, with_lease,
};

fn generations<'a>(records: impl IntoIterator<Item = &'a Record>) -> BTreeSet<GenerationId> {
    records.into_iter().map(|record| record.generation).collect()
}

fn of(orphans: &[Orphan]) -> BTreeSet<GenerationId> {
    generations(orphans.iter().map(|orphan| &orphan.record))
}

#[tokio::test]
async fn g15_after_three_deaths_in_a_row_the_last_survivor_has_every_end() {
    let server = RedisServer::start();
    let first = with_lease(&server, SHORT).await;
    let records = records(30);
    first.apply(records.iter().map(hold).collect()).await.unwrap();
    first.apply(records[20..].iter().map(end).collect()).await.unwrap();
    drop(first);

    // It dies half-way: it has read a part, and delivered a part of that.
    let second = with_lease(&server, SHORT).await;
    let own = record("own");
    let mut read = Vec::new();
    while read.len() < 12 {
        read.extend(second.claim_orphans(12 - read.len()).await.unwrap());
        tokio::time::sleep(second.heartbeat_interval() / 2).await;
    }
    assert_eq!(one(&second, hold(&own)).await, Applied::Created);
    second.apply(read[..5].iter().map(|orphan| done(&orphan.record)).collect()).await.unwrap();
    drop(second);

    // So does the next one, by its own will, and the one after that without a word of what it has read.
    let third = with_lease(&server, SHORT).await;
    let of_third = take_over_so_many(&third, 26).await;
    let mut expected = generations(records.iter().chain([&own]));
    for orphan in &read[..5] {
        expected.remove(&orphan.record.generation);
    }
    assert_eq!(of(&of_third), expected);
    third.apply(of_third[..6].iter().map(|orphan| done(&orphan.record)).collect()).await.unwrap();
    for orphan in &of_third[..6] {
        expected.remove(&orphan.record.generation);
    }
    third.release_lease().await.unwrap();
    let fourth = with_lease(&server, SHORT).await;
    assert_eq!(of(&take_over_so_many(&fourth, 20).await), expected);
    drop(fourth);

    let last = with_lease(&server, SHORT).await;
    let orphans = take_over_so_many(&last, 20).await;
    assert_eq!((of(&orphans), orphans.len()), (expected, 20));
    for orphan in &orphans {
        let reason = if records[20..].contains(&orphan.record) { EndReason::Deleted } else { EndReason::Lost };
        assert_eq!((orphan.end.reason, orphan.attempts), (reason, 0));
        let before = of_third.iter().find(|other| other.record == orphan.record).unwrap();
        assert_eq!(before.end, orphan.end, "the end is the same for each that recovers it");
    }
    last.apply(orphans.iter().map(|orphan| done(&orphan.record)).collect()).await.unwrap();
    assert!(claim_orphans(&last).await.is_empty());
    last.release_lease().await.unwrap();
    let mut keys = server.keys();
    // On a machine that stood still for a moment.
    keys.retain(|key| !key.ends_with(":grace_until"));
    assert_eq!(keys, ["{tower-session-end}:fenced", "{tower-session-end}:incarnation"]);
}

#[tokio::test]
async fn g16_of_two_survivors_one_gets_the_sessions_of_two_dead_holders() {
    let server = RedisServer::start();
    let (a, b) = (holder(&server).await, holder(&server).await);
    for round in 0..20 {
        let (first, second) = (holder(&server).await, holder(&server).await);
        let records = records(50);
        first.apply(records.iter().map(hold).collect()).await.unwrap();
        second.apply(records[..40].iter().map(hold).collect()).await.unwrap();
        // Each survivor adopts one of them and has read nothing yet; or one of them adopts both.
        first.release_lease().await.unwrap();
        if round % 2 == 0 {
            assert_eq!(a.claim_orphans(0).await.unwrap(), []);
        }
        second.release_lease().await.unwrap();
        assert_eq!(b.claim_orphans(0).await.unwrap(), []);
        let (of_a, of_b) = match round % 3 {
            0 => tokio::join!(claim_orphans(&a), claim_orphans(&b)),
            1 => (claim_orphans(&a).await, claim_orphans(&b).await),
            _ => {
                let of_b = claim_orphans(&b).await;
                (claim_orphans(&a).await, of_b)
            }
        };
        assert_eq!(of_a.len() + of_b.len(), 50, "round {round}");
        assert_eq!(&of(&of_a) | &of(&of_b), generations(&records), "round {round}");
        a.apply(of_a.iter().map(|orphan| done(&orphan.record)).collect()).await.unwrap();
        b.apply(of_b.iter().map(|orphan| done(&orphan.record)).collect()).await.unwrap();
        assert!(claim_orphans(&a).await.is_empty() && claim_orphans(&b).await.is_empty());
    }
    a.release_lease().await.unwrap();
    b.release_lease().await.unwrap();
    assert_eq!(server.keys(), ["{tower-session-end}:incarnation"]);
}

#[tokio::test]
async fn g16_an_id_whose_holders_are_all_dead_starts_anew_and_its_generation_is_lost() {
    let server = RedisServer::start();
    let (dead, adopter, other) = (holder(&server).await, holder(&server).await, holder(&server).await);
    let (lost, early) = (record("a"), record("b"));
    dead.apply(vec![hold(&lost), hold(&early)]).await.unwrap();
    dead.release_lease().await.unwrap();
    // Not adopted yet: the session goes on.
    assert_eq!(one(&other, hold(&record("b"))).await, Applied::Joined(early.clone()));
    assert_eq!(adopter.claim_orphans(0).await.unwrap(), []);
    let next = record("a");
    assert_eq!(one(&other, hold(&next)).await, Applied::Created);
    // Nothing can be done with the lost one before its adopter has got it as an orphan.
    for holder in [&adopter, &other] {
        for change in [hold(&lost), release(&lost, 1), end(&lost)] {
            assert_eq!(one(holder, change).await, Applied::Gone);
        }
    }
    assert_eq!(one(&other, done(&lost)).await, Applied::Ok);
    let orphans = claim_orphans(&adopter).await;
    assert_eq!(orphans.len(), 1);
    assert_eq!((&orphans[0].record, orphans[0].end.reason), (&lost, EndReason::Lost));
    // From then on the adopter has claimed it, and no other holder has.
    assert_eq!(one(&adopter, end(&lost)).await, YOURS);
    assert_eq!(one(&adopter, hold(&lost)).await, Applied::Created);
    assert_eq!(one(&other, end(&lost)).await, Applied::Gone);
    assert_eq!(one(&other, done(&lost)).await, Applied::Ok);
    assert_eq!(one(&adopter, hold(&record("a"))).await, Applied::Joined(next.clone()));
    assert_eq!(one(&adopter, done(&lost)).await, Applied::Ok);
    assert_eq!(one(&adopter, end(&lost)).await, Applied::Gone);
    assert_eq!(one(&adopter, release(&next, 1)).await, Applied::HeldElsewhere);
    assert_eq!(one(&other, release(&next, 2)).await, Applied::Owned { requests: 3 });
    assert_eq!(one(&other, release(&early, 0)).await, YOURS);
    other.apply(vec![done(&next), done(&early)]).await.unwrap();
    assert!(claim_orphans(&adopter).await.is_empty());
    adopter.release_lease().await.unwrap();
    other.release_lease().await.unwrap();
    assert_eq!(server.keys(), ["{tower-session-end}:incarnation"]);
}

#[tokio::test]
async fn g16_the_last_living_holder_ends_a_session_that_a_dead_one_held_too() {
    let server = RedisServer::start();
    let (dead, adopter, living) = (holder(&server).await, holder(&server).await, holder(&server).await);
    let records = records(4);
    dead.apply(records.iter().map(hold).collect()).await.unwrap();
    living.apply(records.iter().map(hold).collect()).await.unwrap();
    dead.release_lease().await.unwrap();
    // As long as it is not adopted, it counts.
    assert_eq!(one(&living, release(&records[0], 1)).await, Applied::HeldElsewhere);
    assert_eq!(adopter.claim_orphans(0).await.unwrap(), []);
    // Adopted, it holds nothing, read or not.
    assert_eq!(one(&living, release(&records[1], 1)).await, Applied::Owned { requests: 1 });
    assert_eq!(one(&living, keep(&records[2])).await, Applied::Ok);
    let orphans = claim_orphans(&adopter).await;
    assert_eq!(orphans.len(), 1);
    assert_eq!((&orphans[0].record, orphans[0].end.requests), (&records[0], 1));
    assert_eq!(one(&living, release(&records[3], 1)).await, Applied::Owned { requests: 1 });
    living.apply(vec![done(&records[1]), done(&records[3])]).await.unwrap();
    adopter.apply(vec![done(&records[0])]).await.unwrap();
    assert!(claim_orphans(&adopter).await.is_empty());
    adopter.release_lease().await.unwrap();
    living.release_lease().await.unwrap();
    assert_eq!(server.keys(), ["{tower-session-end}:incarnation"]);
}
