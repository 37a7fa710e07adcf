//! Leases that are lost or in doubt, records that may or may not be there, and ends that somebody else has begun.

use std::{
    future::{pending, ready},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use crate::support::recorder::{Recorder, assert_sum};
use crate::support::replica::Replica;
use crate::support::store::{Fault, Store};
use tokio::time::{Instant, sleep, timeout};
use tower_session_end::{ActiveSessions, EndReason, SessionEnd};

use super::support::birth;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn g15_a_session_that_was_never_recorded_keeps_its_generation_over_a_lost_lease() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("before").await;
    replica.holder.set(Fault::Down);
    // The record of the first one is sent, so its start waits.
    birth(&replica.sessions, "sent").await;
    sleep(Duration::from_millis(10)).await;
    birth(&replica.sessions, "a").await;
    sleep(Duration::from_millis(10)).await;
    assert_eq!(replica.recorder.started(), ["a", "before"]);
    let start = replica.recorder.starts().pop().unwrap();
    replica.holder.kill();
    replica.holder.set(Fault::None);
    let driver = replica.drive();
    sleep(5 * SECOND).await;
    driver.abort();
    let _ = replica.sessions.drain(EndReason::Shutdown).await;
    let ends: Vec<_> = replica.recorder.ends().into_iter().filter(|end| end.session.id == "a").collect();
    assert_eq!(ends.len(), 1);
    assert_eq!(ends[0].generation, start.generation, "the start that was told has no end");
}

#[tokio::test(start_paused = true)]
async fn g16_a_session_that_ended_before_its_record_was_answered_ends_also_after_a_lost_lease() {
    for fault in [Fault::Down, Fault::Deaf] {
        let store = Store::default();
        let replica = Replica::new(&store);
        replica.note("before").await;
        replica.holder.set(fault);
        // Its record is sent, and perhaps written: its start waits.
        birth(&replica.sessions, "sent").await;
        replica.sessions.end("sent", EndReason::Deleted);
        sleep(Duration::from_millis(10)).await;
        assert!(replica.recorder.order("sent").is_empty());
        replica.holder.kill();
        let survivor = Replica::new(&store);
        let _ = survivor.sessions.recover().await;
        replica.holder.set(Fault::None);
        let driver = replica.drive();
        sleep(5 * SECOND).await;
        driver.abort();
        // Another process ends what was written, as a generation of its own.
        let elsewhere = if fault == Fault::Deaf { "-" } else { "" };
        assert_eq!(survivor.recorder.order("sent"), elsewhere, "{fault:?}");
        assert_eq!(replica.recorder.order("sent"), "+-", "{fault:?}");
        let here = replica.recorder.ends().into_iter().find(|end| end.session.id == "sent").unwrap();
        assert!(survivor.recorder.ends().iter().all(|end| end.generation != here.generation), "{fault:?}");
        let _ = replica.sessions.drain(EndReason::Shutdown).await;
        assert!(store.events().is_empty(), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn g15_a_record_whose_answer_was_lost_when_it_was_made_up_for_is_not_left_behind() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("before").await;
    replica.holder.set(Fault::Down);
    replica.sessions.end("before", EndReason::Reset);
    sleep(Duration::from_millis(10)).await;
    // The registry is left alone by now: this one is not even tried.
    replica.note("a").await;
    replica.holder.set(Fault::Short);
    let driver = replica.drive();
    sleep(3 * SECOND / 2).await;
    assert_eq!(store.active(), ["a"]);
    replica.holder.set(Fault::Down);
    replica.sessions.end("a", EndReason::Reset);
    replica.holder.set(Fault::None);
    sleep(20 * SECOND).await;
    assert!(store.events().is_empty(), "{:?} {:?}", store.active(), store.owed());
    assert_eq!(replica.recorder.ended(), ["a reset", "before reset"]);
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn g16_an_end_that_came_due_while_the_lease_was_in_doubt_is_delivered_once_it_is_not() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("a").await;
    let driver = replica.drive();
    replica.holder.doubt(true);
    replica.sessions.end("a", EndReason::Deleted);
    sleep(10 * SECOND).await;
    assert!(replica.recorder.ends().is_empty(), "the lease may be over, and others may have delivered it");
    replica.holder.doubt(false);
    sleep(2 * SECOND).await;
    assert_eq!(replica.recorder.ended(), ["a deleted"]);
    assert!(store.events().is_empty());

    // Lost indeed: others deliver it.
    replica.note("b").await;
    replica.holder.doubt(true);
    replica.sessions.end("b", EndReason::Deleted);
    sleep(Duration::from_millis(10)).await;
    replica.holder.kill();
    let survivor = Replica::new(&store);
    assert_eq!(survivor.sessions.recover().await.ended, 1);
    replica.holder.doubt(false);
    sleep(5 * SECOND).await;
    assert_eq!(survivor.recorder.ended(), ["b deleted"]);
    assert_eq!(replica.recorder.ended(), ["a deleted"]);
    driver.abort();

    // In a stop there is no time for that.
    replica.note("c").await;
    replica.holder.doubt(true);
    replica.sessions.end("c", EndReason::Reset);
    sleep(Duration::from_millis(10)).await;
    let begun = Instant::now();
    let report = replica.sessions.drain(EndReason::Shutdown).await;
    assert!(begun.elapsed() < SECOND);
    assert_sum(&report);
    assert_eq!((report.already_ending, report.handed_over), (1, 1), "{report}");
}

#[tokio::test(start_paused = true)]
async fn g17_ends_that_wait_for_a_certain_lease_hold_up_no_start() {
    let store = Store::default();
    let holder = store.holder();
    let dead = ActiveSessions::builder().registry(holder.clone()).on_session_end(|_: SessionEnd| pending::<()>());
    let dead = dead.build().unwrap();
    for _ in 0..4 {
        assert!(dead.note("a").recorded().await);
        dead.end("a", EndReason::Deleted);
        sleep(SECOND / 100).await;
    }
    assert_eq!(store.owed().len(), 4);
    holder.kill();
    holder.set(Fault::Hangs);

    // Four ends of one id take four calls, and these are longer than a heartbeat interval.
    let replica = Replica::new(&store);
    replica.holder.doubt(true);
    replica.holder.set(Fault::Slow);
    let driver = replica.drive();
    sleep(5 * SECOND).await;
    let recorded = timeout(10 * SECOND, replica.note("a")).await;
    assert_eq!(recorded, Ok(true), "the start is recorded");
    assert!(replica.recorder.ends().is_empty(), "the lease may be over");
    replica.holder.doubt(false);
    sleep(10 * SECOND).await;
    assert_eq!(replica.recorder.ended(), ["a deleted"; 4]);
    assert_eq!(replica.recorder.starts().len(), 1);
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn g16_a_holder_that_dies_over_an_end_for_all_has_it_delivered_once_by_one_that_goes_on() {
    let store = Store::default();
    let goes_on = Replica::new(&store);
    goes_on.note("a").await;
    let dies = ActiveSessions::builder().registry(store.holder()).on_session_end(|_: SessionEnd| pending::<()>());
    let holder = store.holder();
    let dies = dies.registry(holder.clone()).build().unwrap();
    dies.note("a").recorded().await;
    dies.end("a", EndReason::Deleted);
    sleep(Duration::from_millis(10)).await;
    holder.kill();
    holder.set(Fault::Hangs);
    let driver = goes_on.drive();
    sleep(3 * SECOND).await;
    assert_eq!(goes_on.recorder.ended(), ["a deleted"]);
    assert!(goes_on.sessions.is_empty(), "an end for all is one for this replica too");
    driver.abort();
    let report = goes_on.sessions.drain(EndReason::Shutdown).await;
    assert!(report.is_clean(), "{report}");
    assert_sum(&report);
    assert_eq!(goes_on.recorder.order("a"), "+-");
}

#[tokio::test(start_paused = true)]
async fn g02_a_start_that_runs_is_awaited_although_others_end_its_session() {
    let store = Store::default();
    let other = Replica::new(&store);
    let (recorder, holder) = (Recorder::default(), store.holder());
    let starts = recorder.clone();
    let sessions = ActiveSessions::builder()
        .registry(holder)
        .on_session_start(move |start| {
            let starts = starts.clone();
            async move {
                sleep(SECOND).await;
                starts.push(crate::support::recorder::Event::Start(start));
            }
        })
        .build()
        .unwrap();
    sessions.note("a").recorded().await;
    other.note("a").await;
    let report = sessions.finish(async {}).await.report;
    assert_eq!(report.sessions.held_elsewhere, 1);
    assert_eq!(recorder.started(), ["a"], "torn from the middle, by a stop that said it was clean");
}

#[tokio::test(start_paused = true)]
async fn a_drain_hears_of_the_last_end_that_another_one_sets_free() {
    let store = Store::default();
    let other = Replica::new(&store);
    other.note("next").await;
    let sessions =
        ActiveSessions::builder().registry(store.holder()).on_session_start(|_| sleep(SECOND / 10)).build().unwrap();
    sessions.note("old").recorded().await;
    sessions.compact("old", "next");
    let begun = Instant::now();
    let report = sessions.drain(EndReason::Shutdown).await;
    assert!(begun.elapsed() < SECOND, "{:?}: {report}", begun.elapsed());
    assert_eq!((report.ended, report.held_elsewhere), (1, 1), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_recovery_does_not_wait_for_what_others_deliver() {
    let store = Store::default();
    Replica::dead(&store, ["a".to_owned()]).await;
    let holder = store.holder();
    let killer = Arc::new(Mutex::new(Some(holder.clone())));
    let sessions = ActiveSessions::builder()
        .registry(holder)
        .recovery_timeout(Duration::MAX)
        .max_concurrent_hooks(1)
        .on_session_end(move |_: SessionEnd| {
            // While the first one is delivered, the lease runs out.
            killer.lock().unwrap().take().into_iter().for_each(|holder| holder.kill());
            ready(())
        })
        .build()
        .unwrap();
    let report = timeout(3600 * SECOND, sessions.recover()).await.expect("a recovery that never ends");
    // The other one was let go of, and found again under the new lease.
    assert_eq!((report.unfinished, report.found - report.ended), (1, 1), "{report}");
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_kept_during_a_long_drain_and_a_long_recovery() {
    let store = Store::default();
    Replica::dead(&store, None).await;
    let (recorder, holder) = (Recorder::default(), store.holder());
    let slow = recorder.slow_builder(|_| 20 * SECOND).recovery_timeout(60 * SECOND).drain_timeout(60 * SECOND);
    let sessions = slow.registry(holder.clone()).build().unwrap();
    assert_eq!(sessions.recover().await.ended, 1);
    let beats = holder.beats.load(Ordering::SeqCst);
    assert!(beats >= 15, "{beats} beats in 20 s of a recovery");
    sessions.note("a").recorded().await;
    assert_eq!(sessions.drain(EndReason::Shutdown).await.ended, 1);
    let beats = holder.beats.load(Ordering::SeqCst) - beats;
    assert!(beats >= 15, "{beats} beats in 20 s of a drain");
}

#[tokio::test(start_paused = true)]
async fn g01_a_claim_that_is_made_again_does_not_take_the_next_generation_for_a_stranger() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("a").await;
    replica.holder.doubt(true);
    replica.sessions.end("a", EndReason::Deleted);
    sleep(Duration::from_millis(10)).await;
    // Withheld. The store forgets it, and while that comes to light the id is noted again, and its hold on the way.
    store.flush();
    replica.holder.set(Fault::Slow);
    let driver = replica.drive();
    tokio::task::yield_now().await;
    replica.sessions.note("a");
    sleep(SECOND / 10).await;
    replica.holder.doubt(false);
    sleep(10 * SECOND).await;
    replica.holder.set(Fault::None);
    assert!(replica.sessions.contains("a"));
    driver.abort();
    assert!(replica.sessions.drain(EndReason::Shutdown).await.is_clean());
    assert_eq!(replica.recorder.ended(), ["a deleted", "a shutdown"]);
    assert_eq!(replica.recorder.order("a"), "+-+-");
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g16_a_session_that_has_joined_the_record_that_its_process_ends_goes_on_as_a_new_generation() {
    let store = Store::default();
    let (other, replica) = (Replica::new(&store), Replica::new(&store));
    other.note("a").await;
    replica.note("a").await;
    replica.holder.doubt(true);
    replica.sessions.end("a", EndReason::Deleted);
    sleep(SECOND / 100).await;
    // The end waits for a certain lease. The store forgets it, and the other replica records the session again.
    store.flush();
    other.note("b").await;
    sleep(SECOND / 100).await;
    replica.sessions.note("a");
    sleep(SECOND / 100).await;
    replica.holder.doubt(false);
    let driver = replica.drive();
    sleep(5 * SECOND).await;
    assert!(replica.sessions.contains("a"));
    assert_eq!(store.active(), ["a", "b"], "the session has a record");
    assert_eq!(replica.recorder.order("a"), "-+");
    driver.abort();
    assert!(replica.sessions.drain(EndReason::Shutdown).await.is_clean());
    assert_eq!(replica.recorder.order("a"), "-+-");
    replica.recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn g16_letting_go_of_a_strangers_record_does_not_let_go_of_the_session_that_has_joined_it() {
    let store = Store::default();
    let (replica, other) = (Replica::new(&store), Replica::new(&store));
    replica.note("a").await;
    store.flush();
    other.note("a").await;
    // The first one was recorded, and is no more: it ends under its own name. The next one joins what is there.
    replica.sessions.end("a", EndReason::Deleted);
    replica.note("a").await;
    sleep(SECOND).await;
    assert_eq!(replica.recorder.ended(), ["a deleted"]);
    let report = other.sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.held_elsewhere), (0, 1), "{report}");
    assert_eq!(replica.sessions.drain(EndReason::Shutdown).await.ended, 1);
    assert_eq!(replica.recorder.ended(), ["a deleted", "a shutdown"]);
    assert_eq!(replica.recorder.ends()[1].generation, other.recorder.starts()[0].generation);
    assert!(store.events().is_empty());
}
