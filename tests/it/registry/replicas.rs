//! Several replicas on one store.

use std::{
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tower_session_end::{ActiveSessions, EndReason, SessionEnd};

use super::support::ended;
use crate::support::recorder::{Recorder, assert_sum};
use crate::support::replica::Replica;
use crate::support::store::Store;

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
