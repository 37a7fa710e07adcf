//! `session_end_service` with tower's timeout and retry, as the example has them, against receivers that are no good: what comes
//! to them, and what the drain says of it.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    routing::post,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tower_session_end::{ActiveSessions, DrainReport, EndReason, HookError, Session};

fn assert_sum(report: &DrainReport) {
    let over = report.ended + report.failed + report.kept + report.forgotten;
    assert_eq!(report.total(), over + report.unfinished_count, "{report}");
}

async fn within<F: Future>(what: &str, future: F) -> F::Output {
    let output = tokio::time::timeout(Duration::from_secs(20), future).await;
    output.unwrap_or_else(|_| panic!("stuck: {what}"))
}

/// What a receiver does with a try.
#[derive(Clone, Copy, Debug)]
enum Does {
    Say(u16),
    Hang,
}

/// One try as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Try {
    key: String,
    content_type: String,
    body: String,
}

#[derive(Clone)]
struct Receiver {
    /// What becomes of the first try of an event, of the second, and so on; the last is for all that follow.
    script: &'static [Does],
    tries: Arc<Mutex<Vec<Try>>>,
}

impl Receiver {
    fn new(script: &'static [Does]) -> Self {
        Self { script, tries: Arc::default() }
    }

    /// Listens on a port of its own.
    async fn start(&self) -> (Uri, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?from=gateway", listener.local_addr().unwrap()).parse().unwrap();
        (url, self.serve(listener))
    }

    fn serve(&self, listener: TcpListener) -> JoinHandle<()> {
        let app = Router::new().route("/hook", post(receive)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() })
    }

    fn tries(&self) -> Vec<Try> {
        self.tries.lock().unwrap().clone()
    }

    /// The tries of each event, by its key.
    fn by_key(&self) -> BTreeMap<String, Vec<Try>> {
        let mut by_key = BTreeMap::<_, Vec<_>>::new();
        for one in self.tries() {
            by_key.entry(one.key.clone()).or_default().push(one);
        }
        by_key
    }
}

async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, body: String) -> StatusCode {
    let header = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let one = Try { key: header("idempotency-key"), content_type: header("content-type"), body };
    let number = {
        let mut tries = receiver.tries.lock().unwrap();
        tries.push(one.clone());
        tries.iter().filter(|other| other.key == one.key).count()
    };
    match receiver.script[(number - 1).min(receiver.script.len() - 1)] {
        Does::Say(status) => StatusCode::from_u16(status).unwrap(),
        Does::Hang => pending().await,
    }
}

/// Of a try; short where the receiver hangs, because that is waited for.
const SHORT: Duration = Duration::from_millis(100);
/// Where it answers, however busy the machine.
const LONG: Duration = Duration::from_secs(15);

fn sessions(url: Uri, tries: u32, patience: Duration) -> ActiveSessions {
    let builder = ActiveSessions::builder().drain_timeout(Duration::from_secs(15));
    builder.session_end_service(super::webhook(url, tries, patience)).build().unwrap()
}

#[tokio::test]
async fn a_receiver_that_fails_twice_then_hangs_then_answers_has_each_event_under_one_key() {
    let receiver = Receiver::new(&[Does::Say(500), Does::Say(503), Does::Hang, Does::Say(200)]);
    let (url, server) = receiver.start().await;
    // Many tries, so that a machine that is slower than the timeout fails nobody.
    let sessions = sessions(url, 30, SHORT * 5);
    for id in ["a", "b", "c"] {
        sessions.note(Session::try_from(id).unwrap().with_key("chat"));
    }
    sessions.end("a", EndReason::Deleted);

    let report = within("the drain", sessions.drain(EndReason::Shutdown)).await;

    // Deliveries are counted, not attempts.
    assert!(report.is_clean() && !report.timed_out, "{report}");
    assert_eq!((report.active, report.already_ending, report.ended, report.failed), (2, 1, 3, 0), "{report}");
    assert_sum(&report);
    assert!(report.failures.is_empty(), "{report:?}");
    let by_key = receiver.by_key();
    assert_eq!(by_key.len(), 3, "{by_key:?}");
    let mut ended = Vec::new();
    for (key, tries) in by_key {
        assert_eq!((key.len() > 33, key.as_bytes()[32]), (true, b'-'), "an event id: {key}");
        assert!(tries.len() >= 4, "{tries:?}");
        // Each try is the same request.
        assert!(tries.iter().all(|one| *one == tries[0]), "{tries:?}");
        assert_eq!(tries[0].content_type, "application/json");
        let body: serde_json::Value = serde_json::from_str(&tries[0].body).unwrap();
        ended.push(format!("{} {} {}", body["sessionId"], body["sessionKey"], body["reason"]).replace('"', ""));
    }
    ended.sort();
    assert_eq!(ended, ["a chat deleted", "b chat shutdown", "c chat shutdown"]);
    server.abort();
}

#[tokio::test]
async fn a_session_that_comes_again_has_another_key() {
    let receiver = Receiver::new(&[Does::Say(204)]);
    let (url, server) = receiver.start().await;
    let sessions = sessions(url, 3, LONG);
    for _ in 0..3 {
        sessions.note("a");
        sessions.end("a", EndReason::Reset);
    }
    let report = within("the drain", sessions.drain(EndReason::Shutdown)).await;
    assert_eq!((report.already_ending, report.ended), (3, 3), "{report}");
    assert_eq!((receiver.by_key().len(), receiver.tries().len()), (3, 3));
    server.abort();
}

#[tokio::test]
async fn a_receiver_that_never_accepts_is_one_failure_for_each_session() {
    let receiver = Receiver::new(&[Does::Say(500)]);
    let (url, server) = receiver.start().await;
    let sessions = sessions(url, 3, LONG);
    sessions.note("a");
    sessions.note("b");

    let report = within("the drain", sessions.drain(EndReason::Shutdown)).await;

    assert_eq!((report.ended, report.failed, report.unfinished.len()), (0, 2, 0), "{report}");
    assert_sum(&report);
    assert_eq!(report.failures.len(), 2, "{report:?}");
    for failure in &report.failures {
        assert!(failure.hook.starts_with("session_end_service at tests.rs:"), "{failure:?}");
        let HookError::Failed(error) = &failure.error else { panic!("{failure:?}") };
        assert_eq!(error.to_string(), "the receiver answered 500 Internal Server Error");
    }
    let by_key = receiver.by_key();
    assert!(by_key.values().all(|tries| tries.len() == 3), "{by_key:?}");
    server.abort();
}

#[tokio::test]
async fn what_a_receiver_refuses_is_not_tried_again() {
    let receiver = Receiver::new(&[Does::Say(422), Does::Say(200)]);
    let (url, server) = receiver.start().await;
    let sessions = sessions(url, 3, LONG);
    sessions.note("a");
    let report = within("the drain", sessions.drain(EndReason::Shutdown)).await;
    assert_eq!((report.failed, receiver.tries().len()), (1, 1), "{report}");
    server.abort();
}

#[tokio::test]
async fn a_receiver_that_asks_for_patience_gets_it() {
    let receiver = Receiver::new(&[Does::Say(429), Does::Say(200)]);
    let (url, server) = receiver.start().await;
    let sessions = sessions(url, 3, LONG);
    sessions.note("a");
    let report = within("the drain", sessions.drain(EndReason::Shutdown)).await;
    assert_eq!((report.ended, receiver.tries().len()), (1, 2), "{report}");
    server.abort();
}

#[tokio::test]
async fn a_receiver_that_is_cut_off_gets_another_try() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Uri = format!("http://{}/hook", listener.local_addr().unwrap()).parse().unwrap();
    let receiver = Receiver::new(&[Does::Say(200)]);
    let sessions = sessions(url, 5, LONG);
    sessions.note("a");
    let drain = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.drain(EndReason::Shutdown).await }
    });
    // Two connections that are closed before there is an answer, and only then somebody who answers.
    for _ in 0..2 {
        drop(within("a try", listener.accept()).await.unwrap());
    }
    let server = receiver.serve(listener);
    let report = within("the drain", drain).await.unwrap();
    assert_eq!((report.ended, report.failed), (1, 0), "{report}");
    assert_eq!(receiver.tries().len(), 1);
    server.abort();
}

#[tokio::test]
async fn g06_a_receiver_that_hangs_for_ever_is_unfinished_at_the_deadline_and_delays_nobody() {
    let receiver = Receiver::new(&[Does::Hang]);
    let (url, server) = receiver.start().await;
    let (done, mut other) = tokio::sync::mpsc::unbounded_channel();
    let sessions = ActiveSessions::builder()
        .drain_timeout(Duration::from_millis(500))
        // Each try takes longer than there is time.
        .session_end_service(super::webhook(url, 3, LONG))
        .on_session_end(move |end| {
            let done = done.clone();
            async move { done.send(end.session.id) }
        })
        .build()
        .unwrap();
    sessions.note("a");

    let report = within("the drain", sessions.drain(EndReason::Shutdown)).await;

    assert!(report.timed_out, "{report}");
    assert_eq!((report.ended, report.failed, report.unfinished.len()), (0, 0, 1), "{report}");
    assert_sum(&report);
    assert_eq!(within("the other hook", other.recv()).await.unwrap(), "a");
    server.abort();
}

#[tokio::test]
async fn no_try_begins_after_the_deadline_so_the_report_has_the_error() {
    let receiver = Receiver::new(&[Does::Say(500)]);
    let (url, server) = receiver.start().await;
    let sessions = ActiveSessions::builder()
        .drain_timeout(Duration::from_secs(3))
        .session_end_service(super::webhook(url, u32::MAX, LONG))
        .build()
        .unwrap();
    sessions.note("a");

    let report = within("the drain", sessions.drain(EndReason::Shutdown)).await;

    // 20 ms, 40 ms, 80 ms: 2,560 ms would be too long a wait, if not one before.
    assert_eq!((report.failed, report.unfinished.len()), (1, 0), "{report}");
    let tries = receiver.tries().len();
    assert!((2..=7).contains(&tries), "{tries} tries");
    server.abort();
}
