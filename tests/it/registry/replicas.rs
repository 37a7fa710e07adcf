//! Several replicas on one store.

use std::{
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, EndReason, Session, SessionEnd, SessionId};

use super::support::{birth, ended};
use crate::support::recorder::{Recorder, assert_sum};
use crate::support::replica::Replica;
use crate::support::store::{Fault, Store};

#[tokio::test(start_paused = true)]
async fn g16_a_session_of_two_replicas_ends_with_the_last_that_lets_go() {
    let store = Store::default();
    let (one, two) = (Replica::new(&store), Replica::new(&store));
    one.note("a").await;
    two.note("a").await;
    assert!(two.recorder.starts().is_empty(), "it was there already");

    let report = one.sessions.drain(EndReason::Restart).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.ended, report.held_elsewhere), (0, 1));
    assert_sum(&report);
    assert!(one.ends().is_empty());

    let report = two.sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.held_elsewhere), (1, 0));
    assert_eq!(two.ends(), [ended("a", EndReason::Shutdown)]);
    assert_eq!(two.recorder.ends()[0].generation, one.recorder.starts()[0].generation);
    assert!(store.active().is_empty() && store.owed().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g16_an_explicit_end_on_one_is_an_end_for_all() {
    let store = Store::default();
    let (one, two) = (Replica::new(&store), Replica::new(&store));
    one.note("a").await;
    two.note("a").await;
    two.sessions.end("a", EndReason::Deleted);
    assert_eq!(two.sessions.drain(EndReason::Shutdown).await.ended, 1);
    let report = one.sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.ended_elsewhere), (0, 1));
    assert_sum(&report);
    assert!(one.ends().is_empty());
    assert_eq!(two.ends(), [ended("a", EndReason::Deleted)]);
}

#[tokio::test(start_paused = true)]
async fn g16_a_survivor_takes_over_while_it_is_driven() {
    let store = Store::default();
    let (killed, survivor) = (Replica::new(&store), Replica::new(&store));
    killed.note("a").await;
    killed.note("both").await;
    survivor.note("both").await;
    killed.holder.kill();
    let driver = tokio::spawn(survivor.sessions.shutdown_on(pending::<()>()));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(survivor.ends(), [ended("a", EndReason::Lost)]);
    driver.abort();
    assert_eq!(survivor.sessions.drain(EndReason::Shutdown).await.ended, 1);
    assert_eq!(survivor.ends().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn g16_a_replica_that_was_away_beyond_its_lease_goes_on_with_new_generations() {
    let store = Store::default();
    let (away, survivor) = (Replica::new(&store), Replica::new(&store));
    away.note("a").await;
    let guard = away.sessions.guard("guarded").unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    away.holder.kill();
    assert_eq!(survivor.sessions.recover().await.ended, 2);

    // It is back, and hears of it at its next beat.
    let driver = tokio::spawn(away.sessions.shutdown_on(pending::<()>()));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(store.active(), ["a", "guarded"]);
    drop(guard);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(away.ends(), [ended("guarded", EndReason::Unknown)]);
    driver.abort();
    let report = away.sessions.drain(EndReason::Shutdown).await;
    assert!(report.is_clean(), "{report}");
    assert_sum(&report);
    assert_eq!(away.recorder.order("a"), "++-");
    let (lost, own) = (&survivor.recorder.ends(), &away.recorder.ends());
    assert_eq!((lost.len(), own.len()), (2, 2));
    for end in own {
        assert!(lost.iter().all(|lost| lost.generation != end.generation), "a new generation has a name of its own");
    }
    assert!(store.active().is_empty() && store.owed().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g16_an_end_is_not_delivered_once_the_lease_is_over() {
    let store = Store::default();
    let (recorder, holder) = (Recorder::default(), store.holder());
    let gate = Arc::new(AtomicBool::new(false));
    let (killer, first) = (holder.clone(), gate.clone());
    let ends = recorder.clone();
    let sessions = ActiveSessions::builder()
        .registry(holder)
        .max_concurrent_hooks(1)
        .on_session_end(move |end: SessionEnd| {
            ends.push(crate::support::recorder::Event::End(end));
            // While the first end is delivered, the lease runs out.
            if !first.swap(true, Ordering::SeqCst) {
                killer.kill();
            }
            ready(())
        })
        .build()
        .unwrap();
    for id in ["a", "b", "c"] {
        sessions.note(id).recorded().await;
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.handed_over), (1, 2), "{report}");
    assert_sum(&report);
    assert!(!report.is_clean());
    let survivor = Replica::new(&store);
    let _ = survivor.sessions.recover().await;
    let reasons: Vec<_> = survivor.ends().into_iter().map(|(_, reason)| reason).collect();
    // The first one was delivered and its record could not be removed any more: it comes again, under the same name.
    assert_eq!(reasons, [EndReason::Shutdown; 3]);
    assert!(survivor.recorder.ends().iter().any(|end| end.generation == recorder.ends()[0].generation));
}

/// The session has moved from the first replica to the second, and the registry is away from the first.
async fn moved(policy: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder) -> (Store, Replica, Replica) {
    let store = Store::default();
    let (one, two) = (Replica::with(&store, policy), Replica::new(&store));
    one.note("x").await;
    assert!(two.note("x").await);
    one.holder.set(Fault::Down);
    (store, one, two)
}

/// The registry is back. The second replica is the last that lets go.
async fn ends_on_the_second(store: Store, one: Replica, two: Replica) {
    assert!(one.ends().is_empty(), "it goes on elsewhere");
    one.holder.set(Fault::None);
    let driver = one.drive();
    tokio::time::sleep(Duration::from_secs(10)).await;
    driver.abort();
    assert!(one.ends().is_empty());
    assert_eq!(two.sessions.drain(EndReason::Shutdown).await.ended, 1);
    assert_eq!(two.ends(), [ended("x", EndReason::Shutdown)]);
    let report = one.sessions.drain(EndReason::Shutdown).await;
    assert!(one.ends().is_empty(), "{report}");
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g16_in_an_outage_a_replica_does_not_end_a_session_that_is_idle_there_and_served_elsewhere() {
    let (store, one, two) = moved(|builder| builder.idle_timeout(Duration::from_secs(2))).await;
    let driver = one.drive();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(one.sessions.is_empty(), "it is idle here");
    driver.abort();
    ends_on_the_second(store, one, two).await;
}

#[tokio::test(start_paused = true)]
async fn g16_in_an_outage_a_replica_does_not_end_a_session_that_it_evicts_and_that_is_served_elsewhere() {
    let (store, one, two) = moved(|builder| builder.max_sessions(1)).await;
    birth(&one.sessions, "newcomer").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!one.sessions.contains("x"));
    one.holder.set(Fault::None);
    let driver = one.drive();
    tokio::time::sleep(Duration::from_secs(10)).await;
    driver.abort();
    assert!(one.ends().is_empty(), "it goes on elsewhere");
    assert_eq!(two.sessions.drain(EndReason::Shutdown).await.ended, 1);
    assert_eq!(one.sessions.drain(EndReason::Shutdown).await.ended, 1);
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g16_in_an_outage_a_guard_that_is_dropped_does_not_end_a_session_that_is_served_elsewhere() {
    let (store, one, two) = moved(|builder| builder).await;
    drop(one.sessions.guard("x").unwrap());
    tokio::time::sleep(Duration::from_secs(20)).await;
    ends_on_the_second(store, one, two).await;
}

#[tokio::test(start_paused = true)]
async fn g16_every_replica_learns_of_1500_ends_elsewhere_within_two_heartbeats() {
    let store = Store::default();
    let replicas = [Replica::new(&store), Replica::new(&store), Replica::new(&store)];
    let drivers: Vec<_> = replicas.iter().map(Replica::drive).collect();
    for replica in &replicas {
        for n in 0..1500 {
            replica.sessions.note(format!("s{n}"));
        }
        replica.note("stays").await;
    }
    let [one, two, three] = &replicas;
    for n in 0..1500 {
        one.sessions.end(format!("s{n}"), EndReason::Deleted);
    }
    // The heartbeats come each second.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    for replica in [two, three] {
        assert_eq!(replica.sessions.snapshot().len(), 1);
        assert!(replica.ends().is_empty());
    }
    assert_eq!(one.ends().len(), 1500);
    // What the host notes there now is a new generation.
    assert!(two.note("s7").await);
    assert_eq!(two.recorder.order("s7"), "+");
    assert_ne!(two.recorder.starts()[0].generation, one.recorder.starts()[7].generation);
    // Each notice is acknowledged.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(store.notices().is_empty());
    drivers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn g16_a_note_after_an_end_elsewhere_is_a_new_generation_although_nobody_has_said_so_yet() {
    let store = Store::default();
    let (one, two) = (Replica::new(&store), Replica::new(&store));
    one.note("x").await;
    two.note("x").await;
    let driver = two.drive();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    one.sessions.end("x", EndReason::Deleted);
    tokio::time::sleep(Duration::from_millis(10)).await;
    two.sessions.note("x");
    tokio::time::sleep(Duration::from_secs(3)).await;
    driver.abort();
    assert_eq!(two.recorder.order("x"), "+");
    assert!(two.sessions.contains("x"));
    assert_eq!(two.sessions.drain(EndReason::Shutdown).await.ended, 1);
    assert_eq!(two.recorder.order("x"), "+-");
    assert_ne!(two.recorder.ends()[0].generation, one.recorder.ends()[0].generation);
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g16_an_end_elsewhere_ends_the_streams_and_the_children_of_each_copy() {
    let store = Store::default();
    let (one, two) = (Replica::new(&store), Replica::new(&store));
    one.note("x").await;
    two.note("x").await;
    two.sessions
        .note(Session::try_from("child").unwrap().with_parent("x".parse::<SessionId>().unwrap()))
        .recorded()
        .await;
    let driver = two.drive();
    one.sessions.end("x", EndReason::Deleted);
    tokio::time::sleep(Duration::from_secs(3)).await;
    driver.abort();
    assert!(two.sessions.is_empty());
    assert_eq!(two.ends(), [ended("child", EndReason::Parent)]);
}
