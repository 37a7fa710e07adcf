//! Ends on one holder, of which the others learn.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use tower_session_end::{
    EndReason,
    registry::{Applied, Change, EndRecord, Record, Registry, SqliteRegistry},
};

use super::support::{Dir, acknowledge, count, delivered, die, end, forget, holds, ids, record, records, release};

fn deleted(record: &Record) -> Change {
    end(record, EndRecord::new(EndReason::Deleted, None, SystemTime::now(), 1))
}

async fn shared(one: &SqliteRegistry, two: &SqliteRegistry, records: &[Record]) {
    for some in records.chunks(1000) {
        for registry in [one, two] {
            assert_eq!(registry.apply(holds(some)).await.unwrap(), vec![Applied::Created; some.len()]);
        }
    }
}

#[tokio::test]
async fn g16_the_others_learn_of_1_500_ends_within_two_heartbeats() {
    let dir = Dir::new();
    let (one, two) = (dir.open(), dir.open());
    let all = records("s", 1500);
    shared(&one, &two, &all).await;
    for some in all.chunks(1000) {
        one.apply(some.iter().map(deleted).collect()).await.unwrap();
    }
    assert_eq!(one.heartbeat().await.unwrap().notices, [], "it knows");
    let first = two.heartbeat().await.unwrap();
    assert_eq!((first.notices.len(), first.has_more), (1000, true));
    // The answer may have been lost: nothing is removed before it is acknowledged.
    let again = two.heartbeat().await.unwrap();
    let generations = |notices: &[tower_session_end::registry::Notice]| {
        notices.iter().map(|notice| notice.generation).collect::<BTreeSet<_>>()
    };
    assert_eq!(generations(&again.notices), generations(&first.notices));
    let read = first.notices.iter().map(|notice| {
        assert!(notice.age < Duration::from_secs(300), "{notice:?}");
        Change::Acknowledge { id: notice.id.clone(), generation: notice.generation }
    });
    two.apply(read.collect()).await.unwrap();
    let second = two.heartbeat().await.unwrap();
    assert_eq!((second.notices.len(), second.has_more), (500, false));
    let mut found = generations(&first.notices);
    found.extend(generations(&second.notices));
    assert_eq!(found, all.iter().map(|record| record.generation).collect());
    two.apply(all[..1000].iter().map(acknowledge).collect()).await.unwrap();
    two.apply(all[1000..].iter().map(acknowledge).collect()).await.unwrap();
    assert_eq!(two.heartbeat().await.unwrap().notices, []);
    assert_eq!(count(&dir, "SELECT count(*) FROM notices"), 0);
}

#[tokio::test]
async fn g16_a_repeated_start_of_a_generation_that_ended_elsewhere_is_gone() {
    let dir = Dir::new();
    let (one, two) = (dir.open(), dir.open());
    let all = records("s", 2);
    shared(&one, &two, &all).await;
    one.apply(vec![deleted(&all[0]), forget(&all[1])]).await.unwrap();
    let gone = vec![Applied::Gone; 2];
    assert_eq!(two.apply(holds(&all)).await.unwrap(), gone);
    one.apply(vec![delivered(&all[0])]).await.unwrap();
    assert_eq!(count(&dir, "SELECT count(*) FROM sessions"), 0);
    assert_eq!(two.apply(holds(&all)).await.unwrap(), gone, "there is no record, but a notice");
    assert_eq!(two.apply(all.iter().map(|record| release(record, 1)).collect()).await.unwrap(), gone);
    assert_eq!(two.apply(all.iter().map(deleted).collect()).await.unwrap(), gone);
    assert_eq!(two.apply(all.iter().cloned().map(Change::Update).collect()).await.unwrap(), gone);
    // The one that ended it repeats its calls.
    one.apply(vec![forget(&all[1])]).await.unwrap();
    assert_eq!(two.heartbeat().await.unwrap().notices.len(), 2);
    // Another generation of the id is not concerned.
    assert_eq!(two.apply(holds(&[record("s0")])).await.unwrap(), [Applied::Created]);
}

#[tokio::test]
async fn g16_only_living_holders_that_have_not_released_a_session_get_a_notice() {
    let dir = Dir::new();
    let (one, two, three) = (dir.open(), dir.open(), dir.open());
    three.apply(holds(&[record("alone")])).await.unwrap();
    let all = records("s", 2);
    shared(&one, &two, &all).await;
    three.apply(holds(&all)).await.unwrap();
    assert_eq!(two.apply(vec![release(&all[0], 1)]).await.unwrap(), [Applied::HeldElsewhere]);
    die(&dir, three);
    // It is adopted; its holds on the others are not read yet.
    assert_eq!(ids(&one.claim_orphans(1).await.unwrap()), ["alone"]);
    assert_eq!(count(&dir, "SELECT count(*) FROM holds"), 7);
    one.apply(all.iter().map(deleted).collect()).await.unwrap();
    let notices = two.heartbeat().await.unwrap().notices;
    assert_eq!(notices.iter().map(|notice| notice.generation).collect::<Vec<_>>(), [all[1].generation]);
    assert_eq!(count(&dir, "SELECT count(*) FROM notices"), 1);
    // Those of a holder that is adopted are removed with it.
    die(&dir, two);
    assert_eq!(one.claim_orphans(10).await.unwrap(), []);
    one.heartbeat().await.unwrap();
    assert_eq!(count(&dir, "SELECT count(*) FROM notices"), 0);
    assert_eq!(count(&dir, "SELECT count(*) FROM holders"), 2, "one still has an orphan");
}
