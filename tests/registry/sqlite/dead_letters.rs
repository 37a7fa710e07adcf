//! Dead letters, and their delivery on request.

use std::time::SystemTime;

use tower_session_end::{
    EndReason,
    registry::{Change, EndRecord, Record, Registry, SqliteRegistry},
};

use super::support::{Dir, count, delivered, die, end, holds, ids, record, records, take_over_all};

fn dead(record: &Record, error: &str) -> Change {
    Change::DeadLetter { generation: record.generation, error: error.to_owned() }
}

fn attempted(record: &Record, attempts: u32) -> Change {
    Change::Attempted { generation: record.generation, attempts }
}

async fn ended(registry: &SqliteRegistry, count: usize) -> Vec<Record> {
    let all = records("s", count);
    registry.apply(holds(&all)).await.unwrap();
    let idle = |record| end(record, EndRecord::new(EndReason::Idle, None, SystemTime::now(), 3));
    registry.apply(all.iter().map(idle).collect()).await.unwrap();
    all
}

#[tokio::test]
async fn g15_a_dead_letter_is_kept_across_restarts_and_is_delivered_on_request() {
    let dir = Dir::new();
    let first = dir.open();
    let all = ended(&first, 3).await;
    first.apply(all.iter().map(|record| attempted(record, 5)).collect()).await.unwrap();
    first.apply(vec![dead(&all[0], "refused"), dead(&all[1], "too late")]).await.unwrap();
    assert_eq!(first.heartbeat().await.unwrap().dead_letters, 2);
    die(&dir, first);

    let registry = dir.open();
    assert_eq!(ids(&take_over_all(&registry).await), ["s2"], "dead letters are not claimed");
    let letters = registry.dead_letters(10).await.unwrap();
    let texts: Vec<_> = letters.iter().map(|letter| letter.error.as_str()).collect();
    assert_eq!((&letters[0].record, texts), (&all[0], vec!["refused", "too late"]));
    assert_eq!((letters[0].attempts, letters[0].end.reason, letters[0].end.requests), (5, EndReason::Idle, 3));
    assert_eq!(registry.dead_letters(1).await.unwrap(), letters[..1]);
    assert_eq!(count(&dir, "SELECT count(*) FROM ending_sessions"), 1);
    let view = "SELECT count(*) FROM dead_letters WHERE error = 'refused' AND attempts = 5 AND reason = 'idle'";
    assert_eq!(count(&dir, view), 1);

    // Whoever asks, any holder delivers it, with new attempts; once.
    let clone = registry.clone();
    assert!(clone.redeliver(all[0].generation).await.unwrap());
    assert!(!clone.redeliver(all[0].generation).await.unwrap(), "it is none any more");
    assert!(!clone.redeliver(all[2].generation).await.unwrap(), "it has never been one");
    let other = dir.open();
    let orphans = take_over_all(&other).await;
    assert_eq!(ids(&orphans), ["s0"]);
    assert_eq!((orphans[0].attempts, orphans[0].end.reason), (0, EndReason::Idle));
    assert_eq!(take_over_all(&registry).await, []);
    registry.apply(vec![delivered(&all[0])]).await.unwrap();
    assert_eq!(count(&dir, "SELECT count(*) FROM ending_sessions WHERE id = 's0'"), 1, "it is the other one's");
    die(&dir, other);
    assert_eq!(ids(&take_over_all(&registry).await), ["s0"]);
    registry.apply(vec![delivered(&all[0])]).await.unwrap();
    assert_eq!(registry.redeliver_all().await.unwrap(), 1);
    assert_eq!(ids(&take_over_all(&registry).await), ["s1"]);
    registry.apply(vec![delivered(&all[1]), delivered(&all[2])]).await.unwrap();
    assert_eq!(registry.heartbeat().await.unwrap().dead_letters, 0);
    assert_eq!(count(&dir, "SELECT count(*) FROM sessions"), 0);
}

#[tokio::test]
async fn g15_a_lost_session_can_become_a_dead_letter_and_only_by_its_adopter() {
    let dir = Dir::new();
    let (adopter, other, holder) = (dir.open(), dir.open(), dir.open());
    let lost = record("lost");
    holder.apply(holds(std::slice::from_ref(&lost))).await.unwrap();
    adopter.apply(vec![dead(&lost, "it is active")]).await.unwrap();
    die(&dir, holder);
    assert_eq!(take_over_all(&adopter).await.len(), 1);
    other.apply(vec![dead(&lost, "it is not mine"), attempted(&record("other"), 3)]).await.unwrap();
    assert_eq!(adopter.heartbeat().await.unwrap().dead_letters, 0);
    for _ in 0..2 {
        adopter.apply(vec![dead(&lost, "refused")]).await.unwrap();
    }
    let letters = other.dead_letters(10).await.unwrap();
    assert_eq!((letters.len(), letters[0].end.reason, letters[0].error.as_str()), (1, EndReason::Lost, "refused"));
    adopter.heartbeat().await.unwrap();
    assert_eq!(count(&dir, "SELECT count(*) FROM holders"), 2, "nothing refers to the dead holder");
    die(&dir, adopter);
    assert_eq!(take_over_all(&other).await, []);
    assert!(other.redeliver(lost.generation).await.unwrap());
    assert_eq!(ids(&take_over_all(&other).await), ["lost"]);
}

#[tokio::test]
async fn all_of_many_dead_letters_are_listed_and_delivered_again() {
    let dir = Dir::new();
    let registry = dir.open();
    let mut all = Vec::new();
    for _ in 0..2 {
        all.extend(ended(&registry, 600).await);
    }
    for some in all.chunks(1000) {
        registry.apply(some.iter().map(|record| dead(record, "down")).collect()).await.unwrap();
    }
    assert_eq!(registry.heartbeat().await.unwrap().dead_letters, 1200);
    assert_eq!(registry.dead_letters(0).await.unwrap(), []);
    assert_eq!(registry.dead_letters(700).await.unwrap().len(), 700);
    let letters = registry.dead_letters(usize::MAX).await.unwrap();
    assert_eq!(letters.iter().map(|letter| &letter.record).collect::<Vec<_>>(), all.iter().collect::<Vec<_>>());
    assert_eq!(registry.redeliver_all().await.unwrap(), 1200);
    assert_eq!(registry.dead_letters(10).await.unwrap(), []);
    assert_eq!(take_over_all(&registry).await.len(), 1200);
}
