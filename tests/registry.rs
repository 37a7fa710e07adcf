//! What the handle does with a registry: order with hooks, recovery, replicas, degrading.

#[path = "support/recorder.rs"]
mod recorder;
#[path = "support/store.rs"]
mod store;

use std::{
    convert::Infallible,
    future::{pending, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use recorder::{Recorder, assert_sum};
use store::{Fault, Holder, Store};
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, EndReason, Session, SessionEnd, registry::Durability};

/// Two replicas on one store, each with its recorder.
struct Replica {
    sessions: ActiveSessions,
    recorder: Recorder,
    holder: Holder,
}

impl Replica {
    fn new(store: &Store) -> Self {
        Self::with(store, |builder| builder)
    }

    fn with(store: &Store, f: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder) -> Self {
        let (recorder, holder) = (Recorder::default(), store.holder());
        let sessions = f(recorder.builder().registry(holder.clone())).build().unwrap();
        Self { sessions, recorder, holder }
    }

    async fn note(&self, id: &str) -> bool {
        self.sessions.note(id).durable().await
    }

    fn ends(&self) -> Vec<(String, EndReason)> {
        self.recorder.ends().iter().map(|end| (end.session.id.to_string(), end.reason)).collect()
    }
}

/// One response that carries a new id; says how long its head took.
async fn birth(sessions: &ActiveSessions, id: &str) -> Duration {
    let id = id.to_owned();
    let host = service_fn(move |_: Request<()>| {
        ready(Ok::<_, Infallible>(Response::builder().header("x-session-id", &id).body(Empty::<Bytes>::new()).unwrap()))
    });
    let begun = Instant::now();
    let response = sessions.layer().layer(host).oneshot(Request::post("/").body(()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    begun.elapsed()
}

fn ended(id: &str, reason: EndReason) -> (String, EndReason) {
    (id.to_owned(), reason)
}

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
    assert_eq!((report.ended, report.active, report.running), (2, 1, 1));
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
    sessions.note("a").durable().await;
    sessions.end("a", EndReason::Deleted);
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
    assert_eq!(*seen.lock().unwrap(), ["start, [\"a\"] on record", "end, [Deleted] owed"]);
}

#[tokio::test(start_paused = true)]
async fn g15_the_next_start_ends_what_a_killed_process_held_as_lost() {
    let store = Store::default();
    let killed = Replica::new(&store);
    killed.sessions.note(Session::from("a").with_attribute("tenant", "acme")).durable().await;
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
    assert_eq!(lost.event_id, first.event_id);
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
    sessions.note("hangs").durable().await;
    let report = sessions.drain(EndReason::Restart).await;
    assert_eq!(report.unfinished.len(), 1);
    holder.kill();

    let next = Replica::new(&store);
    assert_eq!(next.sessions.recover().await.ended, 1);
    assert_eq!(next.ends(), [ended("hangs", EndReason::Restart)]);
    assert_eq!(next.recorder.ends()[0].event_id, report.unfinished[0].event_id);
}

#[tokio::test(start_paused = true)]
async fn g15_an_end_whose_hook_errs_is_delivered_and_failed_and_one_that_never_ends_is_tried_five_times() {
    let store = Store::default();
    let failing = ActiveSessions::builder()
        .registry(store.holder())
        .on_session_end(|_: SessionEnd| ready(Err::<(), _>("no")))
        .build()
        .unwrap();
    failing.note("fails");
    assert_eq!(failing.drain(EndReason::Shutdown).await.failed, 1);
    assert!(store.owed().is_empty());

    let calls = Arc::new(Mutex::new(Vec::new()));
    let hanging = || {
        let (holder, calls) = (store.holder(), calls.clone());
        let sessions = ActiveSessions::builder()
            .registry(holder.clone())
            .recovery_timeout(Duration::from_millis(100))
            .on_session_end(move |end: SessionEnd| {
                calls.lock().unwrap().push(end.event_id);
                pending::<()>()
            })
            .build()
            .unwrap();
        (sessions, holder)
    };
    let (sessions, holder) = hanging();
    sessions.note("hangs").durable().await;
    let _ = sessions.drain(EndReason::Shutdown).await;
    holder.kill();
    let mut given_up = 0;
    for _ in 0..8 {
        let (sessions, holder) = hanging();
        given_up += sessions.recover().await.given_up;
        let _ = sessions.drain(EndReason::Shutdown).await;
        holder.kill();
    }
    assert_eq!(given_up, 1);
    let calls = calls.lock().unwrap();
    assert_eq!(calls.len(), 1 + 5);
    assert!(calls.iter().all(|event| *event == calls[0]));
    assert!(store.owed().is_empty());
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
    let events: Vec<_> = recorder.ends().iter().map(|end| end.event_id).collect();
    assert_ne!(events[0], events[1]);
}

#[tokio::test(start_paused = true)]
async fn g16_a_session_of_two_replicas_ends_with_the_last_that_lets_go() {
    let store = Store::default();
    let (one, two) = (Replica::new(&store), Replica::new(&store));
    one.note("a").await;
    two.note("a").await;
    assert!(two.recorder.starts().is_empty(), "it was there already");

    let report = one.sessions.drain(EndReason::Restart).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.ended, report.held_by_others), (0, 1));
    assert_sum(&report);
    assert!(one.ends().is_empty());

    let report = two.sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.held_by_others), (1, 0));
    assert_eq!(two.ends(), [ended("a", EndReason::Shutdown)]);
    assert_eq!(two.recorder.ends()[0].event_id, one.recorder.starts()[0].event_id);
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
    assert_eq!((report.ended, report.ended_by_others), (0, 1));
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
    let guard = away.sessions.guard("guarded");
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
        assert!(lost.iter().all(|lost| lost.event_id != end.event_id), "a new generation has a name of its own");
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
            ends.push(recorder::Event::End(end));
            // While the first end is delivered, the lease runs out.
            if !first.swap(true, Ordering::SeqCst) {
                killer.kill();
            }
            ready(())
        })
        .build()
        .unwrap();
    for id in ["a", "b", "c"] {
        sessions.note(id).durable().await;
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
    assert!(survivor.recorder.ends().iter().any(|end| end.event_id == recorder.ends()[0].event_id));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_emptied_is_filled_again_before_it_is_believed() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("a").await;
    replica.note("b").await;
    store.flush();
    let report = replica.sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.ended_by_others), (2, 0), "{report}");
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
    tokio::time::sleep(Duration::from_secs(5)).await;
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
    replica.sessions.note(Session::from("b").with_key("k")).durable().await;
    let before = replica.holder.calls.load(Ordering::SeqCst);
    for _ in 0..100 {
        birth(&replica.sessions, "a").await;
        replica.sessions.note(Session::from("b").with_key("k"));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(replica.holder.calls.load(Ordering::SeqCst), before);
    replica.sessions.note(Session::from("b").with_key("other"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(replica.holder.calls.load(Ordering::SeqCst), before + 1);
}

#[tokio::test(start_paused = true)]
async fn g17_an_ordinary_end_is_delivered_while_the_registry_is_down_and_not_again_afterwards() {
    let store = Store::default();
    let replica = Replica::new(&store);
    replica.note("a").await;
    replica.holder.set(Fault::Down);
    replica.sessions.end("a", EndReason::Reset);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(replica.ends(), [ended("a", EndReason::Reset)]);
    // The same id again, while it is still down: another generation, and another name.
    replica.note("a").await;
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
    let replica = Replica::with(&store, |builder| builder.hand_over(false));
    replica.note("recorded").await;
    replica.holder.set(Fault::Down);
    let report = replica.sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.handed_over), (1, 0), "{report}");
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
    assert!(replica.sessions.compact("old", "new"));
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
    assert!(!tower_session_end::registry::Registry::is_current(&one.holder));
    assert_eq!(survivor.sessions.recover().await.found, 0);
}
