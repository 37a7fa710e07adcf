//! Event streams whose host always has one more event: they end with their session all the same.

use std::{convert::Infallible, future::ready, pin::Pin, time::Duration};

use crate::support::{Recorder, stop};
use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{Request, Response, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::time::advance;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_session_end::{ActiveSessions, EndReason, SessionBody};

/// Far more than a stream may go on for.
const MANY: usize = 10_000;

type Torrent = StreamBody<Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>>>>>;

/// One event after another, each at the cost of so many units of its task's budget: of the waits that there are, all are
/// for a new budget.
fn torrent(cost: usize) -> Torrent {
    StreamBody::new(Box::pin(stream::unfold((), move |()| async move {
        for _ in 0..cost {
            tokio::task::coop::consume_budget().await;
        }
        Some((Ok(Frame::data(Bytes::from_static(b"data: more\n\n"))), ()))
    })))
}

/// The stream of an active session, through the layer.
async fn listen(sessions: &ActiveSessions, cost: usize) -> SessionBody<Torrent> {
    sessions.note("a");
    let host = service_fn(move |_: Request<()>| {
        let mut response = Response::new(torrent(cost));
        response.headers_mut().insert(CONTENT_TYPE, "text/event-stream".parse().unwrap());
        ready(Ok::<_, Infallible>(response))
    });
    let request = Request::get("/events").header("x-session-id", "a").body(()).unwrap();
    sessions.layer().layer(host).oneshot(request).await.unwrap().into_body()
}

/// How many of its frames come yet, and whether its end is a clean one; none if there are too many.
async fn frames_to_come(mut body: SessionBody<Torrent>) -> Option<(usize, bool)> {
    for frames in 0..MANY {
        match body.frame().await {
            Some(Ok(_)) => {}
            Some(Err(_)) => return Some((frames, false)),
            None => return Some((frames, true)),
        }
    }
    None
}

#[tokio::test(start_paused = true)]
async fn g10_a_torrent_ends_with_its_session_whatever_it_takes_of_its_tasks_budget() {
    for cost in [0, 1, 2, 3, 4, 8, 64, 128] {
        let (_, sessions) = Recorder::sessions();
        let body = listen(&sessions, cost).await;
        sessions.end("a", EndReason::Deleted);
        let end = frames_to_come(body).await;
        assert!(matches!(end, Some((_, true))), "{cost} a frame: {end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn g10_a_torrent_ends_cleanly_after_the_drain_whatever_it_takes_of_its_tasks_budget() {
    for cost in [0, 1, 2, 3, 4, 8, 64, 128] {
        let (_, sessions) = Recorder::sessions();
        let mut body = listen(&sessions, cost).await;
        sessions.shutdown_on(async {}).await;
        // Up to a goodbye, which is a moment after the drain.
        for _ in 0..200 {
            assert!(body.frame().await.unwrap().is_ok());
        }
        advance(Duration::from_secs(1)).await;
        let end = frames_to_come(body).await;
        assert!(matches!(end, Some((_, true))), "{cost} a frame: {end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn g10_a_torrent_is_cut_at_the_deadline_whatever_it_takes_of_its_tasks_budget() {
    for cost in [0, 1, 2, 3, 4, 8, 64, 128] {
        // One that does not end with its session.
        let sessions = ActiveSessions::builder().end_streams(false).build().unwrap();
        let body = listen(&sessions, cost).await;
        stop(&sessions).await;
        let end = frames_to_come(body).await;
        assert!(matches!(end, Some((_, false))), "{cost} a frame: {end:?}");
    }
}
