//! Heads of requests and responses, and one exchange of them through the layer.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    future::{Future, ready},
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Empty;
use tower::{Layer, Service, service_fn};
use tower_session_end::{ActiveSessions, SessionLayer};

use crate::input::Input;

/// Values that matter to some rule, or bytes as they come.
pub(crate) fn value(input: &mut Input<'_>, palette: &[&str]) -> Option<HeaderValue> {
    let value = match input.below(palette.len() + 3) {
        n if n < palette.len() => HeaderValue::from_str(palette[n]),
        n if n == palette.len() => {
            let len = 1020 + input.below(10);
            HeaderValue::from_str(&"x".repeat(len))
        }
        _ => return HeaderValue::from_bytes(input.raw()).ok(),
    };
    value.ok()
}

pub(crate) fn headers(input: &mut Input<'_>, names: &[&'static str], palette: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for _ in 0..input.below(12) {
        let name = HeaderName::from_static(input.one_of(names));
        if let Some(value) = value(input, palette) {
            headers.append(name, value);
        }
    }
    headers
}

pub(crate) fn method(input: &mut Input<'_>) -> Method {
    input.one_of(&[&Method::POST, &Method::GET, &Method::DELETE, &Method::HEAD]).clone()
}

pub(crate) fn status(input: &mut Input<'_>) -> StatusCode {
    let status = 100 + u16::from(input.byte()) * 2 + u16::from(input.byte() & 1);
    StatusCode::from_u16(status).unwrap_or(StatusCode::OK)
}

/// One exchange of these heads; what comes out of the layer.
pub(crate) fn exchange(
    layer: &SessionLayer,
    method: &Method,
    request: &HeaderMap,
    status: StatusCode,
    response: &HeaderMap,
) -> (StatusCode, HeaderMap) {
    let answer = {
        let mut answer = Response::new(Empty::<Bytes>::new());
        *answer.status_mut() = status;
        *answer.headers_mut() = response.clone();
        answer
    };
    let mut answer = Some(answer);
    let host = service_fn(move |_: Request<()>| ready(Ok::<_, Infallible>(answer.take().expect("one request"))));
    let mut head = Request::new(());
    *head.method_mut() = method.clone();
    *head.headers_mut() = request.clone();
    let mut response = pin!(layer.layer(host).call(head));
    match response.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(response)) => (response.status(), response.headers().clone()),
        Poll::Ready(Err(error)) => match error {},
        Poll::Pending => panic!("a host that is ready made the layer wait"),
    }
}

/// The ids that are active.
pub(crate) fn active(sessions: &ActiveSessions) -> BTreeSet<String> {
    let ids: BTreeSet<_> = sessions.snapshot().iter().map(|session| session.id.to_string()).collect();
    assert_eq!(ids.len(), sessions.len());
    ids
}

/// An id, by the letter of the rule.
pub(crate) fn id(value: &[u8], max_len: usize) -> Option<String> {
    let is_id = (1..=max_len).contains(&value.len()) && value.iter().all(|b| (0x21..=0x7e).contains(b));
    is_id.then(|| String::from_utf8(value.to_vec()).expect("ASCII"))
}

/// What stands in the headers of one name.
pub(crate) enum Word {
    None,
    One(Vec<u8>),
    Many,
}

pub(crate) fn word(headers: &HeaderMap, name: &str) -> Word {
    let values: BTreeSet<_> = headers.get_all(name).iter().map(|value| value.as_bytes().to_vec()).collect();
    match values.len() {
        0 => Word::None,
        1 => Word::One(values.into_iter().next().expect("one")),
        _ => Word::Many,
    }
}
