//! `hooks_idle`: it waits for hooks, and for nothing else.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, task::spawn};
use tower_session_end::{ActiveSessions, EndReason, SessionEnd, SessionStart};

use crate::support::{
    Recorder,
    store::{Fault, Store},
    within,
};

const HOOK: Duration = Duration::from_millis(300);

#[tokio::test(start_paused = true)]
async fn without_hooks_it_is_ready_at_once() {
    let sessions = ActiveSessions::builder().build().unwrap();
    assert_ready!(spawn(sessions.hooks_idle()).poll());
    sessions.note("a");
    sessions.note("b");
    sessions.end("b", EndReason::Deleted);
    sessions.forget("a");
    assert_ready!(spawn(sessions.hooks_idle()).poll());
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_a_start_and_an_end_and_leaves_the_others_active() {
    let recorder = Recorder::default();
    let sessions = recorder.slow_builder(|_| HOOK).build().unwrap();
    for id in ["a", "b", "c"] {
        sessions.note(id);
    }
    sessions.end("a", EndReason::Deleted);
    let begun = Instant::now();
    assert_pending!(spawn(sessions.hooks_idle()).poll());
    sessions.hooks_idle().await;
    assert!(begun.elapsed() >= HOOK);
    assert_eq!(recorder.ends().len(), 1);
    assert!(sessions.contains("b") && sessions.contains("c"));
    assert_ready!(spawn(sessions.hooks_idle()).poll());
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_a_start_hook_that_still_runs() {
    let builder = ActiveSessions::builder().on_session_start(async |_: SessionStart| sleep(HOOK).await);
    let sessions = builder.build().unwrap();
    for forgotten in [false, true] {
        sessions.note("a");
        if forgotten {
            sessions.forget("a");
        }
        let begun = Instant::now();
        sessions.hooks_idle().await;
        assert!(begun.elapsed() >= HOOK, "forgotten: {forgotten}");
        sessions.forget("a");
    }
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_hooks_that_wait_for_an_earlier_one() {
    let recorder = Recorder::default();
    let sessions = recorder.slow_builder(|_| HOOK).build().unwrap();
    for _ in 0..3 {
        sessions.note("a");
        sessions.end("a", EndReason::Reset);
    }
    sessions.note("a");
    let begun = Instant::now();
    sessions.hooks_idle().await;
    assert!(begun.elapsed() >= 3 * HOOK);
    assert_eq!((recorder.starts().len(), recorder.ends().len()), (4, 3));
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_a_batch() {
    let written = Arc::new(Notify::new());
    let may_go_on = Arc::clone(&written);
    let write = move |_: Vec<SessionEnd>| {
        let may_go_on = Arc::clone(&may_go_on);
        async move { may_go_on.notified().await }
    };
    let sessions = ActiveSessions::builder().on_session_end_batch(10, write).build().unwrap();
    sessions.note("a");
    sessions.end("a", EndReason::Reset);
    assert!(timeout(HOOK, sessions.hooks_idle()).await.is_err());
    written.notify_one();
    within("the batch", sessions.hooks_idle()).await;
}

#[tokio::test(start_paused = true)]
async fn it_never_resolves_while_a_hook_hangs() {
    let sessions = ActiveSessions::builder().on_session_end(|_| pending::<()>()).build().unwrap();
    sessions.note("a");
    sessions.end("a", EndReason::Reset);
    assert!(timeout(10 * HOOK, sessions.hooks_idle()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_a_start_whose_record_is_not_answered() {
    let (recorder, holder) = (Recorder::default(), Store::default().holder());
    let sessions = recorder.builder().registry(holder.clone()).build().unwrap();
    holder.set(Fault::Slow);
    sessions.note("a");
    assert!(timeout(Duration::from_millis(100), sessions.hooks_idle()).await.is_err());
    assert!(recorder.starts().is_empty());
    within("the start", sessions.hooks_idle()).await;
    assert_eq!(recorder.starts().len(), 1);
}
