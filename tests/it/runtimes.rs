//! Runtimes that shut down while hooks are queued.

use crate::support::Recorder;
use crate::support::assert_sum;
use crate::support::store::Fault;
use crate::support::store::Store;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::sleep;
use tower_session_end::ActiveSessions;
use tower_session_end::ActiveSessionsBuilder;
use tower_session_end::EndReason;
use tower_session_end::Phase;

/// A handle with a recorder.
fn with(set: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder) -> (Recorder, ActiveSessions) {
    let recorder = Recorder::default();
    let sessions = set(recorder.builder()).build().unwrap();
    (recorder, sessions)
}

#[test]
fn an_end_goes_to_the_callers_runtime_once_the_remembered_one_is_gone() {
    let rt1 = tokio::runtime::Runtime::new().unwrap();
    let ended = Arc::new(AtomicUsize::new(0));
    let sessions = rt1.block_on(async {
        let ended = ended.clone();
        ActiveSessions::builder()
            .on_session_end(move |_| {
                ended.fetch_add(1, Ordering::SeqCst);
                async {}
            })
            .build()
            .unwrap()
    });
    drop(rt1);
    let rt2 = tokio::runtime::Runtime::new().unwrap();
    rt2.block_on(async {
        sessions.note("a");
        assert!(sessions.end("a", EndReason::Reset));
        for _ in 0..10_000 {
            if ended.load(Ordering::SeqCst) > 0 {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
    });
    assert_eq!(
        ended.load(Ordering::SeqCst),
        1,
        "called in a live runtime, and the hook is parked without anybody to come for it"
    );
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn g05_a_runtime_that_is_shut_down_in_the_middle_of_a_drain_loses_no_end() {
    let runtimes = || {
        [
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        ]
    };
    for fault in [Fault::None, Fault::Hangs] {
        for (first, second) in runtimes().into_iter().zip(runtimes()) {
            let store = Store::default();
            let holder = store.holder();
            let recorder = Recorder::default();
            let sessions = first.block_on(async {
                let slow =
                    recorder.slow_builder(|end| if end.session.id == "slow" { 3600 * SECOND } else { SECOND / 100 });
                let slow = slow.registry(holder.clone()).max_concurrent_hooks(2).drain_timeout(SECOND / 2);
                let sessions = slow.build().unwrap();
                for n in 0..50 {
                    sessions.note(format!("{n}"));
                }
                sessions.note("slow").recorded().await;
                holder.set(fault);
                let drain = tokio::spawn({
                    let sessions = sessions.clone();
                    async move { sessions.drain(EndReason::Restart).await }
                });
                while sessions.phase() < Phase::Closing {
                    tokio::task::yield_now().await;
                }
                sleep(SECOND / 20).await;
                drop(drain);
                sessions
            });
            first.shutdown_background();
            holder.set(Fault::None);
            let report = second.block_on(async { sessions.drain(EndReason::Shutdown).await });
            assert_sum(&report);
            // The one whose hook was torn from the middle stays on record, for whoever comes next.
            recorder.assert_no_generation_ended_twice();
            let ended = recorder.ends().len();
            let left = report.unfinished.len();
            assert_eq!(ended + left, 51, "{fault:?}: {report}");
            assert!(recorder.ends().iter().all(|end| end.reason == EndReason::Restart));
            holder.kill();
            let next = second.block_on(async {
                let (recorder, sessions) = with(|builder| builder.registry(store.holder()));
                let _ = sessions.recover().await;
                recorder.ends().len()
            });
            assert!(next <= left && ended + next >= 50, "{ended} here, {next} by the next one");
        }
    }
}
