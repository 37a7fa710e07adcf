//! What is remembered, and what is not: note, forget, end, compact, snapshot.

use crate::support::recorder::{Event, Recorder};
use tower_session_end::{ActiveSessions, EndReason, Session, SessionId};

fn sessions() -> ActiveSessions {
    ActiveSessions::builder().build().unwrap()
}

fn ids(sessions: &ActiveSessions) -> Vec<String> {
    let mut ids: Vec<_> = sessions.snapshot().iter().map(|session| session.id.to_string()).collect();
    ids.sort();
    ids
}

#[test]
fn t1_a_fresh_handle_lists_nothing() {
    let sessions = sessions();
    assert!(sessions.is_empty());
    assert!(sessions.snapshot().is_empty());
    assert!(!sessions.contains("a"));
}

#[test]
fn t2_g03_noting_an_id_twice_leaves_one_entry_with_the_second_details() {
    let sessions = sessions();
    assert!(sessions.note(Session::try_from("a").unwrap().with_session_file("one")).is_new());
    assert!(!sessions.note(Session::try_from("a").unwrap().with_session_file("two")).is_new());
    let snapshot = sessions.snapshot();
    assert_eq!(snapshot.len(), 1);
    assert_eq!(snapshot[0].session_file.as_deref(), Some("two"));
    // A note without details replaces them by none.
    sessions.note("a");
    assert_eq!(sessions.snapshot()[0].session_file, None);
}

#[test]
fn t3_g04_an_invalid_id_changes_nothing_and_is_counted() {
    let sessions = sessions();
    for id in ["", " ", "two words", "tab\t", "é", &"x".repeat(1025)] {
        assert!(!sessions.note(id).is_new(), "{id:?}");
        assert!(!sessions.compact("old", id).ended_old());
        assert!(sessions.guard(id).is_err() && sessions.note(id).invalid_id().is_some());
    }
    assert!(sessions.is_empty());
    assert_eq!(sessions.ignored_ids(), 24);
    let long = SessionId::with_max_len("x".repeat(1025), 2000).unwrap();
    assert!(sessions.note(long).is_new());
}

#[test]
fn t4_g03_forgetting_one_leaves_the_others() {
    let sessions = sessions();
    sessions.note("a");
    sessions.note("b");
    assert!(sessions.forget("a"));
    assert_eq!(ids(&sessions), ["b"]);
}

#[test]
fn t5_g03_forgetting_an_unknown_id_is_a_no_op() {
    let sessions = sessions();
    sessions.note("a");
    assert!(!sessions.forget("b"));
    assert!(!sessions.forget(""));
    assert_eq!(ids(&sessions), ["a"]);
}

#[test]
fn t6_g03_a_snapshot_is_a_copy() {
    let sessions = sessions();
    sessions.note("a");
    let mut snapshot = sessions.snapshot();
    snapshot.clear();
    assert_eq!(ids(&sessions), ["a"]);
}

#[tokio::test]
async fn t7_forget_all_removes_all_and_fires_nothing() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    for n in 0..1000 {
        sessions.note(format!("s{n}"));
    }
    assert_eq!(sessions.forget_all(), 1000);
    assert!(sessions.is_empty());
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(report.total(), 0);
    assert!(recorder.ends().is_empty());
}

#[tokio::test]
async fn an_end_is_told_what_was_known_last() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions.note(Session::try_from("a").unwrap().with_key("first"));
    sessions.note(Session::try_from("a").unwrap().with_key("second").with_attribute("tenant", "acme"));
    sessions.end("a", EndReason::Deleted);
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
    let events = recorder.events();
    let [Event::Start(start), Event::End(end)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(end.session.key.as_deref(), Some("second"));
    assert_eq!(end.session.attributes["tenant"], "acme");
    assert_eq!(end.reason, EndReason::Deleted);
    assert_eq!(start.generation, end.generation);
}

#[tokio::test]
async fn a_session_that_is_noted_again_after_its_end_has_another_event_id() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    for _ in 0..3 {
        sessions.note("a");
        assert!(sessions.end("a", EndReason::Reset));
        assert!(!sessions.end("a", EndReason::Reset));
    }
    assert!(sessions.drain(EndReason::Shutdown).await.is_clean());
    assert_eq!(recorder.order("a"), "+-+-+-");
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test]
async fn a_compaction_is_one_end_and_one_start() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions.note(Session::try_from("old").unwrap().with_key("chat"));
    assert!(sessions.compact("old", Session::try_from("new").unwrap().with_key("chat")).ended_old());
    assert_eq!(ids(&sessions), ["new"]);
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.unfinished.len()), (2, 0));

    let events = recorder.events();
    let [Event::Start(_), Event::End(old), Event::Start(new), Event::End(last)] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!((old.session.id.as_str(), old.reason), ("old", EndReason::Compaction));
    let next = old.next.as_ref().unwrap();
    assert_eq!((next.id.as_str(), next.key.as_deref()), ("new", Some("chat")));
    assert_eq!((new.session.id.as_str(), new.resumed_from.as_ref().unwrap().as_str()), ("new", "old"));
    assert_eq!((last.session.id.as_str(), last.reason), ("new", EndReason::Shutdown));
}

#[tokio::test]
async fn compacting_an_unknown_session_notes_the_successor() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    assert!(!sessions.compact("nobody", "new").ended_old());
    assert_eq!(ids(&sessions), ["new"]);
    let _ = sessions.drain(EndReason::Shutdown).await;
    let Event::Start(start) = &recorder.events()[0] else { panic!() };
    assert_eq!(start.resumed_from, None);
    assert_eq!(recorder.reasons(), [("new".to_owned(), EndReason::Shutdown)]);
}

#[tokio::test]
async fn compacting_into_an_active_session_ends_the_old_one_and_starts_nothing() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions.note("old");
    sessions.note("new");
    assert!(sessions.compact("old", Session::try_from("new").unwrap().with_key("k")).ended_old());
    assert_eq!(sessions.snapshot()[0].key.as_deref(), Some("k"));
    let _ = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(recorder.order("new"), "+-");
    assert_eq!(recorder.order("old"), "+-");
    let old = recorder.ends().into_iter().find(|end| end.session.id == "old").unwrap();
    assert_eq!(old.next.unwrap().id, "new");
}

#[tokio::test]
async fn compacting_into_itself_does_nothing() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions.note("a");
    assert!(sessions.compact("a", "a").ended_old());
    assert_eq!(ids(&sessions), ["a"]);
    let _ = sessions.drain(EndReason::Shutdown).await;
    assert_eq!(recorder.reasons(), [("a".to_owned(), EndReason::Shutdown)]);
}

#[tokio::test]
async fn a_drain_right_after_a_compaction_ends_the_successor_only() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    sessions.note("old");
    sessions.compact("old", "new");
    let report = sessions.drain(EndReason::Restart).await;
    assert_eq!((report.active, report.already_ending), (1, 1));
    assert_eq!(recorder.reasons(), [("new".to_owned(), EndReason::Restart), ("old".to_owned(), EndReason::Compaction)]);
}

#[tokio::test]
async fn a_guard_ends_its_session_on_drop_or_with_a_reason() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let guard = sessions.guard("a").unwrap();
    assert_eq!(guard.id(), &SessionId::new("a").unwrap());
    drop(guard);
    assert!(sessions.guard("b").unwrap().end(EndReason::Deleted));
    let guard = sessions.guard("c").unwrap();
    sessions.end("c", EndReason::Reset);
    assert!(!guard.end(EndReason::Deleted));
    let _ = sessions.drain(EndReason::Shutdown).await;
    let expected = [("a", EndReason::Unknown), ("b", EndReason::Deleted), ("c", EndReason::Reset)];
    assert_eq!(recorder.reasons(), expected.map(|(id, reason)| (id.to_owned(), reason)));
}

#[test]
fn two_handles_in_one_process_know_nothing_of_each_other() {
    let (one, two) = (sessions(), sessions());
    one.note("a");
    assert!(!two.contains("a"));
    two.note("a");
    assert!(one.end("a", EndReason::Reset));
    assert!(two.contains("a"));
}
