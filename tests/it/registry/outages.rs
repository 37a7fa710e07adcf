//! A store that is down, slow, or has lost what it was told.

use std::{future::pending, sync::atomic::Ordering, time::Duration};

use tokio::time::Instant;
use tower_session_end::{EndReason, Session, SessionEnd, registry::Durability};

use super::support::{birth, ended, request};
use crate::support::recorder::assert_sum;
use crate::support::replica::Replica;
use crate::support::store::{Fault, Store};
use crate::support::{answer, ask, exchange};

#[tokio::test(start_paused = true)]
async fn a_store_that_was_emptied_is_filled_again_before_it_is_believed() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("a").await;
    replica.note("b").await;
    store.flush();
    let report = replica.sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.ended_elsewhere), (2, 0), "{report}");
    assert_eq!(replica.recorder.order("a"), "+-");
    assert!(store.active().is_empty() && store.owed().is_empty());

    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("a").await;
    store.flush();
    let driver = tokio::spawn(replica.sessions.shutdown_on(pending::<()>()));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(store.active(), ["a"]);
    assert_eq!(replica.recorder.order("a"), "+");
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn g17_a_birth_waits_250_ms_at_most_and_then_not_at_all() {
    let store = Store::default();
    let replica = Replica::new(&store);
    assert_eq!(birth(&replica.sessions, "a").await, Duration::ZERO);
    assert_eq!(store.active(), ["a"]);
    replica.holder.set(Fault::Hangs);
    assert_eq!(birth(&replica.sessions, "b").await, Duration::from_millis(250));
    assert!(replica.sessions.is_degraded());
    assert_eq!(birth(&replica.sessions, "c").await, Duration::ZERO);
    assert_eq!(replica.sessions.degradations(), 1);

    // Back again: what was born meanwhile is recorded.
    replica.holder.set(Fault::None);
    let driver = tokio::spawn(replica.sessions.shutdown_on(pending::<()>()));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!replica.sessions.is_degraded());
    assert_eq!(store.active(), ["a", "b", "c"]);
    for id in ["a", "b", "c"] {
        assert_eq!(replica.recorder.order(id), "+");
    }
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn g17_a_relaxed_birth_does_not_wait() {
    let store = Store::default();
    let replica = Replica::with(&store, |builder| builder.durability(Durability::Relaxed));
    replica.holder.set(Fault::Hangs);
    assert_eq!(birth(&replica.sessions, "a").await, Duration::ZERO);
    assert!(replica.recorder.starts().is_empty(), "start hooks follow the record");
    replica.holder.set(Fault::None);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(replica.recorder.order("a"), "+");
}

#[tokio::test(start_paused = true)]
async fn g17_a_known_session_never_touches_the_registry() {
    let store = Store::default();
    let replica = Replica::new(&store);
    birth(&replica.sessions, "a").await;
    replica.sessions.note(Session::try_from("b").unwrap().with_key("k")).recorded().await;
    let before = replica.holder.calls.load(Ordering::SeqCst);
    for _ in 0..100 {
        birth(&replica.sessions, "a").await;
        replica.sessions.note(Session::try_from("b").unwrap().with_key("k"));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(replica.holder.calls.load(Ordering::SeqCst), before);
    replica.sessions.note(Session::try_from("b").unwrap().with_key("other"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(replica.holder.calls.load(Ordering::SeqCst), before + 1);
}

#[tokio::test(start_paused = true)]
async fn g17_a_recorded_end_is_withheld_while_the_registry_is_down_and_delivered_once_afterwards() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("a").await;
    replica.holder.set(Fault::Down);
    replica.sessions.end("a", EndReason::Reset);
    // The same id again, while it is still down: another generation, which waits too.
    assert!(!replica.note("a").await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(replica.recorder.order("a"), "+", "another replica may hold it");
    replica.holder.set(Fault::None);
    let driver = tokio::spawn(replica.sessions.shutdown_on(pending::<()>()));
    tokio::time::sleep(Duration::from_secs(10)).await;
    driver.abort();
    assert_eq!((store.active(), store.owed()), (vec!["a".to_owned()], vec![]));
    assert!(replica.sessions.drain(EndReason::Shutdown).await.is_clean());
    assert_eq!(replica.recorder.order("a"), "+-+-");
    replica.recorder.assert_no_generation_ended_twice();
    let next = Replica::new(&store);
    assert_eq!(next.sessions.recover().await.found, 0);
}

#[tokio::test(start_paused = true)]
async fn g17_without_the_registry_a_drain_hands_over_what_is_on_record_and_ends_the_rest() {
    for fault in [Fault::Down, Fault::Hangs] {
        let store = Store::default();
        let replica = Replica::new(&store);
        replica.note("recorded").await;
        replica.holder.set(Fault::Down);
        replica.note("unrecorded").await;
        replica.holder.set(fault);
        let begun = Instant::now();
        let report = replica.sessions.drain(EndReason::Shutdown).await;
        assert!(begun.elapsed() <= Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!((report.ended, report.handed_over, report.unfinished.len()), (1, 1, 0), "{fault:?}: {report}");
        assert_sum(&report);
        assert_eq!(replica.ends(), [ended("unrecorded", EndReason::Shutdown)]);
        replica.holder.kill();
        let next = Replica::new(&store);
        let _ = next.sessions.recover().await;
        assert_eq!(next.ends(), [ended("recorded", EndReason::Lost)], "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn g17_an_end_whose_record_was_written_and_whose_answer_was_lost_keeps_its_reason() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("recorded").await;
    replica.holder.set(Fault::Deaf);
    let report = replica.sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.handed_over), (0, 1), "{report}");
    replica.holder.kill();
    let next = Replica::new(&store);
    let _ = next.sessions.recover().await;
    assert_eq!(next.ends(), [ended("recorded", EndReason::Shutdown)]);
}

#[tokio::test(start_paused = true)]
async fn g17_with_hand_over_off_everything_ends_here() {
    let store = Store::default();
    let replica = Replica::with(&store, |builder| builder.hand_over_on_outage(false));
    replica.note("recorded").await;
    replica.holder.set(Fault::Down);
    let report = replica.sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.handed_over), (1, 0), "{report}");
}

#[tokio::test(start_paused = true)]
async fn g17_an_id_that_a_request_brought_waits_for_the_registry_and_joins_the_session() {
    let store = Store::default();
    let (one, two) = (Replica::new(&store), Replica::new(&store));
    request(&one.sessions, "x").await;
    two.holder.set(Fault::Down);
    request(&two.sessions, "x").await;
    assert!(two.sessions.contains("x"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(two.recorder.starts().is_empty(), "another replica holds it");
    two.holder.set(Fault::None);
    let driver = two.drive();
    tokio::time::sleep(Duration::from_secs(10)).await;
    driver.abort();
    assert_eq!(one.sessions.drain(EndReason::Restart).await.held_elsewhere, 1);
    assert_eq!(two.sessions.drain(EndReason::Shutdown).await.ended, 1);
    assert_eq!(two.recorder.ends()[0].generation, one.recorder.starts()[0].generation);
    assert_eq!((one.recorder.order("x"), two.recorder.order("x")), ("+".to_owned(), "-".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn g17_an_id_that_another_replica_has_made_in_an_outage_has_one_generation() {
    // The second replica is back before the first one has called again.
    for delay in [1, 250, 700].map(Duration::from_millis) {
        let store = Store::default();
        let (one, two) = (Replica::new(&store), Replica::new(&store));
        [&one, &two].iter().for_each(|replica| replica.holder.set(Fault::Down));
        birth(&one.sessions, "before").await;
        let drivers = [one.drive(), two.drive()];
        tokio::time::sleep(Duration::from_secs(30)).await;
        birth(&one.sessions, "x").await;
        tokio::time::sleep(delay).await;
        assert_eq!(one.recorder.order("x"), "+", "it starts without the registry");
        [&one, &two].iter().for_each(|replica| replica.holder.set(Fault::None));
        request(&two.sessions, "x").await;
        assert!(two.sessions.contains("x"));
        tokio::time::sleep(Duration::from_secs(10)).await;
        drivers.iter().for_each(tokio::task::JoinHandle::abort);
        assert_eq!(store.owners().len(), 2, "one record for each id");
        assert!(two.recorder.starts().is_empty());
        assert_eq!(one.sessions.drain(EndReason::Restart).await.held_elsewhere, 1);
        assert_eq!(two.sessions.drain(EndReason::Shutdown).await.ended, 1);
        let starts = one.recorder.starts();
        let start = starts.iter().find(|start| start.session.id == *"x").unwrap();
        assert_eq!(two.recorder.ends()[0].generation, start.generation);
    }
}

/// In an outage, the first replica makes `x`. It may write its record `delay` after the second one has got a request for it, and
/// done `change`.
async fn ends_on_another_replica(delay: Duration, change: impl AsyncFn(&Replica)) -> (Replica, Replica, Store) {
    let store = Store::default();
    let (one, two) = (Replica::new(&store), Replica::new(&store));
    [&one, &two].iter().for_each(|replica| replica.holder.set(Fault::Down));
    let drivers = [one.drive(), two.drive()];
    birth(&one.sessions, "x").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    two.holder.set(Fault::None);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!two.sessions.is_degraded());
    request(&two.sessions, "x").await;
    change(&two).await;
    tokio::time::sleep(delay).await;
    assert_eq!(one.recorder.order("x"), "+", "it has started without the registry");
    one.holder.set(Fault::None);
    tokio::time::sleep(Duration::from_secs(10)).await;
    drivers.iter().for_each(tokio::task::JoinHandle::abort);
    (one, two, store)
}

#[tokio::test(start_paused = true)]
async fn g17_an_id_that_another_replica_has_made_in_an_outage_ends_once_wherever_it_ends() {
    for delay in [0, 1, 250, 450].map(Duration::from_millis) {
        let end = async |two: &Replica| assert!(two.sessions.end("x", EndReason::Deleted));
        let (one, two, store) = ends_on_another_replica(delay, end).await;
        assert!(!one.sessions.contains("x"), "{delay:?}: it has learned of the end");
        assert_eq!((one.recorder.order("x"), two.recorder.order("x")), ("+".to_owned(), "-".to_owned()), "{delay:?}");
        assert_eq!(two.recorder.ends()[0].generation, one.recorder.starts()[0].generation);
        assert!(store.events().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn g17_an_id_that_comes_again_waits_for_the_end_that_waits_for_its_record() {
    for delay in [0, 250].map(Duration::from_millis) {
        let end_and_come_again = async |two: &Replica| {
            two.sessions.end("x", EndReason::Deleted);
            request(&two.sessions, "x").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            // It ends, too.
            two.sessions.end("x", EndReason::Reset);
            request(&two.sessions, "x").await;
        };
        let (one, two, store) = ends_on_another_replica(delay, end_and_come_again).await;
        assert_eq!(
            (one.recorder.order("x"), two.recorder.order("x")),
            ("+".to_owned(), "-+-+".to_owned()),
            "{delay:?}"
        );
        assert!(!one.sessions.contains("x") && two.sessions.contains("x"), "{delay:?}");
        let (ends, starts) = (two.recorder.ends(), two.recorder.starts());
        assert_eq!(ends[0].generation, one.recorder.starts()[0].generation, "{delay:?}");
        assert_eq!(ends[1].generation, starts[0].generation, "{delay:?}");
        assert_eq!(store.active(), ["x"]);
        assert_eq!(two.sessions.drain(EndReason::Shutdown).await.ended, 1);
        assert_eq!(two.recorder.ends()[2].generation, starts[1].generation, "{delay:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn g15_what_the_host_makes_anew_is_on_record_before_its_head() {
    let store = Store::default();
    let replica = after_an_outage(&store).await;
    request(&replica.sessions, "x").await;
    replica.sessions.end("x", EndReason::Deleted);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(replica.recorder.order("x").is_empty(), "the end waits for the record");
    birth(&replica.sessions, "x").await;
    assert_eq!(store.active(), ["made", "x"]);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(replica.recorder.order("x"), "+-+");
    assert!(!replica.sessions.is_degraded());
}

#[tokio::test(start_paused = true)]
async fn g17_a_compaction_does_not_wait_for_the_record_of_the_old_session() {
    let store = Store::default();
    let replica = after_an_outage(&store).await;
    request(&replica.sessions, "x").await;
    replica.sessions.compact("x", "y");
    tokio::time::sleep(Duration::from_millis(1)).await;
    // Another replica may use the new one at once, and end it.
    assert_eq!((replica.recorder.order("x"), replica.recorder.order("y")), ("+-".to_owned(), "+".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn g15_a_session_whose_end_waits_for_that_of_its_predecessor_is_on_record() {
    // The end of `z` comes before it is known that there is no registry, or after it.
    for pause in [0, 100].map(Duration::from_millis) {
        let store = Store::default();
        let replica = Replica::with(&store, |builder| {
            builder.drain_timeout(Duration::MAX).on_session_end(|end: SessionEnd| async move {
                if end.session.id == *"x" {
                    pending::<()>().await;
                }
            })
        });
        let driver = replica.drive();
        birth(&replica.sessions, "x").await;
        replica.holder.set(Fault::Down);
        replica.sessions.note("first");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(replica.sessions.is_degraded());
        let compacts = [("x-session-id", "z"), ("x-session-compacted-from", "x")];
        exchange(&replica.sessions.layer(), ask(&[("x-session-id", "x")]), answer(200, &compacts)).await;
        tokio::time::sleep(pause).await;
        replica.sessions.end("z", EndReason::Deleted);
        tokio::time::sleep(Duration::from_secs(3)).await;
        replica.holder.set(Fault::None);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(replica.recorder.order("z").is_empty(), "the hook of its predecessor hangs");
        replica.holder.kill();
        replica.holder.set(Fault::Hangs);
        driver.abort();
        let next = Replica::new(&store);
        assert_eq!(next.sessions.recover().await.ended, 3);
        assert_eq!((next.recorder.order("x"), next.recorder.order("z")), ("-".to_owned(), "-".to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn g17_a_process_that_starts_after_an_outage_joins_what_was_made_in_it() {
    let store = Store::default();
    let one = Replica::new(&store);
    one.holder.set(Fault::Down);
    birth(&one.sessions, "before").await;
    let driver = one.drive();
    tokio::time::sleep(Duration::from_secs(30)).await;
    birth(&one.sessions, "x").await;
    one.holder.set(Fault::None);
    let two = Replica::new(&store);
    request(&two.sessions, "x").await;
    assert!(store.active().is_empty(), "the first one has not called yet");
    tokio::time::sleep(Duration::from_secs(5)).await;
    driver.abort();
    assert_eq!((one.recorder.order("x"), two.recorder.order("x")), ("+".to_owned(), String::new()));
    assert_eq!(store.owners().len(), 2, "one record for each id");
}

#[tokio::test(start_paused = true)]
async fn g17_a_second_outage_gives_others_time_again_to_record_what_they_have_made() {
    for ends in [false, true] {
        let store = Store::default();
        let (one, two) = (Replica::new(&store), Replica::new(&store));
        one.holder.set(Fault::Down);
        let drivers = [one.drive(), two.drive()];
        birth(&one.sessions, "x").await;
        request(&two.sessions, "x").await;
        if ends {
            two.sessions.end("x", EndReason::Deleted);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        two.holder.set(Fault::Down);
        two.sessions.note("y");
        tokio::time::sleep(Duration::from_millis(100)).await;
        // The second one asks again before the first one can call.
        two.holder.set(Fault::None);
        tokio::time::sleep(Duration::from_millis(700)).await;
        one.holder.set(Fault::None);
        tokio::time::sleep(Duration::from_secs(10)).await;
        drivers.iter().for_each(tokio::task::JoinHandle::abort);
        let expected = if ends { "-" } else { "" };
        assert_eq!((one.recorder.order("x"), two.recorder.order("x")), ("+".to_owned(), expected.to_owned()));
        assert_eq!(one.sessions.contains("x"), !ends);
    }
}

#[tokio::test(start_paused = true)]
async fn g17_an_id_without_a_record_starts_although_the_registry_is_always_slow() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.holder.set(Fault::Slow);
    let driver = replica.drive();
    request(&replica.sessions, "x").await;
    request(&replica.sessions, "y").await;
    replica.sessions.end("y", EndReason::Deleted);
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!((replica.recorder.order("x"), replica.recorder.order("y")), ("+".to_owned(), "+-".to_owned()));
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn g17_a_process_that_stood_still_in_an_outage_joins_what_was_made_in_it() {
    // The first request comes before its next heartbeat, or after it.
    for is_driven_first in [false, true] {
        let store = Store::default();
        let (one, two) = (Replica::new(&store), Replica::new(&store));
        let (driver, stopped) = (one.drive(), two.drive());
        tokio::time::sleep(Duration::from_secs(30)).await;
        stopped.abort();
        one.holder.set(Fault::Down);
        birth(&one.sessions, "x").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let continued = is_driven_first.then(|| two.drive());
        tokio::time::sleep(Duration::from_millis(1)).await;
        request(&two.sessions, "x").await;
        one.holder.set(Fault::None);
        assert!(store.active().is_empty(), "the first one has not called yet");
        tokio::time::sleep(Duration::from_secs(5)).await;
        driver.abort();
        continued.inspect(|driver| driver.abort());
        assert_eq!((one.recorder.order("x"), two.recorder.order("x")), ("+".to_owned(), String::new()));
        assert_eq!(store.owners().len(), 1, "one record");
    }
}

#[tokio::test(start_paused = true)]
async fn g17_a_process_that_stood_still_while_it_waited_for_a_record_asks_for_it_again() {
    for ends in [false, true] {
        let store = Store::default();
        let (one, two) = (Replica::new(&store), Replica::new(&store));
        one.holder.set(Fault::Down);
        let drivers = [one.drive(), two.drive()];
        birth(&one.sessions, "x").await;
        request(&two.sessions, "x").await;
        if ends {
            two.sessions.end("x", EndReason::Deleted);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        // No timer of the second one runs until its wait is over. The first one cannot call until later.
        tokio::time::advance(Duration::from_millis(1_750)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        one.holder.set(Fault::None);
        tokio::time::sleep(Duration::from_secs(10)).await;
        drivers.iter().for_each(tokio::task::JoinHandle::abort);
        let expected = if ends { "-" } else { "" };
        assert_eq!((one.recorder.order("x"), two.recorder.order("x")), ("+".to_owned(), expected.to_owned()));
        assert_eq!(one.sessions.contains("x"), !ends);
    }
}

#[tokio::test(start_paused = true)]
async fn g17_an_id_that_is_forgotten_before_it_is_on_record_leaves_nothing_behind() {
    let store = Store::default();
    let replica = after_an_outage(&store).await;
    request(&replica.sessions, "x").await;
    replica.sessions.forget("x");
    request(&replica.sessions, "y").await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    replica.sessions.forget("y");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((store.active(), store.owed()), (vec!["made".to_owned()], Vec::new()));
    assert_eq!((replica.recorder.order("x"), replica.recorder.order("y")), (String::new(), String::new()));
    // Nothing of it is left here either.
    request(&replica.sessions, "x").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(replica.recorder.order("x"), "+");
}

/// A replica whose registry was down a moment ago. It sends heartbeats until the test ends.
async fn after_an_outage(store: &Store) -> Replica {
    let replica = Replica::new(store);
    replica.holder.set(Fault::Down);
    birth(&replica.sessions, "made").await;
    replica.holder.set(Fault::None);
    replica.drive();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!replica.sessions.is_degraded());
    replica
}

#[tokio::test(start_paused = true)]
async fn g17_an_id_that_a_request_brought_is_recorded_at_once_and_after_an_outage_within_two_seconds() {
    let store = Store::default();
    let replica = Replica::new(&store);
    // It has started a while ago.
    tokio::time::sleep(Duration::from_secs(2)).await;
    request(&replica.sessions, "usual").await;
    assert_eq!(store.active(), ["usual"], "the response waits for its record");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(replica.recorder.order("usual"), "+");

    let store = Store::default();
    let replica = after_an_outage(&store).await;
    let begun = Instant::now();
    request(&replica.sessions, "x").await;
    assert_eq!(begun.elapsed(), Duration::ZERO, "the response does not wait for it");
    assert_eq!(store.active(), ["made"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((replica.recorder.order("x"), store.active().len()), ("+".to_owned(), 2));

    // So is one that has ended.
    request(&replica.sessions, "y").await;
    replica.sessions.end("y", EndReason::Deleted);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(replica.recorder.order("y"), "");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(replica.recorder.order("y"), "+-");
    // A drain has no time to wait, neither for one that it ends, nor for one that has ended.
    request(&replica.sessions, "z").await;
    request(&replica.sessions, "v").await;
    replica.sessions.end("v", EndReason::Deleted);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(replica.sessions.drain(EndReason::Shutdown).await.ended, 4);
    assert_eq!((replica.recorder.order("z"), replica.recorder.order("v")), ("+-".to_owned(), "+-".to_owned()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(store.events().is_empty() && store.active().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g17_no_head_waits_for_an_id_that_a_request_brought_and_that_is_not_on_record() {
    let store = Store::default();
    let replica = after_an_outage(&store).await;
    request(&replica.sessions, "x").await;
    assert_eq!(birth(&replica.sessions, "x").await, Duration::ZERO);
    assert!(!replica.sessions.is_degraded(), "the registry is not slow");
}

#[tokio::test(start_paused = true)]
async fn g15_what_has_ended_before_it_is_asked_for_again_is_not_recorded_again() {
    let store = Store::default();
    let replica = Replica::with(&store, |builder| {
        builder.on_session_end(|_: SessionEnd| tokio::time::sleep(Duration::from_millis(500)))
    });
    // An outage of a moment.
    replica.holder.set(Fault::Down);
    birth(&replica.sessions, "z").await;
    replica.holder.set(Fault::None);
    replica.sessions.forget("z");
    replica.drive();
    tokio::time::sleep(Duration::from_secs(3)).await;
    request(&replica.sessions, "x").await;
    replica.sessions.end("x", EndReason::Deleted);
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Its end hook is running. Whether its record exists is unknown from now on.
    store.flush();
    replica.note("y").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(replica.recorder.order("x"), "+-");
    assert_eq!((store.active(), store.owed()), (vec!["y".to_owned()], Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn g17_in_a_drain_without_the_registry_no_hook_is_called_for_an_id_that_a_request_brought() {
    for fault in [Fault::Down, Fault::Hangs] {
        let store = Store::default();
        let (one, two) = (Replica::new(&store), Replica::new(&store));
        request(&one.sessions, "x").await;
        two.holder.set(fault);
        request(&two.sessions, "x").await;
        let report = two.sessions.drain(EndReason::Shutdown).await;
        assert_eq!((report.ended, report.handed_over, report.unfinished.len()), (0, 1, 0), "{fault:?}: {report}");
        assert_sum(&report);
        assert!(two.recorder.order("x").is_empty(), "{fault:?}");
        two.holder.kill();
        assert_eq!(one.sessions.drain(EndReason::Shutdown).await.ended, 1);
        assert_eq!(one.recorder.order("x"), "+-", "{fault:?}");
        assert!(store.events().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn g17_an_id_that_the_host_has_just_made_starts_and_ends_in_an_outage() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("before").await;
    replica.holder.set(Fault::Down);
    for id in ["sent", "ends", "stays"] {
        birth(&replica.sessions, id).await;
    }
    replica.sessions.end("ends", EndReason::Deleted);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((replica.recorder.order("ends"), replica.recorder.order("stays")), ("+-".to_owned(), "+".to_owned()));
    replica.holder.set(Fault::None);
    let driver = replica.drive();
    tokio::time::sleep(Duration::from_secs(10)).await;
    driver.abort();
    assert_eq!(store.active(), ["before", "sent", "stays"]);
    replica.recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn g17_a_session_that_was_noted_in_an_outage_starts_and_ends_in_the_drain() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.holder.set(Fault::Down);
    assert!(!replica.note("a").await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(replica.recorder.order("a"), "");
    let report = replica.sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.handed_over), (1, 0), "{report}");
    assert_eq!(replica.recorder.order("a"), "+-");
}

#[tokio::test(start_paused = true)]
async fn g17_a_waiting_session_that_is_forgotten_in_an_outage_leaves_nothing_behind() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.holder.set(Fault::Down);
    replica.note("a").await;
    assert!(replica.sessions.forget("a"));
    // The next generation of the id waits for the last one.
    birth(&replica.sessions, "a").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(replica.recorder.order("a"), "+");
    let report = replica.sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.unfinished.len()), (1, 0), "{report}");
    assert_eq!(replica.recorder.order("a"), "+-");
}

#[tokio::test(start_paused = true)]
async fn g17_a_registry_that_is_slow_is_not_down_and_does_not_flap() {
    let store = Store::default();
    let replica = Replica::new(&store);
    let driver = replica.drive();
    replica.holder.set(Fault::Slow);
    for n in 0..100 {
        birth(&replica.sessions, &format!("s{n}")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(replica.sessions.is_degraded());
    assert_eq!(replica.sessions.degradations(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((replica.recorder.starts().len(), store.active().len()), (100, 100), "it is written all the same");
    assert_eq!(birth(&replica.sessions, "no-wait").await, Duration::ZERO);
    // In time again for a while.
    replica.holder.set(Fault::None);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(replica.sessions.is_degraded());
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!replica.sessions.is_degraded());
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn g17_under_overload_sessions_that_end_unwritten_need_no_record() {
    const SESSIONS: u64 = 25_000;
    let store = Store::without_history();
    let replica = Replica::new(&store);
    replica.holder.set(Fault::Slow);
    birth(&replica.sessions, "first").await;
    assert!(replica.sessions.is_degraded());
    for n in 0..SESSIONS {
        birth(&replica.sessions, &n.to_string()).await;
        replica.sessions.end(n.to_string(), EndReason::Deleted);
    }
    let ends = || replica.recorder.ends().len() as u64;
    while ends() < SESSIONS {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let changes = replica.holder.changes.load(Ordering::SeqCst);
    assert!(changes < 5 * SESSIONS / 2, "{changes} changes");
    assert_eq!((ends(), store.active()), (SESSIONS, vec!["first".to_owned()]));
    replica.recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn g17_a_conflict_is_tried_again_at_once() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.holder.set(Fault::Conflict);
    let begun = Instant::now();
    assert!(replica.note("a").await);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(replica.sessions.degradations(), 0);
}
