//! G22: children end with their parent.

use std::{future::pending, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{Request, StatusCode},
    routing::post,
};
use tower_session_end::{ActiveSessions, EndReason, Session, SessionEnd, SessionId, SessionUpdate};

use crate::support::{
    Recorder, UnderWay, answer, ask, h1_client, recorder::Event, replica::Replica, serve, store::Store, within,
};

const SECOND: Duration = Duration::from_secs(1);

fn child(id: &str, parent: &str) -> Session {
    Session::try_from(id).unwrap().with_parent(parent)
}

/// The ends in the order of their hooks.
fn ends_in_order(recorder: &Recorder) -> Vec<String> {
    let end = |event: &Event| match event {
        Event::End(end) => Some(format!("{} {}", end.session.id, end.reason)),
        Event::Start(_) => None,
    };
    recorder.events().iter().filter_map(end).collect()
}

async fn until_ended(recorder: &Recorder, ends: usize) {
    within("the ends", async {
        while recorder.ends().len() < ends {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// A gateway whose agents start subagents.
async fn start_subagent(
    State(sessions): State<ActiveSessions>,
    Path((parent, id)): Path<(String, String)>,
) -> StatusCode {
    if id == "none" {
        sessions.note(&parent);
    } else {
        sessions.note(Session::try_from(&id).unwrap().with_parent(&parent));
    }
    StatusCode::OK
}

async fn delete_agent(State(sessions): State<ActiveSessions>, Path(id): Path<String>) -> StatusCode {
    if sessions.end(&id, EndReason::Deleted) { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
}

#[tokio::test]
async fn g22_the_sessions_of_subagents_end_with_that_of_their_agent() {
    let recorder = Recorder::default();
    let sessions = recorder.builder().build().unwrap();
    let app = Router::new()
        .route("/agents/{parent}/{id}", post(start_subagent))
        .route("/agents/{id}", axum::routing::delete(delete_agent))
        .with_state(sessions.clone())
        .layer(sessions.layer());
    let server = serve(&sessions, app).await;
    let send = async |method: &str, path: &str| {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", server.addr));
        let response = h1_client().request(request.body(Body::empty()).unwrap());
        within("a response", response).await.unwrap().status()
    };
    for path in
        ["/agents/main/none", "/agents/main/sub-1", "/agents/main/sub-2", "/agents/sub-1/sub-sub", "/agents/other/none"]
    {
        assert_eq!(send("POST", path).await, StatusCode::OK);
    }
    assert_eq!(sessions.get("sub-1").unwrap().parent.unwrap(), "main");
    assert_eq!(send("DELETE", "/agents/main").await, StatusCode::NO_CONTENT);
    assert_eq!(sessions.snapshot().iter().map(|session| session.id.as_str()).collect::<Vec<_>>(), ["other"]);
    until_ended(&recorder, 4).await;
    let _ = server.shut_down().await;
    let expected = ["main deleted", "other shutdown", "sub-1 parent", "sub-2 parent", "sub-sub parent"];
    assert_eq!(recorder.ended(), expected);
}

#[tokio::test(start_paused = true)]
async fn g22_the_end_of_a_child_comes_after_that_of_its_parent_however_slow() {
    let recorder = Recorder::default();
    let (starts, ends) = (recorder.clone(), recorder.clone());
    let sessions = ActiveSessions::builder()
        .on_session_start(move |start| {
            starts.push(Event::Start(start));
            std::future::ready(())
        })
        .on_session_end(move |end: SessionEnd| {
            let ends = ends.clone();
            async move {
                if end.session.id == "parent" {
                    tokio::time::sleep(SECOND).await;
                }
                ends.push(Event::End(end));
            }
        })
        .build()
        .unwrap();
    sessions.note("parent");
    for n in 0..10 {
        sessions.note(child(&format!("child-{n}"), "parent"));
    }
    sessions.note(child("grandchild", "child-3"));
    tokio::time::sleep(SECOND).await;
    sessions.end("parent", EndReason::Reset);
    assert!(sessions.is_empty(), "all end at once");
    tokio::time::sleep(SECOND / 2).await;
    assert!(ends_in_order(&recorder).is_empty());
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.active, report.already_ending, report.ended), (0, 12, 12));
    let ends = ends_in_order(&recorder);
    assert_eq!(ends[0], "parent reset");
    let place = |id: &str| ends.iter().position(|end| *end == format!("{id} parent")).unwrap();
    assert!(place("child-3") < place("grandchild"));
    assert!(recorder.ends().iter().all(|end| end.session.id == "parent" || end.session.parent.is_some()));
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn g22_a_child_may_end_alone_and_a_forgotten_parent_ends_no_child() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("parent");
    for id in ["alone", "forgotten", "stays"] {
        sessions.note(child(id, "parent"));
    }
    assert!(sessions.end("alone", EndReason::Deleted) && sessions.forget("forgotten"));
    assert!(sessions.contains("parent"));
    assert!(sessions.forget("parent"));
    assert!(sessions.contains("stays"));
    // The parent starts again: it is the same parent.
    sessions.note("parent");
    sessions.end("parent", EndReason::Reset);
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["alone deleted", "parent reset", "stays parent"]);
}

#[tokio::test(start_paused = true)]
async fn g22_a_compaction_of_the_parent_takes_its_children_along() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("one");
    sessions.note(child("child", "one"));
    sessions.note(child("two", "one"));
    sessions.compact("one", "two");
    assert!(sessions.contains("child") && sessions.contains("two"));
    assert_eq!(sessions.get("child").unwrap().parent.unwrap(), "two");
    assert_eq!(sessions.get("two").unwrap().parent, None, "a session is not its own child");
    sessions.compact("two", "three");
    sessions.note(child("late", "three"));
    assert!(sessions.end("three", EndReason::Daily));
    assert!(sessions.is_empty());
    let ended = recorder.ended_after_drain(&sessions).await;
    assert_eq!(ended, ["child parent", "late parent", "one compaction", "three daily", "two compaction"]);
}

#[tokio::test(start_paused = true)]
async fn g22_the_successor_of_a_child_is_a_child() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("parent");
    sessions.note(child("bare", "parent"));
    sessions.note(child("detailed", "parent"));
    sessions.compact("bare", "bare-2");
    sessions.compact("detailed", Session::try_from("detailed-2").unwrap().with_key("key"));
    assert!(sessions.end("parent", EndReason::Deleted));
    assert!(sessions.is_empty());
    let ended = recorder.ended_after_drain(&sessions).await;
    assert_eq!(ended.iter().filter(|end| end.ends_with(" parent")).count(), 2, "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn g22_every_kind_of_end_of_the_parent_counts_and_a_shutdown_has_its_own_reason() {
    let recorder = Recorder::default();
    let builder = recorder.builder().idle_timeout(10 * SECOND).settle_timeout(SECOND).max_sessions(100);
    let sessions = builder.build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    // Idleness. A busy child ends too.
    sessions.note("idle");
    sessions.note(child("of-idle", "idle"));
    let _busy = sessions.guard("of-idle").unwrap();
    tokio::time::sleep(20 * SECOND).await;
    assert!(sessions.is_empty());
    // The drop of a guard.
    let guard = sessions.guard("guarded").unwrap();
    sessions.note(child("of-guarded", "guarded"));
    drop(guard);
    assert!(sessions.is_empty());
    // A response.
    sessions.note("declared");
    sessions.note(child("of-declared", "declared"));
    let mut response = answer(200, &[]);
    SessionUpdate::ended("declared", EndReason::Reset).insert_into(&mut response);
    UnderWay::begin(&sessions.layer(), ask(&[])).answer(response);
    assert!(sessions.is_empty());
    // A shutdown: the child ends when its own work is over.
    sessions.note("stopped");
    sessions.note(child("of-stopped", "stopped"));
    let work = sessions.work("of-stopped").unwrap();
    driver.abort();
    let drain = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.drain(EndReason::Restart).await }
    });
    tokio::time::sleep(SECOND / 2).await;
    assert!(!sessions.contains("stopped") && sessions.contains("of-stopped"));
    drop(work);
    assert!(drain.await.unwrap().is_clean());
    let ended = recorder.ended();
    let expected = [
        "declared reset",
        "guarded unknown",
        "idle idle",
        "of-declared parent",
        "of-guarded parent",
        "of-idle parent",
        "of-stopped restart",
        "stopped restart",
    ];
    assert_eq!(ended, expected);
}

#[tokio::test(start_paused = true)]
async fn g22_cycles_deep_families_and_invalid_parents_do_no_harm() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note(child("self", "self"));
    assert_eq!(sessions.get("self").unwrap().parent, None);
    sessions.note(child("a", "b"));
    sessions.note(child("b", "a"));
    sessions.note(child("invalid", "two words"));
    assert!(sessions.end("self", EndReason::Reset));
    assert!(sessions.contains("a") && sessions.contains("invalid"));
    assert!(sessions.end("a", EndReason::Reset));
    assert!(!sessions.contains("b"));
    sessions.note("n0");
    for n in 1..20_000 {
        sessions.note(child(&format!("n{n}"), &format!("n{}", n - 1)));
    }
    sessions.end("n0", EndReason::Deleted);
    assert_eq!(sessions.len(), 1, "a family of 20,000 generations ends");
    let report = sessions.drain(EndReason::Shutdown).await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(recorder.ends().len(), 20_004);
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn g22_a_parent_may_start_after_its_child_and_a_later_note_does_not_change_it() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note(child("child", "parent"));
    sessions.note("parent");
    sessions.note("child");
    sessions.note(child("child", "other"));
    sessions.note("other");
    sessions.end("other", EndReason::Reset);
    assert_eq!(sessions.get("child").unwrap().parent.unwrap(), "parent");
    sessions.end("parent", EndReason::Reset);
    assert!(sessions.is_empty());
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["child parent", "other reset", "parent reset"]);
}

#[tokio::test]
async fn g22_the_parent_is_a_detail_of_the_session_and_left_out_without_one() {
    let session = child("child", "parent");
    let json = serde_json::to_string(&session).unwrap();
    assert_eq!(json, r#"{"sessionId":"child","parentSessionId":"parent"}"#);
    assert_eq!(serde_json::from_str::<Session>(&json).unwrap(), session);
    assert_eq!(serde_json::to_string(&Session::try_from("a").unwrap()).unwrap(), r#"{"sessionId":"a"}"#);
    assert!(format!("{session:?}").contains("parent"));
    assert!(Session::try_from("a").unwrap().with_parent(SessionId::new("p").unwrap()).parent.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g22_no_child_that_started_before_its_parents_end_outlives_it() {
    let recorder = Recorder::default();
    let sessions = Arc::new(recorder.builder().build().unwrap());
    for round in 0..60 {
        let parent = format!("parent-{round}");
        sessions.note(&parent);
        let noting: Vec<_> = (0..4)
            .map(|n| {
                let (sessions, parent) = (Arc::clone(&sessions), parent.clone());
                tokio::task::spawn_blocking(move || {
                    let mut started_before = Vec::new();
                    for m in 0..20 {
                        let id = format!("{parent}-child-{n}-{m}");
                        sessions.note(child(&id, &parent));
                        if sessions.contains(&parent) {
                            started_before.push(id);
                        }
                    }
                    started_before
                })
            })
            .collect();
        if round % 2 == 0 {
            sessions.compact(&parent, format!("{parent}-compacted"));
            sessions.end(format!("{parent}-compacted"), EndReason::Deleted);
        } else {
            sessions.end(&parent, EndReason::Deleted);
        }
        for noted in noting {
            for id in within("the notes", noted).await.unwrap() {
                assert!(!sessions.contains(&id), "{id} outlives its parent");
            }
        }
        sessions.forget_all();
    }
    let _ = sessions.drain(EndReason::Shutdown).await;
    recorder.assert_no_generation_ended_twice();
}

#[tokio::test(start_paused = true)]
async fn g22_a_child_goes_on_while_its_parent_does_on_another_replica() {
    let store = Store::default();
    let (one, two) = (Replica::new(&store), Replica::new(&store));
    one.note("parent").await;
    let guard = two.sessions.guard("parent").unwrap();
    tokio::time::sleep(SECOND).await;
    two.sessions.note(child("child", "parent")).recorded().await;
    // Two lets go, and one serves the parent on.
    drop(guard);
    tokio::time::sleep(SECOND).await;
    assert!(two.sessions.contains("child") && two.ends().is_empty());
    // The last holder lets go: the parent ends, and so does its child there.
    one.sessions.note(child("other", "parent")).recorded().await;
    let guard = one.sessions.guard("parent").unwrap();
    drop(guard);
    tokio::time::sleep(SECOND).await;
    assert!(!one.sessions.contains("other"));
    let ends: Vec<_> = one.ends().into_iter().map(|(id, reason)| format!("{id} {reason}")).collect();
    assert_eq!(ends, ["parent unknown", "other parent"]);
}

#[tokio::test(start_paused = true)]
async fn g22_an_end_that_is_recovered_ends_the_children_too() {
    let store = Store::default();
    let survivor = Replica::new(&store);
    let holder = store.holder();
    let dying = Recorder::default().slow_builder(|_| 100_000 * SECOND).registry(holder.clone()).build().unwrap();
    dying.note("parent").recorded().await;
    survivor.note("parent").await;
    survivor.sessions.note(child("child", "parent")).recorded().await;
    dying.end("parent", EndReason::Deleted);
    tokio::time::sleep(SECOND).await;
    holder.kill();
    holder.set(crate::support::store::Fault::Hangs);
    let driver = survivor.drive();
    tokio::time::sleep(60 * SECOND).await;
    assert!(survivor.sessions.is_empty());
    driver.abort();
    let mut reasons: Vec<_> = survivor.ends().into_iter().map(|(id, reason)| format!("{id} {reason}")).collect();
    // The notice of the end comes before the death of the process that was to deliver it.
    reasons.sort();
    assert_eq!(reasons, ["child parent", "parent deleted"]);
}
