//! One birth over the layer.

use std::{convert::Infallible, future::ready, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_session_end::{ActiveSessions, EndReason};

/// One response that carries a new id; says how long its head took.
pub(crate) async fn birth(sessions: &ActiveSessions, id: &str) -> Duration {
    let id = id.to_owned();
    let host = service_fn(move |_: Request<()>| {
        ready(Ok::<_, Infallible>(Response::builder().header("x-session-id", &id).body(Empty::<Bytes>::new()).unwrap()))
    });
    let begun = Instant::now();
    let response = sessions.layer().layer(host).oneshot(Request::post("/").body(()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    begun.elapsed()
}

/// One request of this session to a host that knows it.
pub(crate) async fn request(sessions: &ActiveSessions, id: &str) {
    let header = id.to_owned();
    let host = service_fn(move |_: Request<()>| {
        let response = Response::builder().header("x-session-id", &header).body(Empty::<Bytes>::new());
        ready(Ok::<_, Infallible>(response.unwrap()))
    });
    let request = Request::post("/").header("x-session-id", id).body(()).unwrap();
    assert_eq!(sessions.layer().layer(host).oneshot(request).await.unwrap().status(), 200);
}

pub(crate) fn ended(id: &str, reason: EndReason) -> (String, EndReason) {
    (id.to_owned(), reason)
}
