//! Second signals.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{UnderWay, ask, assert_sum};
use tokio::time::{Instant, sleep};
use tower_session_end::{ActiveSessions, EndReason, SessionEnd, signal::ShutdownRequest};

#[tokio::test(start_paused = true)]
async fn g11_a_second_signal_reaches_the_server_that_is_left() {
    let (late_over, wait) = tokio::sync::oneshot::channel::<()>();
    let wait = Arc::new(Mutex::new(Some(wait)));
    let sessions = ActiveSessions::builder()
        .connection_drain_timeout(Duration::from_secs(1000))
        .on_session_end(move |end: SessionEnd| {
            let wait = (end.session.id == "late").then(|| wait.lock().unwrap().take()).flatten();
            async move {
                if let Some(wait) = wait {
                    let _ = wait.await;
                }
            }
        })
        .build()
        .unwrap();
    let (again, cut) = tokio::sync::oneshot::channel::<()>();
    let (end_a, a) = tokio::sync::oneshot::channel::<()>();
    let a = tokio::spawn(sessions.finish(async move {
        let _ = a.await;
    }));
    let b = tokio::spawn(sessions.finish(pending::<()>()));
    sessions
        .shutdown_on(async {
            ShutdownRequest::new(EndReason::Shutdown).forced_by(async {
                let _ = cut.await;
            })
        })
        .await;
    sleep(Duration::from_secs(1)).await;
    sessions.note("late"); // its hook holds A's `finish`
    sleep(Duration::from_secs(1)).await;
    end_a.send(()).unwrap();
    sleep(Duration::from_secs(1)).await;
    sessions.note("later"); // A looks again
    sleep(Duration::from_secs(1)).await;
    late_over.send(()).unwrap();
    let _ = a.await.unwrap();
    again.send(()).unwrap();
    let begun = Instant::now();
    let _b = b.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "the second signal reached nobody: {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_sum_holds_when_the_lame_duck_is_cut() {
    let sessions = ActiveSessions::builder()
        .lame_duck_timeout(Duration::from_secs(5))
        .on_session_end(|_| async {})
        .build()
        .unwrap();
    sessions.note("a");
    let (end_b, b) = tokio::sync::oneshot::channel::<()>();
    let fa = sessions.finish(pending::<()>());
    let fb = sessions.finish(async move {
        let _ = b.await;
        sleep(Duration::from_secs(1)).await;
    });
    let shutdown = tokio::spawn(
        sessions
            .shutdown_on(async { ShutdownRequest::new(EndReason::Shutdown).forced_by(sleep(Duration::from_secs(1))) }),
    );
    let a = fa.await;
    end_b.send(()).ok();
    assert_sum(&a.report.sessions);
    let _ = fb.await;
    shutdown.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_sum_holds_when_the_settling_is_cut() {
    let sessions =
        ActiveSessions::builder().settle_timeout(Duration::from_secs(2)).on_session_end(|_| async {}).build().unwrap();
    let layer = sessions.layer();
    sessions.note("a");
    let _under_way = UnderWay::begin(&layer, ask(&[("x-session-id", "a")]));
    let (fa, fb) = (sessions.finish(pending::<()>()), sessions.finish(pending::<()>()));
    let shutdown = tokio::spawn(
        sessions
            .shutdown_on(async { ShutdownRequest::new(EndReason::Shutdown).forced_by(sleep(Duration::from_secs(1))) }),
    );
    let a = fa.await;
    let _ = fb.await;
    shutdown.await.unwrap();
    assert_sum(&a.report.sessions);
}
