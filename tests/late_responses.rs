//! Responses that come late: after the end of their session, after the next generation, after the stop.

mod support;

use std::{
    convert::Infallible,
    future::pending,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use http_body_util::Empty;
use support::{Recorder, answer, ask, exchange};
use tokio::{sync::oneshot, time::Instant};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Service, service_fn};
use tower_layer::Layer;
use tower_session_end::{ActiveSessions, EndReason, Phase, SessionBody, SessionLayer, SessionSignal};

const ID: &str = "x-session-id";
const END: &str = "x-session-end";
const FROM: &str = "x-session-compacted-from";

type Answer = Response<Empty<Bytes>>;

/// A request that has come to the host, which has not answered yet.
struct UnderWay {
    host: oneshot::Sender<Answer>,
    response: task::Spawn<Pin<Box<dyn Future<Output = Response<SessionBody<Empty<Bytes>>>> + Send>>>,
}

impl UnderWay {
    fn begin(layer: &SessionLayer, request: Request<()>) -> Self {
        let (host, answer) = oneshot::channel();
        let mut answer = Some(answer);
        let service = service_fn(move |_: Request<()>| {
            let answer = answer.take().unwrap();
            async { Ok::<_, Infallible>(answer.await.unwrap()) }
        });
        let call = layer.layer(service).call(request);
        let mut response =
            task::spawn(Box::pin(async { call.await.unwrap() }) as Pin<Box<dyn Future<Output = _> + Send>>);
        assert_pending!(response.poll());
        Self { host, response }
    }

    /// The host answers, and the layer lets through or not.
    fn answer(mut self, answer: Answer) -> Response<SessionBody<Empty<Bytes>>> {
        self.host.send(answer).unwrap();
        assert!(self.response.is_woken());
        assert_ready!(self.response.poll())
    }
}

/// A stop, from the signal to the end of `finish`, with a server that never ends by itself.
async fn stop(sessions: &ActiveSessions) {
    let shutdown = tokio::spawn(sessions.shutdown_on(async {}));
    let finished = sessions.finish(pending::<()>()).await;
    shutdown.await.unwrap();
    assert!(finished.report.connections.cut);
    assert_eq!(sessions.phase(), Phase::Closed);
}

#[tokio::test(start_paused = true)]
async fn g01_a_late_delete_of_one_generation_does_not_end_the_next() {
    for status in [200, 404] {
        let (recorder, sessions) = Recorder::sessions();
        sessions.note("a");
        let delete = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
        sessions.end("a", EndReason::Reset);
        sessions.note("a");
        delete.answer(answer(status, &[(END, "deleted")]));
        assert!(sessions.contains("a"));
        assert_eq!(recorder.ended_after_drain(&sessions).await, ["a reset", "a shutdown"]);
    }
}

#[tokio::test(start_paused = true)]
async fn g01_a_late_word_of_a_handler_about_its_own_session_does_not_end_the_next() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let delete = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
    sessions.end("a", EndReason::Reset);
    sessions.note("a");
    let mut response = answer(200, &[]);
    SessionSignal::ended("a".parse().unwrap(), EndReason::Deleted).attach(&mut response);
    delete.answer(response);
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a reset", "a shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g01_two_deletes_at_once_are_one_end() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let layer = sessions.layer();
    let (first, second) = (UnderWay::begin(&layer, ask(&[(ID, "a")])), UnderWay::begin(&layer, ask(&[(ID, "a")])));
    second.answer(answer(200, &[(END, "deleted")]));
    first.answer(answer(200, &[(END, "reset")]));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a deleted"]);
}

#[tokio::test(start_paused = true)]
async fn g01_a_late_compaction_of_one_generation_leaves_the_next_alone() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let compact = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
    sessions.end("a", EndReason::Reset);
    sessions.note("a");
    compact.answer(answer(200, &[(ID, "b"), (FROM, "a")]));
    assert!(sessions.contains("a") && sessions.contains("b"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a reset", "a shutdown", "b shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g12_a_response_that_was_under_way_does_not_revive_its_session() {
    for end in [EndReason::Deleted, EndReason::Idle] {
        let (recorder, sessions) = Recorder::sessions();
        sessions.note("a");
        let echo = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
        assert!(sessions.end("a", end));
        let response = echo.answer(answer(200, &[(ID, "a")]));
        assert_eq!(response.status(), StatusCode::OK);
        assert!(sessions.is_empty(), "{end}");
        assert_eq!(recorder.ended_after_drain(&sessions).await, [format!("a {end}")]);
        assert_eq!(recorder.started(), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn g12_a_response_that_was_under_way_does_not_revive_a_forgotten_session() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let echo = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
    assert!(sessions.forget("a"));
    echo.answer(answer(200, &[(ID, "a")]));
    assert!(recorder.ended_after_drain(&sessions).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn g12_a_handlers_word_on_a_late_response_does_revive() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let late = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
    sessions.end("a", EndReason::Idle);
    let mut response = answer(200, &[(ID, "a")]);
    SessionSignal::started("a").attach(&mut response);
    late.answer(response);
    assert!(sessions.contains("a"));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a idle", "a shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g12_a_drain_revives_nothing_that_was_under_way() {
    let (recorder, sessions) = Recorder::sessions();
    sessions.note("a");
    let echo = UnderWay::begin(&sessions.layer(), ask(&[(ID, "a")]));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
    echo.answer(answer(200, &[(ID, "a")]));
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["a shutdown"]);
}

#[tokio::test(start_paused = true)]
async fn g08_in_closing_a_new_id_is_born_and_ends_and_a_brought_one_is_no_birth() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    let under_way = UnderWay::begin(&layer, ask(&[(ID, "brought-before")]));
    let _ = sessions.drain(EndReason::Restart).await;
    assert_eq!(sessions.phase(), Phase::Closing);
    let response = exchange(&layer, ask(&[(ID, "brought")]), answer(200, &[(ID, "brought")])).await;
    assert_eq!(response.status(), StatusCode::OK);
    under_way.answer(answer(200, &[(ID, "brought-before")]));
    exchange(&layer, ask(&[(ID, "brought")]), answer(200, &[(ID, "new")])).await;
    assert!(sessions.is_empty());
    assert_eq!(recorder.ended_after_drain(&sessions).await, ["new restart"]);
    assert_eq!(recorder.started(), ["new"]);
}

#[tokio::test(start_paused = true)]
async fn g08_a_head_after_the_deadline_is_503_and_notes_nothing() {
    let (recorder, sessions) = Recorder::sessions();
    let layer = sessions.layer();
    // Nobody polls them while the deadline passes: when they are, the host has just answered.
    let birth = UnderWay::begin(&layer, ask(&[]));
    let compaction = UnderWay::begin(&layer, ask(&[(ID, "old")]));
    let mut waiting = UnderWay::begin(&layer, ask(&[]));
    let begun = Instant::now();
    stop(&sessions).await;
    assert!(begun.elapsed() <= Duration::from_secs(12), "{:?}", begun.elapsed());
    for (late, headers) in [(birth, &[(ID, "a")][..]), (compaction, &[(ID, "new"), (FROM, "old")][..])] {
        let response = late.answer(answer(200, headers));
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["connection"], "close");
        assert!(!response.headers().contains_key(ID));
        assert!(response.body().is_end_stream());
    }
    // The host has not answered at all: the request is not kept waiting.
    assert!(waiting.response.is_woken());
    let response = assert_ready!(waiting.response.poll());
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(sessions.is_empty() && recorder.started().is_empty() && recorder.ended().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g08_in_closed_no_request_reaches_the_host() {
    let (recorder, sessions) = Recorder::sessions();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let mut service = sessions.layer().layer(service_fn(move |_: Request<()>| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok::<_, Infallible>(answer(200, &[(ID, "a")])))
    }));
    stop(&sessions).await;
    for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
        let mut request = ask(&[]);
        *request.version_mut() = version;
        let response = service.call(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        // HTTP/2 forbids the header, and a server would have to take it out again.
        assert_eq!(response.headers().contains_key("connection"), version != Version::HTTP_2);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    assert!(recorder.started().is_empty() && recorder.ended().is_empty());
}

/// A body that gives the same frame for ever, or none.
struct Endless(Option<Bytes>);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &self.0 {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes.clone())))),
            None => Poll::Pending,
        }
    }
}

/// A response with this body, polled once before a stop and once after it.
async fn body_over_a_stop(body: Endless) -> Option<Result<Frame<Bytes>, tower_session_end::BoxError>> {
    let sessions = ActiveSessions::builder().build().unwrap();
    let mut body = Some(body);
    let host =
        service_fn(move |_: Request<()>| std::future::ready(Ok::<_, Infallible>(Response::new(body.take().unwrap()))));
    let body = sessions.layer().layer(host).call(ask(&[])).await.unwrap().into_body();
    let mut body = task::spawn(Box::pin(body));
    let _ = body.enter(|cx, body| body.poll_frame(cx));
    stop(&sessions).await;
    let mut last = None;
    // What was on its way may come first.
    for _ in 0..100 {
        match body.enter(|cx, body| body.poll_frame(cx)) {
            Poll::Ready(Some(Ok(frame))) => last = Some(Ok(frame)),
            Poll::Ready(last) => return last,
            Poll::Pending => panic!("an open body is left waiting"),
        }
    }
    last
}

#[tokio::test(start_paused = true)]
async fn g10_a_body_that_waits_at_the_deadline_ends_with_an_error() {
    let last = body_over_a_stop(Endless(None)).await;
    assert!(matches!(&last, Some(Err(error)) if error.to_string().contains("shutting down")), "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn g10_a_body_that_never_waits_is_cut_at_the_deadline_too() {
    let last = body_over_a_stop(Endless(Some(Bytes::from_static(b"more")))).await;
    assert!(matches!(&last, Some(Err(_))), "{last:?}");
}
