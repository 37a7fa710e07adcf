//! Guards whose task reacts to `closing()` at once, faster than the sweep of the drain.

use tokio_util::task::TaskTracker;
use tower_session_end::{ActiveSessions, EndReason};

use crate::support::Recorder;

/// 200 jobs that drop their guard as soon as the handle closes.
fn jobs(sessions: &ActiveSessions) -> TaskTracker {
    let tasks = TaskTracker::new();
    for n in 0..200 {
        let guard = sessions.guard(format!("job-{n}")).unwrap();
        tasks.spawn(async move {
            guard.closing().await;
            drop(guard);
        });
    }
    tasks.close();
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g21_a_guard_that_reacts_at_once_ends_with_the_reason_of_the_shutdown() {
    let (recorder, sessions) = Recorder::sessions();
    let tasks = jobs(&sessions);
    let report = sessions.drain(EndReason::Restart).await;
    tasks.wait().await;
    assert_eq!(report.ended, 200, "{report}");
    let ends = recorder.ends();
    assert_eq!(ends.len(), 200);
    assert!(ends.iter().all(|end| end.reason == EndReason::Restart), "{ends:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g14_keep_if_is_asked_about_guarded_sessions_too() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().keep_if(|_, reason| reason.may_resume()).build().unwrap();
    let tasks = jobs(&sessions);
    let report = sessions.drain(EndReason::Restart).await;
    tasks.wait().await;
    assert_eq!((report.kept, report.ended), (200, 0), "{report}");
    assert!(recorder.ends().is_empty());
}
