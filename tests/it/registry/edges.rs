//! Rare orders of outages, lost leases, failing hooks and drains.

use std::{
    future::{pending, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use tower_session_end::{
    ActiveSessions, EndReason, GenerationId, Session, SessionEnd,
    registry::{Applied, Change, Heartbeat, Orphan, Registry, RegistryError},
};

use super::support::{birth, ended, request};
use crate::support::recorder::{Recorder, assert_sum};
use crate::support::replica::Replica;
use crate::support::store::{Fault, Holder, Store};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn g17_a_waiting_session_that_is_forgotten_as_the_registry_comes_back_does_not_block_its_id() {
    // Its record was not sent; or it was sent and the answer was lost.
    for is_sent in [false, true] {
        let store = Store::default();
        let replica = Replica::new(&store);
        replica.note("before").await;
        replica.holder.set(if is_sent { Fault::Deaf } else { Fault::Down });
        if !is_sent {
            replica.note("other").await;
        }
        assert!(!replica.note("a").await);
        // The registry is called again from now on.
        sleep(SECOND).await;
        replica.holder.set(Fault::None);
        assert!(replica.sessions.forget("a"));
        let driver = replica.drive();
        sleep(10 * SECOND).await;
        assert!(timeout(10 * SECOND, replica.note("a")).await.expect("its record is not written"), "{is_sent}");
        sleep(SECOND).await;
        assert!(replica.recorder.order("a").ends_with('+'), "{is_sent}: the last generation blocks the next one");
        driver.abort();
        let report = replica.sessions.drain(EndReason::Shutdown).await;
        assert!(report.unfinished.is_empty(), "{is_sent}: {report}");
        assert!(store.events().is_empty(), "{is_sent}: {:?}", store.events());
    }
}

#[tokio::test(start_paused = true)]
async fn g17_a_session_that_joined_without_an_answer_and_is_forgotten_does_not_hold_the_record() {
    let store = Store::default();
    let (one, two) = (Replica::new(&store), Replica::new(&store));
    one.note("x").await;
    two.holder.set(Fault::Deaf);
    assert!(!two.note("x").await);
    sleep(SECOND).await;
    two.holder.set(Fault::None);
    assert!(two.sessions.forget("x"));
    let drivers = [one.drive(), two.drive()];
    sleep(10 * SECOND).await;
    drivers.iter().for_each(tokio::task::JoinHandle::abort);
    let report = one.sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.held_elsewhere, 0, "{report}");
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g15_an_end_whose_hook_fails_after_the_lease_was_lost_is_left_to_its_new_owner() {
    for first_fails in [false, true] {
        let store = Store::default();
        let (holder, calls) = (store.holder(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&calls);
        let sessions = ActiveSessions::builder()
            .registry(holder.clone())
            .on_session_end(move |_: SessionEnd| {
                let call = count.fetch_add(1, Ordering::SeqCst);
                async move {
                    if !first_fails || call > 0 {
                        sleep(5 * SECOND).await;
                    }
                    Err::<(), _>("no")
                }
            })
            .build()
            .unwrap();
        let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
        assert!(sessions.note("a").recorded().await);
        sessions.end("a", EndReason::Deleted);
        sleep(2 * SECOND).await;
        let before = calls.load(Ordering::SeqCst);
        holder.kill();
        let survivor = Replica::new(&store);
        assert_eq!(survivor.sessions.recover().await.ended, 1);
        sleep(60 * SECOND).await;
        assert_eq!(calls.load(Ordering::SeqCst), before, "{first_fails}: another process owns the end");
        driver.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn g15_an_unrecorded_end_is_delivered_again_although_the_lease_was_lost_meanwhile() {
    let store = Store::default();
    let (holder, calls) = (store.holder(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&calls);
    let sessions = ActiveSessions::builder()
        .registry(holder.clone())
        .on_session_end(move |end: SessionEnd| {
            let fails = end.session.id == "a" && count.fetch_add(1, Ordering::SeqCst) < 2;
            ready(if fails { Err("not yet") } else { Ok(()) })
        })
        .build()
        .unwrap();
    sessions.note("before").recorded().await;
    holder.set(Fault::Down);
    birth(&sessions, "sent").await;
    birth(&sessions, "a").await;
    sessions.end("a", EndReason::Deleted);
    sleep(SECOND / 10).await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    // The registry is back, and the lease has expired in the outage.
    holder.kill();
    holder.set(Fault::None);
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    sleep(10 * SECOND).await;
    driver.abort();
    assert_eq!(calls.load(Ordering::SeqCst), 3, "no other process knows of it");
}

#[tokio::test(start_paused = true)]
async fn g16_under_overload_a_noted_session_that_another_replica_holds_is_not_started_here() {
    const SESSIONS: u64 = 20_000;
    let store = Store::without_history();
    let (one, two) = (Replica::new(&store), Replica::new(&store));
    one.note("x").await;
    two.holder.set(Fault::Slow);
    for n in 0..SESSIONS {
        two.sessions.note(format!("s{n}"));
    }
    two.sessions.note("x");
    drop(two.sessions.guard("x").unwrap());
    sleep(60 * SECOND).await;
    assert!(!two.sessions.contains("x"));
    assert!(two.recorder.order("x").is_empty(), "it goes on elsewhere: {}", two.recorder.order("x"));
    assert_eq!(one.recorder.order("x"), "+");
}

#[tokio::test(start_paused = true)]
async fn g17_details_that_change_often_in_an_outage_are_written_once() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("a").await;
    replica.holder.set(Fault::Down);
    for n in 0..5000 {
        replica.sessions.note(Session::try_from("a").unwrap().with_key(n.to_string()));
        sleep(Duration::from_millis(10)).await;
    }
    let before = replica.holder.changes.load(Ordering::SeqCst);
    replica.holder.set(Fault::None);
    let driver = replica.drive();
    sleep(10 * SECOND).await;
    driver.abort();
    let changes = replica.holder.changes.load(Ordering::SeqCst) - before;
    assert!(changes <= 3, "{changes} changes");
    replica.holder.kill();
    let next = Replica::new(&store);
    let _ = next.sessions.recover().await;
    assert_eq!(next.recorder.ends()[0].session.key.as_deref(), Some("4999"));
}

#[tokio::test(start_paused = true)]
async fn g17_notices_of_an_outage_of_writes_are_acknowledged_once() {
    let store = Store::default();
    let (one, two) = (Replica::new(&store), Replica::new(&store));
    for n in 0..100 {
        one.sessions.note(format!("s{n}"));
        two.sessions.note(format!("s{n}"));
    }
    one.note("stays").await;
    two.note("stays").await;
    for n in 0..100 {
        one.sessions.end(format!("s{n}"), EndReason::Deleted);
    }
    sleep(SECOND / 10).await;
    two.holder.set(Fault::ReadOnly);
    let driver = two.drive();
    sleep(600 * SECOND).await;
    let before = two.holder.changes.load(Ordering::SeqCst);
    two.holder.set(Fault::None);
    sleep(20 * SECOND).await;
    driver.abort();
    let changes = two.holder.changes.load(Ordering::SeqCst) - before;
    assert!(changes <= 300, "{changes} changes");
    assert!(store.notices().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g17_no_wait_for_a_record_lasts_as_long_as_an_outage() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.holder.set(Fault::Down);
    assert!(!replica.note("a").await);
    let again = timeout(5 * SECOND, replica.note("a")).await;
    assert!(!again.expect("it waits for the end of the outage"));
    let first = replica.sessions.note("b");
    sleep(SECOND).await;
    assert!(!timeout(5 * SECOND, first.recorded()).await.expect("it waits for the end of the outage"));
    // And it is written if that is possible.
    replica.holder.set(Fault::None);
    sleep(10 * SECOND).await;
    assert!(timeout(5 * SECOND, replica.note("a")).await.unwrap());
}

/// Calls of recovery hang.
#[derive(Clone)]
struct SlowRecovery(Holder, Arc<AtomicBool>, Arc<AtomicU64>);

impl Registry for SlowRecovery {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        if self.1.load(Ordering::SeqCst) {
            return pending().await;
        }
        self.0.apply(changes).await
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        self.0.heartbeat().await
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        self.2.fetch_add(1, Ordering::SeqCst);
        if self.1.load(Ordering::SeqCst) {
            return pending().await;
        }
        sleep(SECOND / 20).await;
        self.0.claim_orphans(max).await
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.0.release_lease().await
    }

    fn heartbeat_interval(&self) -> Duration {
        SECOND
    }
}

#[tokio::test(start_paused = true)]
async fn g17_a_drain_does_not_wait_for_a_recovery_that_hangs() {
    let store = Store::default();
    let (recorder, hangs) = (Recorder::default(), Arc::new(AtomicBool::new(false)));
    let registry = SlowRecovery(store.holder(), Arc::clone(&hangs), Arc::default());
    let builder = recorder.builder().registry(registry).drain_timeout(2 * SECOND);
    let sessions = builder.build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    sleep(SECOND / 2).await;
    hangs.store(true, Ordering::SeqCst);
    sleep(SECOND).await;
    // The call hangs by now.
    birth(&sessions, "a").await;
    let report = sessions.drain(EndReason::Shutdown).await;
    driver.abort();
    assert_eq!((report.ended, report.unfinished.len()), (1, 0), "{report}");
    assert_eq!(recorder.order("a"), "+-");
}

#[tokio::test(start_paused = true)]
async fn the_release_of_the_lease_is_the_last_call_although_a_recovery_goes_on() {
    let store = Store::default();
    Replica::dead(&store, (0..20_000).map(|n| format!("s{n}"))).await;
    let (recorder, calls) = (Recorder::default(), Arc::new(AtomicU64::new(0)));
    let registry = SlowRecovery(store.holder(), Arc::default(), Arc::clone(&calls));
    let builder = recorder.builder().registry(registry).drain_timeout(SECOND).connection_drain_timeout(SECOND);
    let sessions = builder.build().unwrap();
    let recovery = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.recover().await }
    });
    sleep(SECOND / 4).await;
    let _ = sessions.finish(async {}).await;
    let before = calls.load(Ordering::SeqCst);
    sleep(60 * SECOND).await;
    assert_eq!(calls.load(Ordering::SeqCst), before, "calls after the release of the lease");
    assert!(recovery.await.unwrap().error.is_some());
}

#[test]
fn g15_a_redelivery_survives_the_runtime_that_scheduled_it() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store = Store::default();
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let sessions = ActiveSessions::builder()
        .registry(store.holder())
        .on_session_end(move |_: SessionEnd| {
            let call = count.fetch_add(1, Ordering::SeqCst);
            ready(if call == 0 { Err("not yet") } else { Ok(()) })
        })
        .build()
        .unwrap();
    let until = async |n: usize| {
        for _ in 0..10_000 {
            if calls.load(Ordering::SeqCst) >= n {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    let first = runtime();
    first.block_on(async {
        assert!(sessions.note("a").recorded().await);
        sessions.end("a", EndReason::Deleted);
        until(1).await;
    });
    drop(first);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    runtime().block_on(async {
        // Anything that wakes the handle.
        assert!(timeout(20 * SECOND, sessions.note("b").recorded()).await.unwrap());
        until(2).await;
    });
    assert_eq!(calls.load(Ordering::SeqCst), 2, "it was scheduled, and no task serves the schedule");
}

#[tokio::test(start_paused = true)]
async fn g15_a_delivery_that_a_short_outage_in_the_drain_has_kept_from_the_registry_is_written_by_finish() {
    let store = Store::default();
    let (holder, recorder) = (store.holder(), Recorder::default());
    let (fails, ends) = (holder.clone(), recorder.clone());
    let sessions = ActiveSessions::builder()
        .registry(holder.clone())
        .on_session_end(move |end: SessionEnd| {
            ends.push(crate::support::recorder::Event::End(end));
            fails.set(Fault::Down);
            ready(())
        })
        .build()
        .unwrap();
    assert!(sessions.note("a").recorded().await);
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.ended, 1, "{report}");
    holder.set(Fault::None);
    let _ = sessions.finish(sleep(SECOND)).await;
    let next = Replica::new(&store);
    assert_eq!(next.sessions.recover().await.found, 0, "it was delivered, and is delivered again");
}

#[tokio::test(start_paused = true)]
async fn g17_many_changes_of_one_id_do_not_hold_up_the_others() {
    let store = Store::without_history();
    let replica = Replica::new(&store);
    birth(&replica.sessions, "first").await;
    replica.holder.set(Fault::Slow);
    for _ in 0..2000 {
        replica.sessions.note("same");
        replica.sessions.end("same", EndReason::Deleted);
    }
    replica.sessions.note("other");
    sleep(10 * SECOND).await;
    assert_eq!(replica.recorder.order("other"), "+");
}

#[tokio::test(start_paused = true)]
async fn g17_a_conflict_of_a_heartbeat_is_tried_again_at_once() {
    let store = Store::default();
    Replica::dead(&store, None).await;
    let replica = Replica::new(&store);
    replica.holder.set(Fault::Conflict);
    let report = replica.sessions.recover().await;
    assert_eq!((report.found, report.error), (1, None));
    assert_eq!(replica.sessions.degradations(), 0);
}

#[tokio::test(start_paused = true)]
async fn g15_one_end_that_a_batch_hook_always_refuses_makes_no_dead_letters_of_the_others() {
    let store = Store::default();
    let delivered = Arc::new(Mutex::new(Vec::<GenerationId>::new()));
    let all = Arc::clone(&delivered);
    let sessions = ActiveSessions::builder()
        .registry(store.holder())
        .on_session_end_batch(100, move |ends: Vec<SessionEnd>| {
            ready(if ends.iter().any(|end| end.session.id == "poison") {
                Err("one of them is bad")
            } else {
                all.lock().unwrap().extend(ends.iter().map(|end| end.generation));
                Ok(())
            })
        })
        .build()
        .unwrap();
    for n in 0..50 {
        sessions.note(format!("s{n}"));
    }
    assert!(sessions.note("poison").recorded().await);
    sleep(SECOND).await;
    for n in 0..50 {
        sessions.end(format!("s{n}"), EndReason::Deleted);
    }
    sessions.end("poison", EndReason::Deleted);
    sleep(600 * SECOND).await;
    assert_eq!((delivered.lock().unwrap().len(), store.dead_letters().len()), (50, 1));
}

#[tokio::test(start_paused = true)]
async fn g15_an_end_whose_hook_ends_the_process_at_once_is_a_dead_letter() {
    let store = Store::default();
    Replica::dead(&store, None).await;
    for _ in 0..10 {
        let holder = store.holder();
        let dies = holder.clone();
        let sessions = ActiveSessions::builder()
            .registry(holder.clone())
            .recovery_timeout(SECOND)
            .on_session_end(move |_: SessionEnd| {
                dies.kill();
                dies.set(Fault::Hangs);
                pending::<()>()
            })
            .build()
            .unwrap();
        let _ = sessions.recover().await;
    }
    assert_eq!(store.dead_letters().len(), 1);
}

/// A handle whose hook fails for each end.
fn always_failing(holder: Holder) -> ActiveSessions {
    let builder = ActiveSessions::builder().registry(holder);
    builder.on_session_end(|_: SessionEnd| ready(Err::<(), _>("no"))).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn g15_an_end_that_is_to_be_delivered_again_is_recorded_again_after_a_loss_of_data() {
    let store = Store::default();
    let sessions = always_failing(store.holder());
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    assert!(sessions.note("a").recorded().await);
    sessions.end("a", EndReason::Deleted);
    sleep(SECOND / 10).await;
    store.flush();
    sleep(60 * SECOND).await;
    driver.abort();
    assert_eq!(store.dead_letters().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn g15_an_unrecorded_end_whose_hooks_fail_too_often_is_a_dead_letter_too() {
    let store = Store::default();
    let holder = store.holder();
    let sessions = always_failing(holder.clone());
    sessions.note("before").recorded().await;
    holder.set(Fault::Down);
    birth(&sessions, "sent").await;
    birth(&sessions, "a").await;
    sessions.end("a", EndReason::Deleted);
    holder.set(Fault::None);
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    sleep(60 * SECOND).await;
    driver.abort();
    assert_eq!(store.dead_letters().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn g22_children_from_before_an_end_elsewhere_end_although_the_host_has_noted_their_parent_again() {
    let store = Store::default();
    let (one, two) = (Replica::new(&store), Replica::new(&store));
    one.note("x").await;
    two.note("x").await;
    let child =
        |id: &str| Session::try_from(id).unwrap().with_parent("x".parse::<tower_session_end::SessionId>().unwrap());
    two.sessions.note(child("before")).recorded().await;
    let driver = two.drive();
    sleep(Duration::from_millis(1100)).await;
    one.sessions.end("x", EndReason::Deleted);
    sleep(Duration::from_millis(50)).await;
    two.sessions.note("x");
    two.sessions.note(child("after")).recorded().await;
    sleep(3 * SECOND).await;
    assert!(two.sessions.contains("x") && two.sessions.contains("after"));
    assert_eq!(two.ends(), [ended("before", EndReason::Parent)]);
    driver.abort();
    let report = two.sessions.drain(EndReason::Shutdown).await;
    assert_sum(&report);
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g17_a_child_whose_start_waits_for_its_record_ends_after_its_parent_in_an_outage() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("x").await;
    replica.holder.set(Fault::Down);
    replica
        .sessions
        .note(Session::try_from("child").unwrap().with_parent("x".parse::<tower_session_end::SessionId>().unwrap()));
    sleep(SECOND).await;
    replica.sessions.end("x", EndReason::Deleted);
    sleep(SECOND).await;
    replica.holder.set(Fault::None);
    let driver = replica.drive();
    sleep(10 * SECOND).await;
    driver.abort();
    assert_eq!(replica.ends(), [ended("x", EndReason::Deleted), ended("child", EndReason::Parent)]);
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g17_a_drain_that_is_dropped_in_an_outage_leaves_nothing_to_wait_for() {
    for fault in [Fault::Down, Fault::Hangs, Fault::Deaf] {
        let store = Store::default();
        let replica = Replica::new(&store);
        for id in ["a", "b", "c"] {
            replica.note(id).await;
        }
        replica.holder.set(fault);
        replica.sessions.end("a", EndReason::Deleted);
        request(&replica.sessions, "carried").await;
        replica.sessions.note("noted");
        sleep(SECOND / 2).await;
        let _ = timeout(Duration::from_millis(5), replica.sessions.drain(EndReason::Restart)).await;
        let begun = Instant::now();
        let report = replica.sessions.finish(async {}).await.report;
        assert!(begun.elapsed() <= 11 * SECOND, "{fault:?}: {:?}", begun.elapsed());
        assert_sum(&report.sessions);
        assert!(report.sessions.unfinished.is_empty(), "{fault:?}: {report}");
    }
}
