//! Hooks and `keep_if` that call back into the handle.

use crate::support::Event;
use crate::support::Recorder;
use crate::support::assert_sum;
use crate::support::store::Store;
use std::future::pending;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::time::sleep;
use tokio::time::timeout;
use tower_session_end::ActiveSessions;
use tower_session_end::ActiveSessionsBuilder;
use tower_session_end::EndReason;
use tower_session_end::Phase;
use tower_session_end::SessionEnd;

/// A handle with a recorder.
fn with(set: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder) -> (Recorder, ActiveSessions) {
    let recorder = Recorder::default();
    let sessions = set(recorder.builder()).build().unwrap();
    (recorder, sessions)
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

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn keep_if_may_call_back_into_the_handle() {
    let handle = Arc::new(OnceLock::<ActiveSessions>::new());
    let inside = Arc::clone(&handle);
    let (recorder, sessions) = with(|builder| {
        builder.keep_if(move |session, _| {
            let sessions = inside.get().unwrap();
            match session.id.as_str() {
                "forgets" => sessions.forget("forgets"),
                "ends" => sessions.end("ends", EndReason::Reset),
                "notes" => sessions.note("noted-inside").is_new(),
                _ => sessions.snapshot().len() == usize::MAX,
            }
        })
    });
    handle.set(sessions.clone()).unwrap();
    for id in ["forgets", "ends", "notes", "plain"] {
        sessions.note(id);
    }
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_sum(&report);
    assert_eq!((report.kept, report.forgotten), (1, 1), "{report}");
    assert_eq!(recorder.ended(), ["ends reset", "noted-inside shutdown", "plain shutdown"]);
}

/// Everything that a hook may call, with a registry behind it.
#[tokio::test(start_paused = true)]
async fn hooks_that_call_back_into_everything_end_every_session_once() {
    let store = Store::default();
    let handle = Arc::new(OnceLock::<ActiveSessions>::new());
    let recorder = Recorder::default();
    let (on_start, on_end) = ((Arc::clone(&handle), recorder.clone()), (Arc::clone(&handle), recorder.clone()));
    let sessions = ActiveSessions::builder()
        .registry(store.holder())
        .max_sessions(8)
        .on_session_start(move |start| {
            let sessions = on_start.0.get().unwrap().clone();
            let id = start.session.id.to_string();
            on_start.1.push(Event::Start(start));
            async move {
                // Not for those that it makes itself: that would be a chain without an end.
                if id.len() == 1 {
                    assert!(sessions.note(id.as_str()).recorded().await);
                    drop(sessions.guard(format!("guard-{id}")).unwrap());
                    let _ = sessions.recover().await;
                    assert!(sessions.compact(&id, format!("next-{id}")).ended_old());
                }
            }
        })
        .on_session_end(move |end: SessionEnd| {
            let sessions = on_end.0.get().unwrap().clone();
            let id = end.session.id.to_string();
            on_end.1.push(Event::End(end));
            async move {
                // While it ends it is not there any more: neither of these finds it.
                assert!(!sessions.end(&id, EndReason::Reset) || sessions.phase() == Phase::Open);
                sessions.forget("nobody");
                let _ = (sessions.snapshot(), sessions.closing());
            }
        })
        .build()
        .unwrap();
    handle.set(sessions.clone()).unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    for id in ["a", "b", "c"] {
        sessions.note(id);
        sleep(SECOND / 10).await;
    }
    driver.abort();
    let report = timeout(60 * SECOND, sessions.finish(async {})).await.expect("a stop that never ends").report;
    assert_sum(&report.sessions);
    recorder.assert_no_generation_ended_twice();
    assert!(report.sessions.unfinished.is_empty(), "{report}");
    assert!(store.events().is_empty());
}
