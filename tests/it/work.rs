//! G9: a drain waits for work, in requests and after them.

use std::{future::pending, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Request, StatusCode},
    routing::post,
};
use tokio::{sync::oneshot, time::Instant};
use tower_session_end::{ActiveSessions, EndReason, Phase, signal::ShutdownRequest};

use crate::support::{Recorder, UnderWay, answer, ask, h1_client, serve, within};

const SECOND: Duration = Duration::from_secs(1);
const ID: &str = "x-session-id";

fn settling(recorder: &Recorder) -> ActiveSessions {
    let builder = recorder.builder().drain_timeout(20 * SECOND).settle_timeout(10 * SECOND);
    builder.max_sessions(4).idle_timeout(60 * SECOND).build().unwrap()
}

fn spawn_drain(sessions: &ActiveSessions) -> tokio::task::JoinHandle<tower_session_end::DrainReport> {
    let sessions = sessions.clone();
    tokio::spawn(async move { sessions.drain(EndReason::Restart).await })
}

#[derive(Clone)]
struct Host {
    sessions: ActiveSessions,
    log: std::sync::Arc<std::sync::Mutex<Vec<&'static str>>>,
}

/// 202 at once. The run goes on until the shutdown has begun, and a little longer.
async fn run(State(host): State<Host>, headers: HeaderMap) -> (StatusCode, [(&'static str, String); 1]) {
    let id = headers.get(ID).map_or("a", |id| id.to_str().unwrap()).to_owned();
    host.sessions.note(&id);
    let work = host.sessions.work(&id).unwrap();
    tokio::spawn(async move {
        host.sessions.closing().await;
        tokio::time::sleep(SECOND / 2).await;
        host.log.lock().unwrap().push("run over");
        drop(work);
    });
    (StatusCode::ACCEPTED, [(ID, id)])
}

#[tokio::test]
async fn g09_a_run_after_a_202_is_over_before_its_session_end() {
    let log = std::sync::Arc::<std::sync::Mutex<Vec<&'static str>>>::default();
    let ends = log.clone();
    let builder = ActiveSessions::builder().drain_timeout(20 * SECOND).settle_timeout(10 * SECOND);
    let hook = move |_| {
        ends.lock().unwrap().push("session_end");
        std::future::ready(())
    };
    let sessions = builder.on_session_end(hook).build().unwrap();
    let host = Host { sessions: sessions.clone(), log: log.clone() };
    let app = Router::new().route("/run", post(run)).with_state(host).layer(sessions.layer());
    let server = serve(&sessions, app).await;
    let request = Request::post(format!("http://{}/run", server.addr)).body(Body::empty()).unwrap();
    let response = within("the 202", h1_client().request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    let report = server.shut_down().await;
    assert_eq!(*log.lock().unwrap(), ["run over", "session_end"]);
    assert!(report.is_clean() && report.drain.at_work == 0, "{report}");
    assert!(report.drain.elapsed < 10 * SECOND, "the drain waited for the run, not for its settle time");
}

#[tokio::test(start_paused = true)]
async fn g09_work_is_waited_for_up_to_the_settle_time_and_then_counted() {
    let recorder = Recorder::default();
    let sessions = settling(&recorder);
    for id in ["idle", "short", "long", "guarded"] {
        sessions.note(id);
    }
    let short = [sessions.work("short").unwrap(), sessions.work("short").unwrap()];
    let _long = sessions.work("long").unwrap();
    let _in_flight = UnderWay::begin(&sessions.layer(), ask(&[(ID, "long")]));
    // A guard alone is no work.
    let _guard = sessions.guard("guarded").unwrap();
    let began = Instant::now();
    let drain = spawn_drain(&sessions);
    tokio::time::sleep(SECOND).await;
    assert_eq!(recorder.ended(), ["guarded restart", "idle restart"]);
    let [first, second] = short;
    drop(first);
    tokio::time::sleep(SECOND).await;
    assert!(sessions.contains("short"));
    drop(second);
    assert!(!sessions.contains("short") && sessions.contains("long"));
    let report = drain.await.unwrap();
    assert_eq!((report.ended, report.at_work), (4, 1), "{report}");
    assert!(report.to_string().contains("1 ended at work"), "{report}");
    assert!((10 * SECOND..11 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn g09_work_of_a_guard_is_waited_for_and_the_guard_alone_is_not() {
    let recorder = Recorder::default();
    let sessions = settling(&recorder);
    let guard = sessions.guard("job").unwrap();
    let work = guard.work().unwrap();
    assert_eq!(work.id(), guard.id());
    let drain = spawn_drain(&sessions);
    tokio::time::sleep(SECOND).await;
    assert!(sessions.contains("job"));
    drop(work);
    assert!(!sessions.contains("job"));
    assert!(drain.await.unwrap().elapsed < 2 * SECOND);
    drop(guard);
    assert_eq!(recorder.ended(), ["job restart"]);
    // There is nothing to work for any more.
    assert!(sessions.work("job").is_none() && sessions.work("unknown").is_none());
}

#[tokio::test(start_paused = true)]
async fn g09_work_goes_on_in_the_successor_of_a_compaction() {
    let recorder = Recorder::default();
    let sessions = settling(&recorder);
    let guard = sessions.guard("one").unwrap();
    let work = sessions.work("one").unwrap();
    let request = UnderWay::begin(&sessions.layer(), ask(&[(ID, "one")]));
    sessions.compact("one", "two");
    sessions.compact("two", "three");
    let late = guard.work().unwrap();
    assert_eq!(late.id(), "three");
    let drain = spawn_drain(&sessions);
    tokio::time::sleep(SECOND).await;
    assert!(sessions.contains("three"), "three works");
    drop(work);
    drop(late);
    tokio::time::sleep(SECOND).await;
    assert!(sessions.contains("three"), "the request of one works");
    drop(request.answer(answer(200, &[])));
    assert!(sessions.is_empty());
    assert!(drain.await.unwrap().elapsed < 3 * SECOND);
    assert_eq!(recorder.ended(), ["one compaction", "three restart", "two compaction"]);
}

#[tokio::test(start_paused = true)]
async fn g13_work_keeps_a_session_from_idleness_and_eviction_and_ends_nothing_itself() {
    let recorder = Recorder::default();
    let sessions = settling(&recorder);
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    sessions.note("a");
    let work = sessions.work("a").unwrap();
    tokio::time::sleep(100 * SECOND).await;
    for n in 0..10 {
        sessions.note(format!("s{n}"));
    }
    assert!(sessions.contains("a") && sessions.len() == 4);
    drop(work);
    assert!(sessions.contains("a"));
    // It does not keep the host from ending it.
    let work = sessions.work("a").unwrap();
    assert!(sessions.end("a", EndReason::Deleted));
    drop(work);
    driver.abort();
}

#[tokio::test]
async fn g09_a_turn_that_asks_for_the_shutdown_does_not_wait_for_itself() {
    let recorder = Recorder::default();
    let builder = recorder.builder().drain_timeout(60 * SECOND).settle_timeout(60 * SECOND);
    let sessions = builder.build().unwrap();
    let (ask_for_it, asked) = oneshot::channel();
    let ask_for_it = std::sync::Arc::new(std::sync::Mutex::new(Some(ask_for_it)));
    let handle = sessions.clone();
    let restart = move |headers: HeaderMap| {
        let (handle, ask_for_it) = (handle.clone(), ask_for_it.lock().unwrap().take());
        async move {
            assert!(handle.exempt_work(headers[ID].to_str().unwrap()));
            ask_for_it.unwrap().send(EndReason::Restart).unwrap();
            // The turn is over once its session is.
            while handle.phase() < Phase::Closing || !handle.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            "restarting"
        }
    };
    let app = Router::new().route("/restart", post(restart)).layer(sessions.layer());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = sessions.shutdown_on(async move { ShutdownRequest::new(asked.await.unwrap()) });
    let server = axum::serve(listener, app).with_graceful_shutdown(shutdown);
    let finish = tokio::spawn(sessions.finish(server));
    sessions.note("a");
    sessions.note("other");
    let request = Request::post(format!("http://{address}/restart")).header(ID, "a").body(Body::empty()).unwrap();
    let response = within("the answer", h1_client().request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let report = within("finish", finish).await.unwrap().into_result().unwrap();
    assert!(report.is_clean() && report.drain.at_work == 0, "{report}");
    assert_eq!(recorder.ended(), ["a restart", "other restart"]);
}

#[tokio::test(start_paused = true)]
async fn g09_a_drain_waits_for_no_work_of_an_exempt_session_and_for_that_of_others() {
    let recorder = Recorder::default();
    let sessions = settling(&recorder);
    let layer = sessions.layer();
    ["a", "b", "c"].iter().for_each(|id| drop(sessions.note(*id)));
    let mut own = sessions.work("a").unwrap();
    own.exempt();
    own.exempt();
    let [asking, other] = ["b", "c"].map(|id| UnderWay::begin(&layer, ask(&[(ID, id)])));
    assert!(sessions.exempt_work("b") && !sessions.exempt_work("unknown"));
    let drain = spawn_drain(&sessions);
    tokio::time::sleep(SECOND).await;
    assert_eq!(recorder.ended(), ["a restart", "b restart"]);
    drop(other.answer(answer(200, &[])));
    assert!(drain.await.unwrap().elapsed < 2 * SECOND);
    drop(asking.answer(answer(200, &[])));
    drop(own);
    assert_eq!(recorder.ended(), ["a restart", "b restart", "c restart"]);
}

#[tokio::test(start_paused = true)]
async fn g09_a_guard_that_exempts_itself_leaves_the_other_work_of_its_session() {
    let recorder = Recorder::default();
    let sessions = settling(&recorder);
    sessions.note("a");
    let (mut own, other) = (sessions.work("a").unwrap(), sessions.work("a").unwrap());
    own.exempt();
    let drain = spawn_drain(&sessions);
    tokio::time::sleep(SECOND).await;
    assert!(sessions.contains("a"));
    drop(other);
    assert!(!sessions.contains("a"));
    assert!(drain.await.unwrap().elapsed < 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn g09_an_exemption_during_the_drain_counts_at_once() {
    let recorder = Recorder::default();
    let sessions = settling(&recorder);
    sessions.note("a");
    let _request = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
    let drain = spawn_drain(&sessions);
    tokio::time::sleep(SECOND).await;
    assert!(sessions.contains("a"));
    assert!(sessions.exempt_work("a"));
    assert!(!sessions.contains("a"));
    assert!(drain.await.unwrap().elapsed < 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn g09_an_exemption_goes_with_a_compaction_and_leaves_no_work_behind() {
    let recorder = Recorder::default();
    let sessions = settling(&recorder);
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    for (old, new) in [("a", "b"), ("c", "d")] {
        sessions.note(old);
        let (first, second) = (sessions.work(old).unwrap(), sessions.work(old).unwrap());
        sessions.exempt_work(old);
        sessions.compact(old, new);
        drop((first, second));
    }
    tokio::time::sleep(100 * SECOND).await;
    assert!(sessions.is_empty(), "nothing works, and all are idle");
    sessions.note("e");
    let request = UnderWay::begin(&sessions.layer(), ask(&[(ID, "e")]));
    sessions.exempt_work("e");
    driver.abort();
    sessions.compact("e", "f");
    let report = sessions.drain(EndReason::Restart).await;
    assert!(report.elapsed < SECOND && report.at_work == 0, "{report}");
    drop(request.answer(answer(200, &[])));
}

#[tokio::test(start_paused = true)]
async fn g21_a_guard_that_is_dropped_in_the_shutdown_leaves_its_session_to_its_work() {
    let recorder = Recorder::default();
    let sessions = settling(&recorder);
    let guard = sessions.guard("a").unwrap();
    let work = guard.work().unwrap();
    let drain = spawn_drain(&sessions);
    guard.closing().await;
    drop(guard);
    tokio::time::sleep(SECOND).await;
    assert!(sessions.contains("a"), "the sweep spares it too");
    drop(work);
    assert!(drain.await.unwrap().is_clean());
    assert_eq!(recorder.ended(), ["a restart"]);
}

#[tokio::test(start_paused = true)]
async fn g09_work_that_begins_while_keep_if_is_asked_is_waited_for() {
    let recorder = Recorder::default();
    let handle = std::sync::Arc::<std::sync::OnceLock<ActiveSessions>>::default();
    let work = std::sync::Arc::<std::sync::Mutex<(bool, Vec<_>)>>::default();
    let (asked, begun) = (handle.clone(), work.clone());
    let builder = recorder.builder().drain_timeout(20 * SECOND).settle_timeout(10 * SECOND);
    let keep_if = move |session: &tower_session_end::Session, _| {
        let mut begun = begun.lock().unwrap();
        if !std::mem::replace(&mut begun.0, true) {
            begun.1.push(asked.get().unwrap().work(&session.id).unwrap());
        }
        false
    };
    let sessions = builder.keep_if(keep_if).build().unwrap();
    handle.set(sessions.clone()).unwrap();
    sessions.note("a");
    let drain = spawn_drain(&sessions);
    tokio::time::sleep(SECOND).await;
    assert!(sessions.contains("a"), "it works");
    // The drop calls `keep_if`, which locks.
    let begun = std::mem::take(&mut work.lock().unwrap().1);
    drop(begun);
    assert!(drain.await.unwrap().elapsed < 2 * SECOND);
    assert_eq!(recorder.ended(), ["a restart"]);
}

#[tokio::test(start_paused = true)]
async fn g09_the_answer_that_replaces_a_session_is_work_of_the_new_one() {
    let recorder = Recorder::default();
    let sessions = settling(&recorder);
    sessions.note("a");
    let host = tower::service_fn(|_: Request<()>| {
        let body = http_body_util::StreamBody::new(futures_util::stream::pending::<
            Result<http_body::Frame<bytes::Bytes>, std::convert::Infallible>,
        >());
        let response = axum::http::Response::builder().header(ID, "b").header("x-session-end", "reset");
        std::future::ready(Ok::<_, std::convert::Infallible>(response.body(body).unwrap()))
    });
    let service = tower::Layer::layer(&sessions.layer(), host);
    let response = tower::ServiceExt::oneshot(service, ask(&[(ID, "a")])).await.unwrap();
    let drain = spawn_drain(&sessions);
    tokio::time::sleep(SECOND).await;
    assert!(sessions.contains("b"), "its answer is in flight");
    drop(response);
    assert!(drain.await.unwrap().is_clean());
    assert_eq!(recorder.ended(), ["a reset", "b restart"]);
}

#[tokio::test(start_paused = true)]
async fn g09_no_number_of_requests_or_guards_is_special() {
    const MANY: usize = 1 << 16;
    let recorder = Recorder::default();
    let sessions = recorder.builder().max_sessions(1).idle_timeout(SECOND).settle_timeout(SECOND).build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    let guards: Vec<_> = (0..MANY).map(|_| sessions.guard("guarded").unwrap()).collect();
    tokio::time::sleep(10 * SECOND).await;
    assert!(sessions.note("new").is_new());
    assert!(sessions.contains("guarded"), "65,536 guards are not none");
    assert!(sessions.forget("guarded") && sessions.forget("new"));
    drop(guards);
    sessions.note("working");
    let work: Vec<_> = (0..MANY).map(|_| sessions.work("working").unwrap()).collect();
    tokio::time::sleep(10 * SECOND).await;
    assert!(sessions.contains("working"));
    driver.abort();
    let drain = spawn_drain(&sessions);
    tokio::time::sleep(SECOND / 2).await;
    assert!(sessions.contains("working"), "65,536 pieces of work are not none");
    drop(work);
    assert_eq!(drain.await.unwrap().at_work, 0);
    assert_eq!(recorder.ended(), ["working restart"]);
}

#[tokio::test(start_paused = true)]
async fn g09_work_and_guards_outlive_any_number_of_compactions() {
    const MANY: usize = 30_000;
    let sessions = ActiveSessions::builder().settle_timeout(SECOND).build().unwrap();
    let guard = sessions.guard("s0").unwrap();
    let work = guard.work().unwrap();
    let request = UnderWay::begin(&sessions.layer(), ask(&[(ID, "s0")]));
    for n in 1..MANY {
        sessions.compact(format!("s{}", n - 1), format!("s{n}"));
    }
    assert_eq!(guard.work().unwrap().id().as_str(), format!("s{}", MANY - 1));
    drop(work);
    let drain = spawn_drain(&sessions);
    tokio::time::sleep(SECOND / 2).await;
    assert_eq!(sessions.len(), 1);
    drop(request.answer(answer(200, &[])));
    assert!(sessions.is_empty());
    assert!(drain.await.unwrap().is_clean());
    drop(guard);
}
