//! Two layers of one handle around one host: a request is counted once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::support::{Raw, Recorder, logging::listen, serve};
use axum::{Router, routing::post};
use http::HeaderName;
use tower_session_end::{ActiveSessions, HeaderProtocol, SessionId, SessionLayer};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// How often the warning was logged.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().name() == "session-layers-nested" {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Three requests in sessions `a` and `b`, over a real server, with two layers. Returns the requests of both, and how
/// many warnings there were.
async fn requests(
    sessions: &ActiveSessions,
    recorder: &Recorder,
    inner: SessionLayer,
    outer: SessionLayer,
) -> (Vec<(String, u64)>, usize) {
    let warnings = Warnings::default();
    let listening = listen(tracing_subscriber::registry().with(warnings.clone()));
    // The extractor has what the inner layer found.
    let app =
        Router::new().route("/", post(async |id: Option<SessionId>| id.map(|id| id.to_string()).unwrap_or_default()));
    let server = serve(sessions, app.layer(inner).layer(outer)).await;
    for id in ["a", "b"] {
        sessions.note(id);
    }
    for _ in 0..3 {
        let mut client = Raw::connect(server.addr).await;
        client.write("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nx-session-id: a\r\nx-other: b\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
    }
    assert!(server.shut_down().await.is_clean());
    drop(listening);
    let mut requests: Vec<_> = recorder.ends().iter().map(|end| (end.session.id.to_string(), end.requests)).collect();
    requests.sort();
    (requests, warnings.0.load(Ordering::SeqCst))
}

fn is(expected: [(&str, u64); 2]) -> Vec<(String, u64)> {
    expected.map(|(id, requests)| (id.to_owned(), requests)).into()
}

fn other_header() -> HeaderProtocol {
    HeaderProtocol::new().id_header(HeaderName::from_static("x-other"))
}

#[tokio::test]
async fn a_request_that_two_layers_see_is_counted_once_with_one_warning() {
    let (recorder, sessions) = Recorder::sessions();
    let counted = requests(&sessions, &recorder, sessions.layer(), sessions.layer()).await;
    assert_eq!(counted, (is([("a", 3), ("b", 0)]), 1));
}

#[tokio::test]
async fn layers_that_find_different_sessions_count_for_each_and_warn_of_nothing() {
    let (recorder, sessions) = Recorder::sessions();
    let counted = requests(&sessions, &recorder, sessions.layer_with(other_header()), sessions.layer()).await;
    assert_eq!(counted, (is([("a", 3), ("b", 3)]), 0));
}

#[tokio::test]
async fn layers_of_two_handles_count_for_each_and_warn_of_nothing() {
    let (recorder, sessions) = Recorder::sessions();
    let (others, other) = Recorder::sessions();
    other.note("a");
    let counted = requests(&sessions, &recorder, sessions.layer(), other.layer()).await;
    assert_eq!(counted, (is([("a", 3), ("b", 0)]), 0));
    others.ended_after_drain(&other).await;
    assert_eq!(others.ends()[0].requests, 3);
}
