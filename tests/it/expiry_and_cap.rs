//! What the handle does by itself: idle expiry, the cap, keeping, inheriting details.

use std::{
    future::{pending, ready},
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::{Recorder, UnderWay, ask, say};
use tower_session_end::{ActiveSessions, EndReason, Session};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn g13_the_silent_expire_and_the_active_do_not() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(60 * SECOND).build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    for id in ["silent", "chatty", "busy"] {
        sessions.note(id);
    }
    let guard = sessions.guard("guarded").unwrap();
    let _never = UnderWay::begin(&sessions.layer(), ask(&[("x-session-id", "busy")]));
    let layer = sessions.layer();
    for _ in 0..20 {
        tokio::time::sleep(10 * SECOND).await;
        say(&layer, &[("x-session-id", "chatty")], &[]).await;
    }
    assert_eq!(recorder.reasons(), [("silent".to_owned(), EndReason::Idle)]);
    drop(guard);
    tokio::time::sleep(70 * SECOND).await;
    let expected = [("chatty", EndReason::Idle), ("guarded", EndReason::Unknown), ("silent", EndReason::Idle)];
    assert_eq!(recorder.reasons(), expected.map(|(id, reason)| (id.to_owned(), reason)));
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn g13_a_session_expires_within_a_sixteenth_of_its_time() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(160 * SECOND).build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    tokio::time::sleep(33 * SECOND).await;
    sessions.note("a");
    tokio::time::sleep(159 * SECOND).await;
    assert!(recorder.ends().is_empty());
    tokio::time::sleep(12 * SECOND).await;
    assert_eq!(recorder.ends().len(), 1);
    driver.abort();
}

#[tokio::test(start_paused = true)]
async fn g13_without_a_driver_births_expire_the_silent_and_a_warning_says_so_once() {
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let _logging = capture(&warnings);
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(60 * SECOND).build().unwrap();
    sessions.note("silent");
    sessions.note("chatty");
    let layer = sessions.layer();
    for n in 0..20 {
        tokio::time::sleep(10 * SECOND).await;
        say(&layer, &[("x-session-id", "chatty")], &[]).await;
        sessions.note(format!("newcomer{n}"));
    }
    assert!(!sessions.contains("silent") && !sessions.contains("newcomer0"));
    assert!(sessions.contains("chatty") && sessions.contains("newcomer19"));
    assert_eq!(*warnings.lock().unwrap(), ["session-expiry-undriven"]);
}

/// Collects the names of warnings.
fn capture(names: &Arc<Mutex<Vec<String>>>) -> crate::support::logging::Listening {
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
    struct Names(Arc<Mutex<Vec<String>>>);
    impl<S: tracing::Subscriber> Layer<S> for Names {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            if *event.metadata().level() == tracing::Level::WARN {
                self.0.lock().unwrap().push(event.metadata().name().to_owned());
            }
        }
    }
    crate::support::logging::listen(tracing_subscriber::registry().with(Names(Arc::clone(names))))
}

#[tokio::test(start_paused = true)]
async fn one_of_two_drivers_drives_and_the_other_takes_over() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(10 * SECOND).build().unwrap();
    let first = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    let second = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    sessions.note("a");
    tokio::time::sleep(15 * SECOND).await;
    assert_eq!(recorder.ends().len(), 1);
    first.abort();
    sessions.note("b");
    tokio::time::sleep(15 * SECOND).await;
    assert_eq!(recorder.ends().len(), 2);
    second.abort();
}

#[tokio::test(start_paused = true)]
async fn g13_the_cap_evicts_the_longest_idle_but_nobody_who_is_busy() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().max_sessions(10).build().unwrap();
    let _guard = sessions.guard("guarded").unwrap();
    sessions.note("busy");
    let _never = UnderWay::begin(&sessions.layer(), ask(&[("x-session-id", "busy")]));
    for n in 0..10 {
        tokio::time::sleep(SECOND).await;
        sessions.note(format!("s{n}"));
    }
    // Heard of again: no longer the longest idle.
    tokio::time::sleep(SECOND).await;
    sessions.note("s10");
    say(&sessions.layer(), &[("x-session-id", "s4")], &[]).await;
    tokio::time::sleep(SECOND).await;
    sessions.note("s11");
    tokio::time::sleep(SECOND).await;
    sessions.note("s12");
    tokio::time::sleep(SECOND / 10).await;
    let evicted: Vec<_> = ["s0", "s1", "s2", "s3", "s5"].map(|id| (id.to_owned(), EndReason::Evicted)).to_vec();
    assert_eq!(recorder.reasons(), evicted);
    assert_eq!(sessions.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn g13_a_compaction_is_exempt_from_the_cap_but_not_one_from_an_unknown_id() {
    let sessions = ActiveSessions::builder().max_sessions(10).build().unwrap();
    for n in 0..100 {
        sessions.compact("unknown", format!("s{n}"));
    }
    assert_eq!(sessions.len(), 10);
    for n in 90..100 {
        sessions.compact(format!("s{n}"), format!("t{n}"));
    }
    assert_eq!(sessions.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn g13_where_all_are_busy_the_cap_gives_way_with_one_warning() {
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let _logging = capture(&warnings);
    let sessions = ActiveSessions::builder().max_sessions(2).on_session_end(|_| ready(())).build().unwrap();
    let _guards: Vec<_> = (0..5).map(|n| sessions.guard(format!("s{n}")).unwrap()).collect();
    assert_eq!(sessions.len(), 5);
    assert_eq!(*warnings.lock().unwrap(), ["session-cap-exceeded"]);
}

#[tokio::test]
async fn g13_a_million_births_against_a_cap_of_1000_end_each_evicted_session_once() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let ends = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&ends);
    let sessions = ActiveSessions::builder()
        .max_sessions(1000)
        .on_session_end(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            ready(())
        })
        .build()
        .unwrap();
    let births = std::env::var("BIRTHS").ok().and_then(|births| births.parse().ok()).unwrap_or(100_000_u64);
    for n in 0..births {
        sessions.note(format!("session-{n}"));
        if n % 1000 == 0 {
            assert!(sessions.len() <= 1000);
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(sessions.len(), 1000);
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.active, 1000);
    assert!(report.is_clean(), "{report}");
    assert_eq!(ends.load(Ordering::Relaxed), births);
}

#[tokio::test(start_paused = true)]
async fn g14_what_is_kept_is_forgotten_without_an_end_and_reported() {
    let recorder = Recorder::default();
    let sessions = recorder
        .builder()
        .keep_if(|session, reason| {
            assert!(session.id != "panics", "a `keep_if` with a fault");
            reason.may_resume() && session.session_file.is_some()
        })
        .build()
        .unwrap();
    sessions.note(Session::try_from("kept").unwrap().with_session_file("a.jsonl"));
    sessions.note("ended");
    sessions.note("panics");
    // An ordinary end asks nobody.
    sessions.note(Session::try_from("deleted").unwrap().with_session_file("b.jsonl"));
    sessions.end("deleted", EndReason::Deleted);
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.active, report.kept, report.ended), (3, 1, 3), "{report}");
    assert!(report.is_clean());
    // Those born late are asked about too.
    sessions.note(Session::try_from("late-kept").unwrap().with_session_file("c.jsonl"));
    sessions.note("late-ended");
    sessions.compact("nobody", Session::try_from("late-compacted").unwrap().with_session_file("d.jsonl"));
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(recorder.reasons().len(), 4, "{report}");
    assert!(sessions.is_empty());
}

#[tokio::test]
async fn a_successor_without_details_takes_over_those_of_the_old_session() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions.note(
        Session::try_from("old")
            .unwrap()
            .with_key("chat")
            .with_session_file("old.jsonl")
            .with_attribute("tenant", "acme"),
    );
    let compacted = [("x-session-id", "new"), ("x-session-compacted-from", "old")];
    say(&sessions.layer(), &[("x-session-id", "old")], &compacted).await;
    let new = sessions.get("new").unwrap();
    assert_eq!((new.key.as_deref(), new.session_file), (Some("chat"), None));
    assert_eq!(new.attributes["tenant"], "acme");
}

#[tokio::test(start_paused = true)]
async fn g13_a_host_that_notes_as_a_heartbeat_keeps_its_session() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().idle_timeout(60 * SECOND).build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    sessions.note("heartbeat");
    sessions.note("silent");
    for _ in 0..20 {
        tokio::time::sleep(10 * SECOND).await;
        sessions.note("heartbeat");
    }
    assert_eq!(recorder.reasons(), [("silent".to_owned(), EndReason::Idle)]);
    driver.abort();
}

#[test]
fn g13_an_idle_timeout_that_ticks_cannot_hold_is_refused_with_the_limit() {
    let day = Duration::from_secs(86_400);
    let build = |timeout| ActiveSessions::builder().idle_timeout(timeout).build();
    assert!(build(240 * day).is_ok() && build(Duration::MAX).is_ok());
    let error = build(241 * day).unwrap_err();
    assert_eq!(error.to_string(), "`idle_timeout` is longer than its limit of 240 days; leave it out for no limit");
}
