//! A transaction hook beside the other hooks, in outages, drains and recoveries. It increments.

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tower_session_end::{BoxError, EndReason, GenerationId};

use super::support::{birth, request};
use crate::support::{
    recorder::assert_sum,
    replica::Replica,
    store::{Fault, Store},
};

/// Each generation that is in the ledger has so many starts and ends.
#[track_caller]
fn assert_ledger(store: &Store, generations: usize, starts: u32, ends: u32) {
    let ledger = store.ledger();
    let all: Vec<GenerationId> = ledger.starts.keys().chain(ledger.ends.keys()).copied().collect();
    let unique: std::collections::BTreeSet<_> = all.into_iter().collect();
    assert_eq!(unique.len(), generations, "{ledger:?}");
    for generation in unique {
        let counts = [&ledger.starts, &ledger.ends].map(|counts| counts.get(&generation).copied().unwrap_or(0));
        assert_eq!(counts, [starts, ends], "{ledger:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn g19_a_session_is_committed_once_and_nothing_is_left() {
    let store = Store::with_ledger();
    let replica = Replica::new(&store);
    for i in 0..100 {
        replica.note(&format!("s{i}")).await;
    }
    assert_ledger(&store, 100, 1, 0);
    for i in 0..50 {
        replica.sessions.end(format!("s{i}"), EndReason::Deleted);
    }
    let report = replica.sessions.drain(EndReason::Shutdown).await;
    assert!(report.is_clean(), "{report}");
    assert_ledger(&store, 100, 1, 1);
    assert!(store.active().is_empty() && store.owed().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g19_without_other_hooks_a_transaction_hook_is_called_all_the_same() {
    let store = Store::with_ledger();
    let sessions = tower_session_end::ActiveSessions::builder().registry(store.holder()).build().unwrap();
    sessions.note("a").recorded().await;
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.failed), (1, 0), "{report}");
    assert_ledger(&store, 1, 1, 1);
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g19_a_session_that_starts_and_ends_in_an_outage_is_committed_afterwards() {
    for hand_over in [true, false] {
        let store = Store::with_ledger();
        let replica = Replica::with(&store, |builder| builder.hand_over_on_outage(hand_over));
        replica.note("before").await;
        replica.holder.set(Fault::Down);
        birth(&replica.sessions, "noticed").await;
        for id in ["made", "stays"] {
            birth(&replica.sessions, id).await;
        }
        request(&replica.sessions, "carried").await;
        for id in ["made", "before", "noticed", "carried"] {
            replica.sessions.end(id, EndReason::Deleted);
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        replica.holder.set(Fault::None);
        let driver = replica.drive();
        tokio::time::sleep(Duration::from_secs(10)).await;
        driver.abort();
        for id in ["made", "before", "noticed"] {
            assert_eq!(replica.recorder.order(id), "+-", "{id}");
        }
        assert_eq!(store.active(), ["stays"]);
        assert!(replica.sessions.drain(EndReason::Shutdown).await.is_clean());
        assert_ledger(&store, 5, 1, 1);
        assert!(store.events().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn g19_answers_that_are_lost_are_no_second_call() {
    let store = Store::with_ledger();
    let replica = Replica::new(&store);
    let driver = replica.drive();
    for i in 0..20 {
        replica.holder.set(if i % 2 == 0 { Fault::Deaf } else { Fault::None });
        replica.sessions.note(format!("s{i}").as_str());
        tokio::time::sleep(Duration::from_millis(300 * (i % 5))).await;
        replica.sessions.end(format!("s{i}"), EndReason::Deleted);
        tokio::time::sleep(Duration::from_millis(700 * (i % 3))).await;
    }
    replica.holder.set(Fault::None);
    tokio::time::sleep(Duration::from_secs(20)).await;
    driver.abort();
    assert_ledger(&store, 20, 1, 1);
    assert!(store.events().is_empty());
}

/// The other hooks have run, and the registry is down at the commit.
#[tokio::test(start_paused = true)]
async fn g19_a_commit_waits_for_the_registry_and_a_drain_leaves_it_to_the_next_process() {
    for drains in [false, true] {
        let store = Store::with_ledger();
        let called = Arc::new(AtomicU64::new(0));
        let holder = store.holder();
        let (other, down) = (Arc::clone(&called), holder.clone());
        let builder = tower_session_end::ActiveSessions::builder().registry(holder.clone());
        let sessions = builder
            .on_session_end(move |_| {
                other.fetch_add(1, Ordering::SeqCst);
                down.set(Fault::Down);
                ready(Ok::<_, BoxError>(()))
            })
            .build()
            .unwrap();
        sessions.note("a").recorded().await;
        sessions.end("a", EndReason::Deleted);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(called.load(Ordering::SeqCst), 1);
        assert_ledger(&store, 1, 1, 0);
        if drains {
            let report = sessions.drain(EndReason::Shutdown).await;
            assert_eq!((report.ended, report.unfinished.len()), (0, 1), "{report}");
            assert_sum(&report);
            holder.kill();
            let next = Replica::new(&store);
            let recovered = next.sessions.recover().await;
            assert_eq!((recovered.found, recovered.ended), (1, 1), "{recovered}");
            assert_eq!(next.ends(), [("a".to_owned(), EndReason::Deleted)]);
        } else {
            holder.set(Fault::None);
            let driver = tokio::spawn(sessions.shutdown_on(std::future::pending::<()>()));
            tokio::time::sleep(Duration::from_secs(10)).await;
            driver.abort();
            assert_eq!(called.load(Ordering::SeqCst), 1);
        }
        assert_ledger(&store, 1, 1, 1);
        assert!(store.events().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn g19_a_process_that_has_lost_its_lease_commits_nothing() {
    let store = Store::with_ledger();
    let (one, two) = (Replica::new(&store), Replica::new(&store));
    for id in ["a", "b"] {
        one.note(id).await;
    }
    one.holder.kill();
    let driver = two.drive();
    tokio::time::sleep(Duration::from_secs(5)).await;
    one.sessions.end("a", EndReason::Deleted);
    tokio::time::sleep(Duration::from_secs(5)).await;
    driver.abort();
    assert_eq!(two.ends().len(), 2);
    // "b" goes on at the first one as a new generation, and so does "a", which ends.
    let _ = one.sessions.drain(EndReason::Shutdown).await;
    let ledger = store.ledger();
    assert!(ledger.ends.values().all(|ends| *ends == 1), "{ledger:?}");
    assert_eq!(ledger.ends.len(), ledger.starts.len(), "{ledger:?}");
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g19_a_commit_that_fails_is_tried_after_1_2_4_and_8_seconds_and_is_then_a_dead_letter() {
    let store = Store::with_ledger();
    let replica = Replica::new(&store);
    store.refuse(true);
    replica.note("bad").await;
    replica.note("good").await;
    for id in ["bad", "good"] {
        replica.sessions.end(id, EndReason::Deleted);
    }
    tokio::time::sleep(Duration::from_millis(14_900)).await;
    assert_eq!(store.owed(), [EndReason::Deleted]);
    assert!(store.dead_letters().is_empty());
    tokio::time::sleep(Duration::from_millis(200)).await;
    let letters = store.dead_letters();
    assert_eq!((letters.len(), letters[0].error.as_str(), letters[0].attempts), (1, "refused", 5));
    assert_eq!(replica.recorder.order("bad"), "+-", "the other hook had succeeded");
    assert_eq!(store.ledger().ends.len(), 1);

    store.refuse(false);
    assert!(store.redeliver(letters[0].record.generation));
    let driver = replica.drive();
    tokio::time::sleep(Duration::from_secs(5)).await;
    driver.abort();
    assert_ledger(&store, 2, 1, 1);
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g19_with_redelivery_off_a_commit_that_fails_is_a_dead_letter_at_once() {
    let store = Store::with_ledger();
    let replica = Replica::with(&store, |builder| builder.redeliver_failed(false));
    store.refuse(true);
    replica.note("bad").await;
    replica.sessions.end("bad", EndReason::Deleted);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(store.dead_letters().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn g19_a_failed_hook_holds_up_no_commit_and_its_dead_letter_is_committed_once() {
    let store = Store::with_ledger();
    let replica =
        Replica::with(&store, |builder| builder.on_session_end(|_| ready(Err::<(), BoxError>("never".into()))));
    replica.note("a").await;
    replica.sessions.end("a", EndReason::Deleted);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_ledger(&store, 1, 1, 1);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(store.dead_letters()[0].attempts, 5);
    assert!(store.redeliver(store.dead_letters()[0].record.generation));
    let driver = replica.drive();
    tokio::time::sleep(Duration::from_secs(30)).await;
    driver.abort();
    assert_eq!(store.dead_letters().len(), 1, "it fails again");
    assert_ledger(&store, 1, 1, 1);
}

#[tokio::test(start_paused = true)]
async fn g19_a_batch_hook_and_a_transaction_hook_are_called_once_each() {
    let store = Store::with_ledger();
    let ends = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&ends);
    let replica = Replica::with(&store, |builder| {
        builder.on_session_end_batch(10, move |batch: Vec<tower_session_end::SessionEnd>| {
            counted.fetch_add(batch.len() as u64, Ordering::SeqCst);
            ready(Ok::<_, BoxError>(()))
        })
    });
    for i in 0..100 {
        replica.note(&format!("s{i}")).await;
    }
    assert!(replica.sessions.drain(EndReason::Shutdown).await.is_clean());
    assert_eq!(ends.load(Ordering::SeqCst), 100);
    assert_ledger(&store, 100, 1, 1);
}

#[tokio::test(start_paused = true)]
async fn g19_what_was_counted_is_committed_before_more_is_counted() {
    // If the process is killed, each end that was counted and not committed is nearer to being a dead letter.
    let store = Store::with_ledger();
    Replica::dead(&store, (1..3000).map(|n| format!("s{n}"))).await;
    let replica = Replica::with(&store, |builder| builder.max_concurrent_hooks(2000));
    replica.holder.set(Fault::Slow);
    let driver = replica.drive();
    for _ in 0..120 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let counted = store.attempts().into_iter().filter(|attempts| *attempts > 0).count();
        // One call claims 256 ends, and another one commits 64.
        assert!(counted <= 256, "{counted}");
    }
    driver.abort();
    assert!(store.attempts().len() < 2500);
}
