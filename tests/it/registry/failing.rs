//! Registries that panic, lie, hang or take no changes, and runtimes that go away under them.

use std::{
    future::{pending, ready},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use super::support::birth;
use crate::support::recorder::{Recorder, assert_sum};
use crate::support::replica::Replica;
use crate::support::store::{Fault, Holder, Store};
use tokio::time::{Instant, sleep, timeout};
use tower_session_end::{
    EndReason,
    registry::{Applied, Change, Heartbeat, Orphan, Registry, RegistryError},
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn g17_a_registry_that_panics_or_answers_with_too_little_is_as_one_that_is_down() {
    for fault in [Fault::Panics, Fault::Short, Fault::Fenced] {
        let store = Store::default();
        let replica = Replica::new(&store);
        replica.note("recorded").await;
        replica.holder.set(fault);
        let driver = replica.drive();
        let begun = Instant::now();
        // Its record was sent, so it may exist.
        birth(&replica.sessions, "sent").await;
        sleep(SECOND / 10).await;
        birth(&replica.sessions, "unrecorded").await;
        replica.sessions.end("unrecorded", EndReason::Reset);
        sleep(3 * SECOND).await;
        assert_eq!(replica.recorder.ended(), ["unrecorded reset"], "{fault:?}");
        assert!(replica.sessions.is_degraded(), "{fault:?}");
        assert!(!driver.is_finished(), "the driver panicked");
        let report = replica.sessions.recover().await;
        assert!(report.error.is_some() || fault == Fault::Short, "{report}");
        driver.abort();
        let report = replica.sessions.drain(EndReason::Shutdown).await;
        assert!(begun.elapsed() < 8 * SECOND, "{fault:?}: {:?}", begun.elapsed());
        assert_sum(&report);
        assert_eq!(
            (report.ended + report.ended_elsewhere + report.handed_over, report.unfinished.len()),
            (2, 0),
            "{report}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn g10_g17_finish_is_back_in_its_budget_whatever_the_registry_does() {
    for fault in [Fault::Hangs, Fault::Panics, Fault::Down, Fault::Slow, Fault::Fenced, Fault::ReadOnly] {
        for server_ends in [true, false] {
            let store = Store::default();
            let replica = Replica::new(&store);
            replica.note("a").await;
            replica.holder.set(fault);
            replica.sessions.note("b");
            let shutdown = replica.sessions.shutdown_on(ready(()));
            let begun = Instant::now();
            let server = async {
                shutdown.await;
                if !server_ends {
                    pending::<()>().await;
                }
            };
            let report = replica.sessions.finish(server).await.report;
            let took = begun.elapsed();
            assert!(took <= 12 * SECOND + Duration::from_millis(50), "{fault:?}: {took:?}");
            assert!(!server_ends || took <= 5 * SECOND, "{fault:?}: {took:?}");
            assert_sum(&report.sessions);
            assert!(report.sessions.unfinished.is_empty(), "{fault:?}: {report}");
        }
    }
}

/// A registry that is itself a fault: it panics where only a value is asked for, and in the drop of its futures.
struct Panicking(Holder);

/// Where it is armed.
struct PanicsOnDrop(bool);

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        if self.0 && !std::thread::panicking() {
            panic!("dropped");
        }
    }
}

impl Registry for Panicking {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        let answers = self.0.apply(changes).await;
        let hangs = answers.as_ref().is_ok_and(|answers| answers.contains(&Applied::Ok));
        let _armed = PanicsOnDrop(hangs);
        if hangs {
            pending::<()>().await;
        }
        answers
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        self.0.heartbeat().await
    }

    // Not even a future.
    #[allow(clippy::manual_async_fn)]
    fn claim_orphans(&self, _: usize) -> impl Future<Output = Result<Vec<Orphan>, RegistryError>> + Send {
        if true {
            panic!("no future for you");
        }
        ready(Ok(Vec::new()))
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        panic!("it will not leave")
    }

    fn lease_is_valid(&self) -> bool {
        panic!("who knows")
    }
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_panics_everywhere_keeps_no_end_from_being_delivered() {
    let store = Store::default();
    let recorder = Recorder::default();
    let sessions = recorder.builder().registry(Panicking(store.holder())).build().unwrap();
    assert!(sessions.recover().await.error.unwrap().contains("no future for you"));
    assert!(sessions.note("a").recorded().await || sessions.is_degraded());
    sessions.note("b");
    sessions.end("a", EndReason::Reset);
    sleep(SECOND).await;
    let report = sessions.finish(async {}).await.report;
    assert_sum(&report.sessions);
    assert_eq!(recorder.ended(), ["a reset", "b shutdown"]);
}

/// It answers no change, and writes down the deadline of each call, and when the call was dropped.
struct Silent {
    holder: Holder,
    calls: Arc<Mutex<Vec<[std::time::Instant; 2]>>>,
}

impl Registry for Silent {
    async fn apply(&self, _: Vec<Change>) -> Result<Vec<Applied>, RegistryError> {
        panic!("called without a deadline")
    }

    async fn apply_before(&self, _: Vec<Change>, deadline: std::time::Instant) -> Result<Vec<Applied>, RegistryError> {
        struct OnDrop<F: FnMut()>(F);
        impl<F: FnMut()> Drop for OnDrop<F> {
            fn drop(&mut self) {
                self.0();
            }
        }
        let _on_drop = OnDrop(|| self.calls.lock().unwrap().push([deadline, std::time::Instant::now()]));
        pending().await
    }

    async fn heartbeat(&self) -> Result<Heartbeat, RegistryError> {
        self.holder.heartbeat().await
    }

    async fn claim_orphans(&self, max: usize) -> Result<Vec<Orphan>, RegistryError> {
        self.holder.claim_orphans(max).await
    }

    async fn release_lease(&self) -> Result<(), RegistryError> {
        self.holder.release_lease().await
    }
}

#[tokio::test]
async fn g15_a_call_is_not_given_up_before_its_deadline() {
    let (recorder, calls) = (Recorder::default(), Arc::default());
    let registry = Silent { holder: Store::default().holder(), calls: Arc::clone(&calls) };
    let sessions = recorder.builder().registry(registry).drain_timeout(SECOND).build().unwrap();
    sessions.note("a");
    let begun = std::time::Instant::now();
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_sum(&report);
    let calls = calls.lock().unwrap();
    assert!(calls.len() > 1, "{calls:?}");
    for [deadline, dropped] in &calls[..] {
        assert!(deadline <= dropped, "{:?} too early", *deadline - *dropped);
        assert!(*deadline > begun);
    }
}

#[tokio::test(start_paused = true)]
async fn g17_a_registry_that_answers_but_takes_no_changes_is_degraded_once_and_tried_ever_more_rarely() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("a").await;
    replica.holder.set(Fault::ReadOnly);
    let driver = replica.drive();
    let before = replica.holder.calls.load(Ordering::SeqCst);
    for n in 0..600 {
        replica.sessions.note(format!("s{n}"));
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(replica.sessions.degradations(), 1);
    let calls = replica.holder.calls.load(Ordering::SeqCst) - before;
    assert!(calls <= 130, "{calls} attempts in a minute");
    replica.holder.set(Fault::None);
    sleep(10 * SECOND).await;
    assert!(!replica.sessions.is_degraded());
    assert_eq!(store.active().len(), 601);
    driver.abort();
    assert!(replica.sessions.drain(EndReason::Shutdown).await.is_clean());
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g17_births_are_recorded_while_a_take_over_of_many_goes_on() {
    let store = Store::default();
    Replica::dead(&store, (0..4000).map(|n| format!("lost-{n}"))).await;
    let replica = Replica::with(&store, |builder| builder.recovery_timeout(100 * SECOND));
    replica.holder.set(Fault::Slow);
    let recovery = tokio::spawn({
        let sessions = replica.sessions.clone();
        async move { sessions.recover().await }
    });
    sleep(SECOND).await;
    let begun = Instant::now();
    assert!(replica.note("new").await);
    assert!(begun.elapsed() <= 3 * SECOND, "{:?}", begun.elapsed());
    assert!(!recovery.is_finished());
    let report = recovery.await.unwrap();
    assert_eq!((report.found, report.ended), (4001, 4001), "{report}");
}

#[test]
fn a_record_goes_to_the_callers_runtime_once_the_remembered_one_is_gone() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store = Store::default();
    let first = runtime();
    let replica = first.block_on(async { Replica::new(&store) });
    drop(first);
    // The same from a thread with no runtime at all: it waits.
    replica.sessions.note("parked");
    assert!(store.active().is_empty());
    runtime().block_on(async {
        assert!(timeout(20 * SECOND, replica.note("a")).await.expect("nobody writes it"));
        assert_eq!(store.active(), ["a", "parked"]);
        replica.sessions.end("a", EndReason::Reset);
        for _ in 0..10_000 {
            if !replica.recorder.ends().is_empty() {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
    });
    assert_eq!(replica.recorder.ended(), ["a reset"]);
}

#[tokio::test(start_paused = true)]
async fn g11_a_drain_after_finish_does_not_wait_for_a_registry_that_was_left() {
    let store = Store::default();
    let replica = Replica::with(&store, |builder| builder.drain_timeout(Duration::MAX));
    replica.note("a").await;
    replica.holder.set(Fault::Hangs);
    let cut = async { tower_session_end::signal::ShutdownRequest::new(EndReason::Shutdown).forced_by(ready(())) };
    let shutdown = tokio::spawn(replica.sessions.shutdown_on(cut));
    let _ = replica.sessions.finish(pending::<()>()).await.report;
    shutdown.await.unwrap();
    replica.sessions.end("a", EndReason::Reset);
    let report = timeout(3600 * SECOND, replica.sessions.drain(EndReason::Shutdown)).await;
    assert_sum(&report.expect("a drain that never ends"));
}

#[tokio::test(start_paused = true)]
async fn g17_thousands_of_unrecorded_sessions_are_delivered_in_time_though_the_registry_hangs() {
    let store = Store::default();
    let (recorder, holder) = (Recorder::default(), store.holder());
    let slow = recorder.slow_builder(|_| Duration::from_millis(10));
    let sessions = slow.registry(holder.clone()).build().unwrap();
    holder.set(Fault::Hangs);
    sessions.note("first").recorded().await;
    for n in 0..5000 {
        sessions.note(format!("{n}"));
    }
    let begun = Instant::now();
    let report = sessions.drain(EndReason::Shutdown).await;
    assert!(begun.elapsed() <= 2 * SECOND, "{:?}", begun.elapsed());
    assert_eq!((report.ended, report.unfinished.len()), (5001, 0), "{report}");
}
