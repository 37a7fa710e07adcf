//! The hosts of the request benchmarks, and requests as a server parses them.

use std::{
    convert::Infallible,
    fmt::Write,
    future::{Ready, ready},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tower_service::Service;
use tower_session_end::BoxError;

/// The one session that all requests with an id belong to.
pub(crate) const ID: &str = "0b6e2f0c-3a5e-4c0e-9d4e-5d1e6c1f8a77";

pub(crate) static ID_HEADER: HeaderName = HeaderName::from_static("x-session-id");

/// The number of headers of a request, without the id: those of a small client, and those of a browser behind a proxy.
pub(crate) const HEADERS: [usize; 2] = [3, 15];

/// Which heads of an exchange carry a session id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionUse {
    /// Neither.
    None,
    /// The request carries the id; the host does not repeat it.
    InRequest,
    /// The request carries the id, and the host repeats it.
    InBoth,
    /// The host answers with a new id each time.
    NewId,
}

impl SessionUse {
    pub(crate) const ALL: [Self; 4] = [Self::None, Self::InRequest, Self::InBoth, Self::NewId];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "no id",
            Self::InRequest => "known id in the request",
            Self::InBoth => "known id in both",
            Self::NewId => "a new session",
        }
    }

    /// A new request with that many headers, and with the id if this variant has one. `cookie` sends the id as a
    /// cookie, for a layer that does not read `x-session-id`.
    pub(crate) fn request(self, headers: usize, cookie: bool) -> Request<Full<Bytes>> {
        const NAMES: [(&str, &str); 15] = [
            ("host", "gateway.example.com"),
            ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
            ("accept", "application/json"),
            ("accept-encoding", "gzip, deflate, br, zstd"),
            ("accept-language", "en-US,en;q=0.5"),
            ("content-type", "application/json"),
            ("content-length", "5"),
            ("authorization", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG_HACGpVUMN_a9IV7pAx"),
            ("dnt", "1"),
            ("origin", "https://example.com"),
            ("referer", "https://example.com/chat"),
            ("x-forwarded-for", "203.0.113.7"),
            ("x-forwarded-proto", "https"),
            ("x-request-start", "t=1700000000000"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ];
        let mut head = NAMES[..headers].to_vec();
        match self {
            Self::None | Self::NewId => {}
            Self::InRequest | Self::InBoth if cookie => head.push(("cookie", "id=WXBD8ITOXHXRvYi0N7Y4zg")),
            Self::InRequest | Self::InBoth => head.push((ID_HEADER.as_str(), ID)),
        }
        let mut request = Request::new(Full::from(Bytes::from_static(b"hello")));
        *request.headers_mut() = parsed(&head);
        request
    }
}

/// A head as hyper makes it: the values are slices of the one buffer that the head was read into. Values made from
/// static text are cheaper to clone, and would favour a layer that clones them.
fn parsed(head: &[(&str, &str)]) -> HeaderMap {
    let mut buffer = BytesMut::with_capacity(head.iter().map(|(_, value)| value.len()).sum());
    head.iter().for_each(|(_, value)| buffer.extend_from_slice(value.as_bytes()));
    let buffer = buffer.split().freeze();
    let mut headers = HeaderMap::with_capacity(head.len() + 1);
    let mut begin = 0;
    for (name, value) in head {
        let bytes = buffer.slice(begin..begin + value.len());
        begin += value.len();
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        headers.append(name, HeaderValue::from_maybe_shared(bytes).expect("a header value"));
    }
    headers
}

/// Answers at once, with three headers of its own and a body of one frame.
#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) session_use: SessionUse,
    pub(crate) starts: u64,
}

impl Service<Request<Full<Bytes>>> for Host {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        const NAMES: [HeaderName; 3] =
            [http::header::CONTENT_TYPE, http::header::CACHE_CONTROL, HeaderName::from_static("x-request-id")];
        let mut response = Response::new(Full::from(Bytes::from_static(b"{}")));
        let headers = response.headers_mut();
        headers.reserve(NAMES.len() + 1);
        for name in NAMES {
            headers.insert(name, HeaderValue::from_static("a value"));
        }
        match self.session_use {
            SessionUse::None | SessionUse::InRequest => {}
            SessionUse::InBoth => {
                if let Some(id) = request.headers().get(&ID_HEADER) {
                    headers.insert(ID_HEADER.clone(), id.clone());
                }
            }
            SessionUse::NewId => {
                self.starts += 1;
                let mut id = BytesMut::with_capacity(36);
                write!(id, "{:020}-9d4e-5d1e6c1f8a", self.starts).expect("it fits");
                headers.insert(ID_HEADER.clone(), HeaderValue::from_maybe_shared(id.freeze()).expect("a value"));
            }
        }
        ready(Ok(response))
    }
}

/// Answers at once, with a body of `frames` frames.
#[derive(Clone)]
pub(crate) struct Streams {
    pub(crate) frames: usize,
    pub(crate) kind: Kind,
}

/// The kind of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its length is known.
    Sized,
    /// Its length is not known.
    Unsized,
    /// It is an event stream.
    Events,
}

impl Service<Request<Full<Bytes>>> for Streams {
    type Response = Response<Frames>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        let mut response = Response::new(Frames { left: self.frames, is_sized: self.kind == Kind::Sized });
        if self.kind == Kind::Events {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        }
        ready(Ok(response))
    }
}

/// A body whose frames are ready at once.
#[derive(Default)]
pub(crate) struct Frames {
    left: usize,
    is_sized: bool,
}

impl Body for Frames {
    type Data = Bytes;
    // Boxed, as most bodies made in a handler are.
    type Error = BoxError;

    // Not inlined: a real body is behind a call or two.
    #[inline(never)]
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let is_over = self.left == 0;
        self.left = self.left.saturating_sub(1);
        Poll::Ready((!is_over).then(|| Ok(Frame::data(Bytes::from_static(b"a frame!")))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.is_sized
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_sized { SizeHint::with_exact(8 * self.left as u64) } else { SizeHint::default() }
    }
}
