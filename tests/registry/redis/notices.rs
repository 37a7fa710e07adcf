//! Holders learn of the ends of others from their heartbeats.

use std::time::Duration;

use tower_session_end::registry::{Applied, Change, RedisRegistry, Registry};

use super::support::{
    LONG, RedisServer, YOURS, claim_orphans, done, end, forget, hold, hold_beside, holder, one, record, records,
    release,
};

#[tokio::test]
async fn g16_fifteen_hundred_ends_reach_the_other_holders_within_two_heartbeats() {
    let server = RedisServer::start();
    let (a, b, c) = (holder(&server).await, holder(&server).await, holder(&server).await);
    let records = records(1500);
    for holder in [&a, &b, &c] {
        for part in records.chunks(1000) {
            holder.apply(part.iter().map(hold).collect()).await.unwrap();
        }
    }
    for part in records.chunks(1000) {
        a.apply(part.iter().map(end).collect()).await.unwrap();
        a.apply(part.iter().map(done).collect()).await.unwrap();
    }
    for holder in [&b, &c] {
        let mut learned = Vec::new();
        for (count, has_more) in [(1000, true), (500, false)] {
            let heartbeat = holder.heartbeat().await.unwrap();
            assert_eq!((heartbeat.notices.len(), heartbeat.has_more), (count, has_more));
            // Again, until it is acknowledged.
            assert_eq!(holder.heartbeat().await.unwrap().notices.len(), count);
            assert!(heartbeat.notices.iter().all(|notice| notice.age < LONG));
            let changes = heartbeat.notices.iter().map(|notice| {
                learned.push((notice.id.clone(), notice.generation));
                Change::Acknowledge { id: notice.id.clone(), generation: notice.generation }
            });
            let changes: Vec<_> = changes.collect();
            for _ in 0..2 {
                let answers = holder.apply(changes.clone()).await.unwrap();
                assert!(answers.iter().all(|answer| *answer == Applied::Ok));
            }
        }
        learned.sort();
        let mut expected: Vec<_> =
            records.iter().map(|record| (record.session.id.clone(), record.generation)).collect();
        expected.sort();
        assert_eq!(learned, expected);
        assert!(holder.heartbeat().await.unwrap().notices.is_empty());
    }
    assert!(a.heartbeat().await.unwrap().notices.is_empty());
    for holder in [a, b, c] {
        holder.release_lease().await.unwrap();
    }
    assert_eq!(server.keys(), ["{tower-session-end}:incarnation"]);
}

#[tokio::test]
async fn g16_a_notice_answers_whatever_is_asked_of_its_generation() {
    let server = RedisServer::start();
    let (a, b) = (holder(&server).await, holder(&server).await);
    let (ended, forgotten) = (record("ended"), record("forgotten"));
    a.apply(vec![hold(&ended), hold(&forgotten)]).await.unwrap();
    b.apply(vec![hold(&ended), hold(&forgotten)]).await.unwrap();
    assert_eq!(a.apply(vec![end(&ended), forget(&forgotten)]).await.unwrap(), [YOURS, Applied::Ok]);
    one(&a, done(&ended)).await;
    for record in [&ended, &forgotten] {
        let all = [hold(record), hold_beside(record), Change::Update(record.clone()), release(record, 1), end(record)];
        for change in all {
            assert_eq!(one(&b, change.clone()).await, Applied::Gone, "{change:?}");
        }
    }
    let mut notices = b.heartbeat().await.unwrap().notices;
    notices.sort_by_key(|notice| notice.generation);
    let generations: Vec<_> = notices.iter().map(|notice| notice.generation).collect();
    assert_eq!(generations, [ended.generation, forgotten.generation]);
    // The next generation is another one.
    assert_eq!(one(&b, hold(&record("ended"))).await, Applied::Created);
}

#[tokio::test]
async fn g16_only_living_holders_that_have_not_released_it_get_a_notice() {
    let server = RedisServer::start();
    let (a, released, left, adopted) =
        (holder(&server).await, holder(&server).await, holder(&server).await, holder(&server).await);
    let shared = record("shared");
    for holder in [&a, &released, &left, &adopted] {
        assert!(matches!(one(holder, hold(&shared)).await, Applied::Created));
    }
    assert_eq!(one(&released, release(&shared, 1)).await, Applied::HeldElsewhere);
    assert_eq!(one(&released, release(&shared, 1)).await, Applied::HeldElsewhere);
    adopted.release_lease().await.unwrap();
    assert_eq!(a.claim_orphans(0).await.unwrap(), []);
    left.release_lease().await.unwrap();
    assert_eq!(one(&a, end(&shared)).await, Applied::Owned { requests: 1 });
    assert!(released.heartbeat().await.unwrap().notices.is_empty());
    assert!(!server.keys().iter().any(|key| key.contains(":notices:")));
    one(&a, done(&shared)).await;
    assert!(claim_orphans(&a).await.is_empty());
}

#[tokio::test]
async fn g16_notices_of_a_holder_end_with_it() {
    let server = RedisServer::start();
    let (a, b) = (holder(&server).await, holder(&server).await);
    let shared = record("shared");
    a.apply(vec![hold(&shared)]).await.unwrap();
    b.apply(vec![hold(&shared)]).await.unwrap();
    assert_eq!(one(&a, end(&shared)).await, YOURS);
    one(&a, done(&shared)).await;
    b.release_lease().await.unwrap();
    a.release_lease().await.unwrap();
    assert_eq!(server.keys(), ["{tower-session-end}:incarnation"]);
}

#[tokio::test]
async fn g16_a_session_recorded_beside_another_is_joined_once_the_older_one_has_ended() {
    let server = RedisServer::start();
    let (a, b) = (holder(&server).await, holder(&server).await);
    let (older, newer) = (record("a"), later("a"));
    assert_eq!(one(&a, hold(&older)).await, Applied::Created);
    assert_eq!(one(&b, hold_beside(&newer)).await, Applied::Created);
    let c: RedisRegistry = holder(&server).await;
    assert_eq!(one(&c, hold(&later("a"))).await, Applied::Joined(older.clone()));
    assert_eq!(one(&a, end(&older)).await, YOURS);
    assert_eq!(one(&c, hold(&later("a"))).await, Applied::Joined(newer.clone()));
    assert_eq!(one(&b, release(&newer, 0)).await, Applied::HeldElsewhere);
    assert_eq!(one(&c, release(&newer, 0)).await, YOURS);
    assert_eq!(one(&c, hold(&later("a"))).await, Applied::Created);
}

fn later(id: &str) -> tower_session_end::registry::Record {
    let mut record = record(id);
    record.started_at += Duration::from_secs(1);
    record
}
