//! The host of the request benchmarks, the layers around it, and requests as a server parses them.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderName, HeaderValue, Request, Response,
    header::{CONTENT_TYPE, HeaderMap},
};
use http_body::Body;
use http_body_util::Full;
use tower_http::request_id::PropagateRequestIdLayer;
use tower_layer::Layer;
use tower_service::Service;
use tower_session_end::{ActiveSessions, SessionEnd};

/// The one session that all requests with an id belong to.
const ID: &str = "0b6e2f0c-3a5e-4c0e-9d4e-5d1e6c1f8a77";

static ID_HEADER: HeaderName = HeaderName::from_static("x-session-id");

/// Sessions of others, so that the table is no table of one.
const OTHERS: usize = 1000;

/// What stands around the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Around {
    /// Nothing.
    Bare,
    /// Our layer without its extractors.
    Sessions,
    /// Our layer as it comes.
    Extractors,
    /// The yardstick: it carries the same header from the request to the response.
    Propagate,
}

/// Where the id stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Id {
    /// Nowhere.
    Absent,
    /// In the request; the host does not repeat it.
    Request,
    /// In the request, and the host repeats it.
    Both,
}

/// One exchange that is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) around: Around,
    pub(crate) id: Id,
    /// Headers of the request, without the id.
    pub(crate) headers: usize,
}

impl Around {
    pub(crate) const ALL: [Self; 4] = [Self::Bare, Self::Sessions, Self::Extractors, Self::Propagate];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Sessions => "sessions",
            Self::Extractors => "sessions+extractors",
            Self::Propagate => "PropagateRequestId",
        }
    }
}

impl Id {
    pub(crate) const ALL: [Self; 3] = [Self::Absent, Self::Request, Self::Both];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Absent => "id absent",
            Self::Request => "id in the request",
            Self::Both => "id in both",
        }
    }
}

/// How many headers a request has, without the id: those of a small client, and those of a browser behind a proxy.
pub(crate) const HEADERS: [usize; 2] = [3, 15];

/// Handles one request to the end of its response's body.
pub(crate) type Exchange = Box<dyn FnMut(Request<Full<Bytes>>)>;

impl Case {
    /// The host with what stands around it. The indirection is the same for all of them.
    pub(crate) fn exchange(self) -> Exchange {
        let host = Host { repeats: self.id == Id::Both };
        match self.around {
            Around::Bare => exchange_with(host),
            Around::Sessions => exchange_with(sessions().layer().without_extractors().layer(host)),
            Around::Extractors => exchange_with(sessions().layer().layer(host)),
            Around::Propagate => exchange_with(PropagateRequestIdLayer::new(ID_HEADER.clone()).layer(host)),
        }
    }

    /// A fresh request.
    pub(crate) fn request(self) -> Request<Full<Bytes>> {
        const NAMES: [(&str, &str); 15] = [
            ("host", "gateway.example.com"),
            ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
            ("accept", "application/json"),
            ("accept-encoding", "gzip, deflate, br, zstd"),
            ("accept-language", "en-US,en;q=0.5"),
            ("content-type", "application/json"),
            ("content-length", "5"),
            ("authorization", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.ZRrHA1JJJW8opsbCGfG_HACGpVUMN_a9IV7pAx"),
            ("cookie", "theme=dark; consent=yes"),
            ("origin", "https://example.com"),
            ("referer", "https://example.com/chat"),
            ("x-forwarded-for", "203.0.113.7"),
            ("x-forwarded-proto", "https"),
            ("x-request-start", "t=1700000000000"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ];
        let mut head = Head::new();
        for (name, value) in &NAMES[..self.headers] {
            head.push(name, value);
        }
        if self.id != Id::Absent {
            head.push(ID_HEADER.as_str(), ID);
        }
        let mut request = Request::new(Full::from(Bytes::from_static(b"hello")));
        *request.headers_mut() = head.headers;
        request
    }
}

/// Builds header values as a server does, which cuts them out of its read buffer. Values made from a static text are
/// cheaper to clone, and would flatter whoever clones them.
struct Head {
    buffer: BytesMut,
    headers: HeaderMap,
}

impl Head {
    fn new() -> Self {
        Self { buffer: BytesMut::with_capacity(1024), headers: HeaderMap::with_capacity(16) }
    }

    fn push(&mut self, name: &str, value: &str) {
        self.buffer.extend_from_slice(value.as_bytes());
        let value = self.buffer.split_to(value.len()).freeze();
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        self.headers.append(name, HeaderValue::from_maybe_shared(value).expect("a header value"));
    }
}

/// Answers at once, with one header of its own.
struct Host {
    repeats: bool,
}

impl Service<Request<Full<Bytes>>> for Host {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let mut response = Response::new(Full::from(Bytes::from_static(b"{}")));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.repeats
            && let Some(id) = request.headers().get(&ID_HEADER)
        {
            headers.insert(ID_HEADER.clone(), id.clone());
        }
        ready(Ok(response))
    }
}

fn sessions() -> ActiveSessions {
    let hook = |_: SessionEnd| ready(());
    let sessions = ActiveSessions::builder().on_session_end(hook).build().expect("the defaults are legal");
    sessions.note(ID);
    for other in 0..OTHERS {
        sessions.note(format!("other-{other}"));
    }
    sessions
}

fn exchange_with<S, B>(mut service: S) -> Exchange
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Future: Future<Output = Result<Response<B>, S::Error>>>
        + 'static,
    B: Body,
{
    Box::new(move |request| {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(service.poll_ready(&mut cx).is_ready(), "the host is always ready");
        let Poll::Ready(Ok(response)) = pin!(service.call(request)).poll(&mut cx) else {
            panic!("the host answers at once");
        };
        let (head, body) = response.into_parts();
        black_box(&head);
        let mut body = pin!(body);
        while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) {
            black_box(frame.is_ok());
        }
    })
}
