//! What is written of births and ends, and what a start finds of the last process.

use std::{
    future::{pending, ready},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use tower_session_end::{ActiveSessions, EndReason, Session, SessionEnd};

use super::support::ended;
use crate::support::recorder::{Recorder, assert_sum};
use crate::support::replica::Replica;
use crate::support::store::Store;

#[tokio::test(start_paused = true)]
async fn g15_a_birth_and_an_end_are_written_and_nothing_is_left_behind() {
    let store = Store::default();
    let replica = Replica::new(&store);
    assert!(replica.note("a").await);
    assert!(replica.note("b").await);
    assert_eq!(store.active(), ["a", "b"]);
    assert!(replica.sessions.end("a", EndReason::Reset));
    let report = replica.sessions.drain(EndReason::Shutdown).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.ended, report.active, report.already_ending), (2, 1, 1));
    assert_sum(&report);
    assert_eq!(replica.recorder.order("a"), "+-");
    assert_eq!(replica.recorder.order("b"), "+-");
    assert!(store.active().is_empty() && store.owed().is_empty(), "{:?}", store.owed());
}

#[tokio::test(start_paused = true)]
async fn g15_the_start_hook_follows_the_record_and_the_end_hook_its_own() {
    let store = Store::default();
    let holder = store.holder();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (starts, ends) = ((seen.clone(), store.clone()), (seen.clone(), store.clone()));
    let sessions = ActiveSessions::builder()
        .registry(holder)
        .on_session_start(move |_| {
            starts.0.lock().unwrap().push(format!("start, {:?} on record", starts.1.active()));
            ready(())
        })
        .on_session_end(move |_| {
            ends.0.lock().unwrap().push(format!("end, {:?} owed", ends.1.owed()));
            ready(())
        })
        .build()
        .unwrap();
    sessions.note("a").recorded().await;
    sessions.end("a", EndReason::Deleted);
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
    assert_eq!(*seen.lock().unwrap(), ["start, [\"a\"] on record", "end, [Deleted] owed"]);
}

#[tokio::test(start_paused = true)]
async fn g15_the_next_start_ends_what_a_killed_process_held_as_lost() {
    let store = Store::default();
    let killed = Replica::new(&store);
    killed.sessions.note(Session::try_from("a").unwrap().with_attribute("tenant", "acme")).recorded().await;
    killed.note("b").await;
    killed.holder.kill();

    let next = Replica::new(&store);
    let report = next.sessions.recover().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.found, report.ended), (2, 2));
    let mut ends = next.ends();
    ends.sort();
    assert_eq!(ends, [ended("a", EndReason::Lost), ended("b", EndReason::Lost)]);
    let lost = next.recorder.ends().into_iter().find(|end| end.session.id == "a").unwrap();
    assert_eq!(lost.session.attributes["tenant"], "acme");
    let first = killed.recorder.starts().into_iter().find(|start| start.session.id == "a").unwrap();
    assert_eq!(lost.generation, first.generation);
    let _ = next.sessions.drain(EndReason::Shutdown).await;
    assert!(store.active().is_empty() && store.owed().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g15_an_end_that_a_drain_could_not_finish_is_delivered_later_with_its_first_reason() {
    let store = Store::default();
    let holder = store.holder();
    let sessions = ActiveSessions::builder()
        .registry(holder.clone())
        .on_session_end(|_: SessionEnd| pending::<()>())
        .build()
        .unwrap();
    sessions.note("hangs").recorded().await;
    let report = sessions.drain(EndReason::Restart).await;
    assert_eq!(report.unfinished.len(), 1);
    holder.kill();

    let next = Replica::new(&store);
    assert_eq!(next.sessions.recover().await.ended, 1);
    assert_eq!(next.ends(), [ended("hangs", EndReason::Restart)]);
    assert_eq!(next.recorder.ends()[0].generation, report.unfinished[0].generation);
}

#[tokio::test(start_paused = true)]
async fn g15_a_lost_end_comes_before_the_next_start_of_its_session() {
    let store = Store::default();
    let killed = Replica::new(&store);
    killed.note("a").await;
    killed.holder.kill();

    let recorder = Recorder::default();
    let sessions = recorder.slow_builder(|_| Duration::from_millis(500)).registry(store.holder()).build().unwrap();
    let recovering = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.recover().await }
    });
    // Its end is under way by now.
    tokio::time::sleep(Duration::from_millis(50)).await;
    sessions.note("a");
    assert!(recovering.await.unwrap().is_clean());
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
    assert_eq!(recorder.order("a"), "-+-");
    let events: Vec<_> = recorder.ends().iter().map(|end| end.generation).collect();
    assert_ne!(events[0], events[1]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_of_10_000_writes_in_groups() {
    let store = Store::default();
    let replica = Replica::new(&store);
    for n in 0..10_000 {
        replica.sessions.note(format!("s{n}"));
    }
    replica.note("last").await;
    let (calls, changes) = (replica.holder.calls.clone(), replica.holder.changes.clone());
    let before = calls.load(Ordering::SeqCst);
    assert!(before <= 30, "{before} calls for 10,001 births");
    let report = replica.sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.ended, 10_001);
    let drained = calls.load(Ordering::SeqCst) - before;
    assert!(drained <= 60, "{drained} calls for 10,001 ends");
    assert_eq!(changes.load(Ordering::SeqCst), 3 * 10_001);
    assert!(store.active().is_empty() && store.owed().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_compaction_is_written_as_one() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("old").await;
    assert!(replica.sessions.compact("old", "new").ended_old());
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!((store.active(), store.owed()), (vec!["new".to_owned()], vec![]));
    assert_eq!(replica.ends(), [ended("old", EndReason::Compaction)]);
    assert_eq!(replica.recorder.starts()[1].resumed_from.as_ref().unwrap(), &"old");
    replica.sessions.forget("new");
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(store.active().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g14_what_is_kept_is_let_go_of_and_others_still_hold_it() {
    let store = Store::default();
    let (one, two) = (Replica::with(&store, |builder| builder.keep_if(|_, _| true)), Replica::new(&store));
    one.note("a").await;
    one.note("b").await;
    two.note("a").await;
    let report = one.sessions.drain(EndReason::Restart).await;
    assert_eq!(report.kept, 2);
    assert_eq!(store.active(), ["a"]);
    assert_eq!(two.sessions.drain(EndReason::Shutdown).await.ended, 1);
}

#[tokio::test(start_paused = true)]
async fn finish_gives_the_lease_back() {
    let store = Store::default();
    let (one, survivor) = (Replica::new(&store), Replica::new(&store));
    one.note("a").await;
    let finished = one.sessions.finish(ready(std::io::Result::Ok(()))).await;
    assert!(finished.report.is_clean(), "{}", finished.report);
    assert!(!tower_session_end::registry::Registry::lease_is_valid(&one.holder));
    assert_eq!(survivor.sessions.recover().await.found, 0);
}
