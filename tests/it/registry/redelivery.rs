//! Ends whose hooks fail: they are delivered again, and then kept as dead letters.

use std::{
    future::{pending, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tower_session_end::{ActiveSessions, EndReason, GenerationId, SessionEnd};

use crate::support::{
    replica::Replica,
    store::{Fault, Holder, Store},
};

const SECOND: Duration = Duration::from_secs(1);

/// The calls of a hook that fails so many times for each end.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<(GenerationId, Instant)>>>);

impl Calls {
    fn hook(&self, failures: usize) -> impl Fn(SessionEnd) -> std::future::Ready<Result<(), &'static str>> + use<> {
        let calls = self.clone();
        move |end| {
            let mut calls = calls.0.lock().unwrap();
            let before = calls.iter().filter(|(generation, _)| *generation == end.generation).count();
            calls.push((end.generation, Instant::now()));
            ready(if before < failures { Err("not yet") } else { Ok(()) })
        }
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The seconds between two calls.
    fn pauses(&self) -> Vec<u64> {
        let calls = self.0.lock().unwrap();
        calls.windows(2).map(|pair| (pair[1].1 - pair[0].1).as_secs()).collect()
    }
}

fn build(store: &Store, calls: &Calls, failures: usize) -> (ActiveSessions, Holder) {
    let holder = store.holder();
    let builder = ActiveSessions::builder().registry(holder.clone()).on_session_end(calls.hook(failures));
    (builder.build().unwrap(), holder)
}

#[tokio::test(start_paused = true)]
async fn g15_a_hook_that_errs_is_called_again_after_1_2_4_and_8_seconds() {
    let (store, calls) = (Store::default(), Calls::default());
    let (sessions, _) = build(&store, &calls, 4);
    assert!(sessions.note("a").recorded().await);
    sessions.end("a", EndReason::Deleted);
    sleep(60 * SECOND).await;
    assert_eq!(calls.pauses(), [1, 2, 4, 8]);
    assert!(store.events().is_empty(), "it is delivered");
    assert!(store.dead_letters().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g15_after_five_errors_an_end_is_a_dead_letter_until_an_operator_asks_for_it() {
    let (store, calls) = (Store::default(), Calls::default());
    let (sessions, _) = build(&store, &calls, 5);
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    assert!(sessions.note("a").recorded().await);
    sessions.end("a", EndReason::Deleted);
    sleep(600 * SECOND).await;
    assert_eq!(calls.count(), 5);
    let letters = store.dead_letters();
    assert_eq!((letters.len(), letters[0].attempts, letters[0].error.as_str()), (1, 5, "not yet"));
    assert_eq!(letters[0].end.reason, EndReason::Deleted);
    // No later process delivers it, and each says that it is there.
    let next = Replica::new(&store);
    let report = next.sessions.recover().await;
    assert_eq!((report.found, report.dead_letters), (0, 1), "{report}");
    assert!(!report.is_clean());

    assert!(store.redeliver(letters[0].record.generation));
    sleep(5 * SECOND).await;
    assert_eq!(calls.count() + next.ends().len(), 6);
    assert!(store.events().is_empty());
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn g15_only_the_hooks_that_failed_are_called_again() {
    let (store, calls) = (Store::default(), Calls::default());
    let batches = Arc::new(AtomicUsize::new(0));
    let (good, bad, batch) = (Arc::new(AtomicUsize::new(0)), calls.hook(2), Arc::clone(&batches));
    let count = Arc::clone(&good);
    let sessions = ActiveSessions::builder()
        .registry(store.holder())
        .on_session_end(move |_: SessionEnd| {
            count.fetch_add(1, Ordering::SeqCst);
            ready(())
        })
        .on_session_end(bad)
        .on_session_end_batch(10, move |_: Vec<SessionEnd>| {
            let calls = batch.fetch_add(1, Ordering::SeqCst);
            ready(if calls == 0 { Err("not yet") } else { Ok(()) })
        })
        .build()
        .unwrap();
    assert!(sessions.note("a").recorded().await);
    sessions.end("a", EndReason::Deleted);
    sleep(60 * SECOND).await;
    let calls = (good.load(Ordering::SeqCst), calls.count(), batches.load(Ordering::SeqCst));
    assert_eq!(calls, (1, 3, 2));
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g15_of_1000_recovered_ends_whose_hook_errs_at_first_none_is_lost() {
    let (store, calls) = (Store::default(), Calls::default());
    Replica::dead(&store, (1..1000).map(|n| format!("s{n}"))).await;
    let (sessions, _) = build(&store, &calls, 1);
    let report = sessions.recover().await;
    assert_eq!((report.found, report.ended, report.failed), (1000, 0, 1000), "{report}");
    assert_eq!(store.owed().len() + store.active().len(), 1000);
    sleep(5 * SECOND).await;
    assert_eq!(calls.count(), 2000);
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g15_a_redelivery_that_a_stop_cuts_short_is_made_by_the_next_process() {
    let (store, calls) = (Store::default(), Calls::default());
    let (sessions, _) = build(&store, &calls, 2);
    assert!(sessions.note("a").recorded().await);
    sessions.end("a", EndReason::Deleted);
    sleep(SECOND / 2).await;
    let report = sessions.finish(async {}).await.report;
    assert_eq!(calls.count(), 1, "{report}");
    drop(sessions);
    sleep(60 * SECOND).await;
    assert_eq!(calls.count(), 1, "after `finish` no hook is called");
    let (next, _) = build(&store, &calls, 2);
    assert_eq!(next.recover().await.failed, 1);
    sleep(60 * SECOND).await;
    // Its second call was counted by the first process's record, so the next pause is that after two.
    assert_eq!(calls.count(), 3);
    assert_eq!(calls.pauses()[1], 2);
    assert!(store.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g15_recoveries_that_call_no_hook_count_no_attempt() {
    let store = Store::default();
    Replica::dead(&store, (1..1000).map(|n| format!("s{n}"))).await;
    for _ in 0..8 {
        let holder = store.holder();
        let sessions = ActiveSessions::builder()
            .registry(holder.clone())
            .recovery_timeout(SECOND)
            .max_concurrent_hooks(4)
            .on_session_end(|_: SessionEnd| pending::<()>())
            .build()
            .unwrap();
        assert_eq!(sessions.recover().await.found, 1000 - store.dead_letters().len() as u64);
        holder.kill();
    }
    // Of each process the hooks of four ends were called at most.
    assert!(store.dead_letters().len() <= 8 * 4 / 5, "{}", store.dead_letters().len());
    let next = Replica::new(&store);
    let report = next.sessions.recover().await;
    assert_eq!(report.ended + report.dead_letters, 1000, "{report}");
}

#[tokio::test(start_paused = true)]
async fn g15_an_end_whose_hook_ends_the_process_five_times_is_a_dead_letter() {
    let store = Store::default();
    Replica::dead(&store, None).await;
    for calls in 1..=8 {
        let holder = store.holder();
        let sessions = ActiveSessions::builder()
            .registry(holder.clone())
            .recovery_timeout(SECOND)
            .on_session_end(|_: SessionEnd| pending::<()>())
            .build()
            .unwrap();
        let report = sessions.recover().await;
        assert_eq!((report.found, report.dead_letters), if calls <= 5 { (1, 0) } else { (0, 1) }, "{calls}");
        holder.kill();
    }
    assert_eq!(store.dead_letters()[0].attempts, 5);
}

#[tokio::test(start_paused = true)]
async fn g15_a_recovered_end_whose_lease_is_lost_while_its_call_is_counted_is_left_to_others() {
    let store = Store::default();
    Replica::dead(&store, ["a".to_owned()]).await;
    let replica = Replica::new(&store);
    replica.holder.set(Fault::Slow);
    let driver = replica.drive();
    // The first change is the count of the calls.
    let is_counting = async {
        while replica.holder.calls.load(Ordering::SeqCst) == 0 {
            sleep(SECOND / 1000).await;
        }
    };
    tokio::time::timeout(10 * SECOND, is_counting).await.expect("the ends are recovered");
    replica.holder.kill();
    let survivor = Replica::new(&store);
    assert_eq!(survivor.sessions.recover().await.ended, 2);
    sleep(10 * SECOND).await;
    assert_eq!((replica.ends().len(), survivor.ends().len()), (0, 2));
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn g15_a_fenced_process_delivers_nothing_again_that_others_have_recovered() {
    let (store, calls) = (Store::default(), Calls::default());
    let (sessions, holder) = build(&store, &calls, 1);
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    assert!(sessions.note("a").recorded().await);
    sessions.end("a", EndReason::Deleted);
    sleep(SECOND / 2).await;
    holder.kill();
    let survivor = Replica::new(&store);
    assert_eq!(survivor.sessions.recover().await.ended, 1);
    sleep(60 * SECOND).await;
    assert_eq!((calls.count(), survivor.ends().len()), (1, 1));
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn with_redelivery_off_a_failed_end_counts_as_delivered() {
    let (store, calls) = (Store::default(), Calls::default());
    let builder = ActiveSessions::builder().registry(store.holder()).redeliver_failed(false);
    let sessions = builder.on_session_end(calls.hook(9)).build().unwrap();
    assert!(sessions.note("a").recorded().await);
    assert_eq!(sessions.drain(EndReason::Shutdown).await.failed, 1);
    sleep(60 * SECOND).await;
    assert_eq!(calls.count(), 1);
    assert!(store.events().is_empty());
}
