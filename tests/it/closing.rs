//! Requests, responses and bodies in `Closing`, at the deadline, and in `Closed`.

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

use crate::support::{Recorder, UnderWay, answer, ask, exchange, stop};
use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use tokio::time::Instant;
use tokio_test::task;
use tower::{Service, service_fn};
use tower_layer::Layer;
use tower_session_end::{ActiveSessions, EndReason, Phase};

const ID: &str = "x-session-id";
const FROM: &str = "x-session-compacted-from";

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
    // Nobody polls them while the deadline passes; when they are, the host has just answered.
    let birth = UnderWay::begin(&layer, ask(&[]));
    let compaction = UnderWay::begin(&layer, ask(&[(ID, "old")]));
    let waiting = UnderWay::begin(&layer, ask(&[]));
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
    let response = waiting.give_up();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(sessions.is_empty() && recorder.started().is_empty() && recorder.ended().is_empty());
}

#[tokio::test(start_paused = true)]
async fn g08_a_steady_stream_of_births_does_not_use_up_the_drains_time() {
    let hook = async |_| tokio::time::sleep(Duration::from_millis(20)).await;
    let sessions = ActiveSessions::builder().on_session_end(hook).build().unwrap();
    sessions.note("early");
    let births = tokio::spawn({
        let sessions = sessions.clone();
        async move {
            for n in 0.. {
                sessions.note(format!("late-{n}"));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let finish = sessions.finish(pending::<()>());
    let begun = Instant::now();
    sessions.shutdown_on(async {}).await;
    let drained_in = begun.elapsed();
    births.abort();
    let report = finish.await.report;
    // The early one took 20 ms, and the connection drain has time enough for the others.
    assert!(drained_in < Duration::from_millis(500), "{drained_in:?}: {}", report.drain);
    assert!(report.drain.is_clean() && !report.drain.timed_out, "{}", report.drain);
    assert!(report.sessions.is_clean() && report.sessions.late_starts > 0, "{}", report.sessions);
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
    assert!(
        matches!(&last, Some(Err(error)) if error.to_string().contains("the server shut down before this body ended")),
        "{last:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn g10_a_body_that_never_waits_is_cut_at_the_deadline_too() {
    let last = body_over_a_stop(Endless(Some(Bytes::from_static(b"more")))).await;
    assert!(matches!(&last, Some(Err(_))), "{last:?}");
}
