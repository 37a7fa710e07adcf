//! Faults in user code, and corners of the lifecycle that once were holes.

mod support;

use std::{
    collections::HashSet,
    fmt,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use support::{Recorder, UnderWay, answer, ask, assert_sum, say};
use tokio::time::{Instant, sleep, timeout};
use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, EndReason};

/// An error whose text is a panic.
#[derive(Debug)]
struct Nasty;
impl fmt::Display for Nasty {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("no text for you")
    }
}
impl std::error::Error for Nasty {}

/// A handle with a recorder.
fn with(set: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder) -> (Recorder, ActiveSessions) {
    let recorder = Recorder::default();
    let sessions = set(recorder.builder()).build().unwrap();
    (recorder, sessions)
}

#[tokio::test(start_paused = true)]
async fn g07_an_error_that_cannot_be_shown_is_a_failure_like_any_other() {
    let _g = tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(std::io::sink).finish());
    let sessions =
        ActiveSessions::builder().on_session_end(|_| async { Err::<(), _>(Box::new(Nasty)) }).build().unwrap();
    sessions.note("a");
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.failed, 1, "{report}");
}

#[tokio::test(start_paused = true)]
async fn g07_an_error_that_cannot_be_shown_fails_its_batch_and_no_more() {
    let _g = tracing::subscriber::set_default(tracing_subscriber::fmt().with_writer(std::io::sink).finish());
    let sessions = ActiveSessions::builder()
        .drain_timeout(Duration::MAX)
        .on_session_end_batch(10, |_| async { Err::<(), _>(Box::new(Nasty)) })
        .build()
        .unwrap();
    sessions.note("a");
    sessions.note("b");
    let report =
        timeout(Duration::from_secs(3600), sessions.drain(EndReason::Shutdown)).await.expect("drain never returns");
    assert_eq!(report.failed, 2, "{report}");
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

#[test]
fn g13_a_guarded_session_is_never_evicted() {
    let sessions = ActiveSessions::builder().max_sessions(1).build().unwrap();
    let bad = Arc::new(AtomicUsize::new(0));
    let t: Vec<_> = (0..4)
        .map(|t| {
            let (sessions, bad) = (sessions.clone(), bad.clone());
            std::thread::spawn(move || {
                for i in 0..2_000 {
                    let id = format!("{t}-{i}");
                    let guard = sessions.guard(id.as_str()).unwrap();
                    if !sessions.contains(&id) {
                        bad.fetch_add(1, Ordering::SeqCst);
                    }
                    drop(guard);
                }
            })
        })
        .collect();
    for t in t {
        t.join().unwrap();
    }
    assert_eq!(bad.load(Ordering::SeqCst), 0, "guards whose session was evicted under them");
}

#[tokio::test]
async fn g12_the_head_of_a_session_whose_guard_has_ended_it_revives_nothing() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    let request = UnderWay::begin(&layer, ask(&[]));
    // The handler gives the session to a job with a guard; the job is over before the head leaves.
    let guard = sessions.guard("job").unwrap();
    assert!(guard.end(EndReason::Deleted));
    let _ = request.answer(answer(200, &[("x-session-id", "job")]));
    assert!(!sessions.contains("job"), "revived by the echo of its own response");
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["job deleted"]);
}

#[tokio::test]
async fn g08_a_session_that_was_noted_and_drained_before_its_head_left_is_one() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    let request = UnderWay::begin(&layer, ask(&[]));
    sessions.note("new"); // as the docs advise, in the handler
    let _drain = sessions.drain(EndReason::Shutdown).await;
    let _ = request.answer(answer(200, &[("x-session-id", "new")]));
    let _ = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(recorder.ended(), ["new shutdown"]);
}

#[tokio::test]
async fn the_sum_holds_while_keep_if_is_still_deciding() {
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let told = Mutex::new(told);
    let sessions = ActiveSessions::builder()
        .drain_timeout(Duration::from_millis(200))
        .on_session_end(|_| pending::<()>())
        .keep_if(move |session, _| {
            if session.id == "late" {
                let _ = told.lock().unwrap().recv();
            }
            false
        })
        .build()
        .unwrap();
    sessions.note("hangs");
    let drain = tokio::spawn({
        let s = sessions.clone();
        async move { s.drain(EndReason::Shutdown).await }
    });
    sleep(Duration::from_millis(50)).await;
    let noter = std::thread::spawn({
        let s = sessions.clone();
        move || {
            s.note("late");
        }
    });
    let report = drain.await.unwrap();
    tell.send(()).unwrap();
    noter.join().unwrap();
    assert_sum(&report);
}

#[tokio::test(start_paused = true)]
async fn g13_no_session_expires_before_its_time() {
    let (recorder, sessions) = with(|builder| builder.idle_timeout(Duration::from_secs(160)));
    let layer = sessions.layer();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    tokio::task::yield_now().await;
    sessions.note("a");
    sleep(Duration::from_millis(19_900)).await; // 9.9 s after the driver's last step
    say(&layer, &[("x-session-id", "a")], &[("x-session-id", "a")]).await;
    let heard = Instant::now();
    while sessions.contains("a") {
        sleep(Duration::from_millis(100)).await;
    }
    driver.abort();
    let _ = recorder;
    assert!(heard.elapsed() >= Duration::from_secs(160), "expired after {:?} of silence", heard.elapsed());
}

#[test]
fn g13_thousands_of_guards_on_one_session_count() {
    let sessions = ActiveSessions::builder().max_sessions(1).build().unwrap();
    let guards: Vec<_> = (0..4096).map(|_| sessions.guard("room").unwrap()).collect();
    sessions.note("other");
    assert!(sessions.contains("room"), "evicted under {} guards", guards.len());
}

#[tokio::test]
async fn g12_the_hosts_own_note_takes_the_tombstone_away() {
    let (_r, sessions) = with(|builder| builder.max_sessions(1));
    let layer = sessions.layer();
    sessions.note("a");
    sessions.end("a", EndReason::Reset);
    sessions.note("a"); // the host overrides
    sessions.note("b"); // evicts a
    assert!(!sessions.contains("a"));
    // The client goes on with `a`.
    say(&layer, &[("x-session-id", "a")], &[("x-session-id", "a")]).await;
    assert!(sessions.contains("a"), "an eviction left a tombstone after all");
}

/// A few of these rows, in which any three columns still have all the values that they have together in all of them.
fn any_three_together(rows: &[[Duration; 5]]) -> Vec<[Duration; 5]> {
    let mut seen = HashSet::new();
    let mut few = Vec::new();
    // First those that show the most.
    for least in [10, 8, 5, 3, 1] {
        for row in rows {
            // Without two of the five columns.
            let pairs = (0..5).flat_map(|a| (0..a).map(move |b| (a, b)));
            let threes = pairs.map(|(a, b)| [0, 1, 2, 3, 4].map(|c| (c != a && c != b).then_some(row[c])));
            let new: Vec<_> = threes.filter(|three| !seen.contains(three)).collect();
            if new.len() >= least {
                few.push(*row);
                seen.extend(new);
            }
        }
    }
    few
}

#[tokio::test(start_paused = true)]
async fn g06_the_most_extreme_times_neither_panic_nor_hang() {
    let times = [
        Duration::ZERO,
        Duration::from_nanos(1),
        Duration::from_secs(1),
        Duration::from_secs(u64::MAX / 1_000_000_000),
        Duration::from_secs(u64::MAX / 2),
        Duration::MAX,
    ];
    let is_legal =
        |[drain, settle, _, _, idle]: &[Duration; 5]| !idle.is_zero() && (settle <= drain || *settle == Duration::MAX);
    let nth = |number: usize| [0, 1, 2, 3, 4].map(|column| times[number / times.len().pow(column) % times.len()]);
    let all: Vec<_> = (0..times.len().pow(5)).map(nth).filter(is_legal).collect();
    for row in any_three_together(&all) {
        let [drain, settle, conn, hook, idle] = row;
        let sessions = ActiveSessions::builder()
            .drain_timeout(drain)
            .connection_drain_timeout(conn)
            .hook_timeout(hook)
            .settle_timeout(settle)
            .idle_timeout(idle)
            .on_session_end(|_| async { tokio::task::yield_now().await })
            .on_session_end_batch(2, |_| async {})
            .build()
            .unwrap();
        for i in 0..3 {
            sessions.note(format!("{i}"));
        }
        sessions.end("0", EndReason::Idle);
        let shutdown = tokio::spawn(sessions.shutdown_on(async {}));
        let server = async { sleep(Duration::from_millis(1)).await };
        let finished = timeout(Duration::from_secs(10), sessions.finish(server)).await;
        let finished = finished.unwrap_or_else(|_| panic!("hangs {row:?}"));
        assert_sum(&finished.report.sessions);
        assert_sum(&finished.report.drain);
        shutdown.await.unwrap();
    }
}
