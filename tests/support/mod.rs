//! What the tests share.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

pub(crate) mod clients;
pub(crate) mod logging;
mod net;
pub(crate) mod operations_page;
#[cfg(feature = "postgres")]
pub(crate) mod postgres_server;
pub(crate) mod random;
pub(crate) mod recorder;
#[cfg(feature = "redis")]
pub(crate) mod redis_server;
pub(crate) mod replica;
mod script;
pub(crate) mod store;
mod under_way;

use std::{convert::Infallible, future::ready};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use tower::{ServiceExt, service_fn};
use tower_session_end::{SessionBody, SessionLayer};

pub(crate) use self::{
    net::{Raw, Running, h1_client, h2_client, serve, within},
    random::{Random, storm_seeds},
    recorder::{Event, Recorder, assert_sum},
    script::{Failed, Hint, Script, Step},
    under_way::{UnderWay, stop},
};

/// A response of the host with these headers, in their order, repeats included.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)]) -> Response<Empty<Bytes>> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Empty::new()).unwrap()
}

/// A request with these headers.
pub(crate) fn ask(headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::post("/");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

/// One exchange through the layer, with a host that gives this answer.
pub(crate) async fn exchange(
    layer: &SessionLayer,
    request: Request<()>,
    response: Response<Empty<Bytes>>,
) -> Response<SessionBody<Empty<Bytes>>> {
    let mut response = Some(response);
    let host = service_fn(move |_: Request<()>| ready(Ok::<_, Infallible>(response.take().unwrap())));
    tower_layer::Layer::layer(layer, host).oneshot(request).await.unwrap()
}

/// As [`exchange`], for a request and a response with nothing but these headers, and status 200.
pub(crate) async fn say(layer: &SessionLayer, request: &[(&str, &str)], response: &[(&str, &str)]) {
    let response = exchange(layer, ask(request), answer(200, response)).await;
    assert_eq!(response.status(), StatusCode::OK);
}
