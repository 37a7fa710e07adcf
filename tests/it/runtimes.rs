//! Runtimes that shut down while hooks are queued.

use crate::support::Recorder;
use crate::support::assert_sum;
use crate::support::logging::Warnings;
use crate::support::store::Fault;
use crate::support::store::Store;
use crate::support::within;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::sleep;
use tower_session_end::ActiveSessions;
use tower_session_end::ActiveSessionsBuilder;
use tower_session_end::BuildError;
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

/// With I/O, and without a timer.
fn without_timer() -> Vec<tokio::runtime::Runtime> {
    [tokio::runtime::Builder::new_multi_thread().worker_threads(2), &mut tokio::runtime::Builder::new_current_thread()]
        .map(|builder| builder.enable_io().build().unwrap())
        .into()
}

fn with_timer() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn g05_a_runtime_without_a_timer_loses_no_end_and_is_told_once() {
    for untimed in without_timer() {
        let warnings = Warnings::default();
        let _logging = warnings.listen();
        // Built outside of a runtime.
        let recorder = Recorder::default();
        let sessions = recorder
            .builder()
            .on_session_end_batch(10, |_| async { Err::<(), _>("every batch fails") })
            .build()
            .unwrap();
        let layer = sessions.layer();
        untimed.block_on(async {
            let _service = tower_layer::Layer::layer(&layer, ());
            for id in ["a", "b", "c"] {
                sessions.note(id);
            }
            sessions.end("a", EndReason::Reset);
            let elsewhere = sessions.clone();
            tokio::spawn(async move {
                elsewhere.note("d");
                elsewhere.end("b", EndReason::Deleted);
                tokio::task::yield_now().await;
                elsewhere.end("d", EndReason::Daily);
            })
            .await
            .unwrap();
        });
        drop(untimed);
        assert!(recorder.events().is_empty(), "{:?}", recorder.events());
        assert_eq!(warnings.all(), ["session-runtime-without-timer"]);
        let report = with_timer().block_on(sessions.drain(EndReason::Shutdown));
        assert_eq!(recorder.ended(), ["a reset", "b deleted", "c shutdown", "d daily"]);
        assert_eq!((report.active, report.already_ending, report.failed), (1, 3, 4), "{report}");
        assert!(["a", "b", "c", "d"].iter().all(|id| recorder.order(id) == "+-"));
        assert_sum(&report);
    }
}

#[test]
fn g05_what_waited_for_a_runtime_runs_once_a_shutdown_on_or_a_recover_is_polled() {
    for n in 0..2 {
        let (recorder, sessions) = with(|builder| builder);
        let [untimed, _] = without_timer().try_into().unwrap();
        untimed.block_on(async {
            sessions.note("a");
            sessions.end("a", EndReason::Reset);
        });
        with_timer().block_on(async {
            match n {
                0 => drop(tokio::spawn(sessions.shutdown_on(std::future::pending::<()>()))),
                _ => drop(sessions.recover().await),
            }
            within("the end", async {
                while recorder.ends().is_empty() {
                    sleep(Duration::from_millis(1)).await;
                }
            })
            .await;
        });
        assert_eq!(recorder.order("a"), "+-");
    }
}

#[test]
fn a_runtime_without_a_timer_is_an_error_of_build() {
    for untimed in without_timer() {
        let built = untimed.block_on(async { ActiveSessions::builder().build().map(drop) });
        assert_eq!(built, Err(BuildError::NoTimer));
        assert!(BuildError::NoTimer.to_string().contains("enable_time"));
    }
    assert!(with_timer().block_on(async { ActiveSessions::builder().build() }).is_ok());
}
