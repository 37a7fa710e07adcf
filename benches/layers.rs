//! The layers that the request benchmarks compare, and a driver that calls them as a server does.

use std::{
    convert::Infallible,
    fmt::Display,
    future::Future,
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response, request, response};
use http_body::{Body, Frame};
use http_body_util::Full;
use tower_http::{
    metrics::InFlightRequestsLayer,
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    trace::TraceLayer,
};
use tower_layer::Layer;
use tower_service::Service;
use tower_session_end::{
    ActiveSessions, BoxError, HeaderProtocol, RequestInfo, SessionId, SessionProtocol, SessionUpdate,
};
use tower_sessions::{MemoryStore, SessionManagerLayer};

use crate::host::{Host, ID, ID_HEADER, Kind, SessionUse, Streams};

/// Other active sessions, so that the table does not hold one session only.
const OTHERS: usize = 10_000;

/// The layer around the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerKind {
    /// No layer.
    Bare,
    /// This crate's layer without its extractors.
    Sessions,
    /// This crate's layer with its defaults.
    Extractors,
    /// This crate's layer with a custom protocol, without the extractors.
    Own,
    /// tower-http's layer that copies the same header from the request to the response.
    Propagate,
    /// tower-http's layer that makes an id for each request that has none.
    Set,
    /// tower-http's layer that counts requests in flight to the end of their bodies.
    InFlight,
    /// tower-http's tracing layer, without a subscriber.
    Trace,
    /// tower-sessions with its store in memory.
    TowerSessions,
}

impl LayerKind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Bare,
        Self::Sessions,
        Self::Extractors,
        Self::Own,
        Self::Propagate,
        Self::Set,
        Self::InFlight,
        Self::Trace,
        Self::TowerSessions,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Sessions => "this layer",
            Self::Extractors => "this layer, extractors on",
            Self::Own => "this layer, custom protocol",
            Self::Propagate => "PropagateRequestId",
            Self::Set => "SetRequestId",
            Self::InFlight => "InFlightRequests",
            Self::Trace => "TraceLayer",
            Self::TowerSessions => "tower-sessions",
        }
    }
}

/// One exchange that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) layer: LayerKind,
    pub(crate) session_use: SessionUse,
    /// Headers of the request, without the id.
    pub(crate) headers: usize,
    /// The frames of the response body, if it has more than one.
    pub(crate) frames: Option<(Kind, usize)>,
}

/// Handles one request to the end of its response body.
pub(crate) type Exchange = Box<dyn FnMut(Request<Full<Bytes>>)>;

impl Case {
    pub(crate) fn request(self) -> Request<Full<Bytes>> {
        self.session_use.request(self.headers, self.layer == LayerKind::TowerSessions)
    }

    /// The host with its layer. The indirection is the same for all layers.
    pub(crate) fn exchange(self) -> Exchange {
        match self.frames {
            None => self.wrap(Host { session_use: self.session_use, starts: 0 }),
            Some((kind, frames)) => self.wrap(Streams { kind, frames }),
        }
    }

    fn wrap<S, B>(self, host: S) -> Exchange
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible, Future: Send>
            + Clone
            + Send
            + 'static,
        B: Body<Data = Bytes, Error: Display + Into<BoxError>> + Default + Send + 'static,
    {
        let has_many_frames = self.frames.is_some();
        match self.layer {
            LayerKind::Bare => driven(host, has_many_frames),
            LayerKind::Sessions => driven(sessions().layer().without_extractors().layer(host), has_many_frames),
            LayerKind::Extractors => driven(sessions().layer().layer(host), has_many_frames),
            LayerKind::Own => driven(
                sessions().layer_with(Own(HeaderProtocol::new())).without_extractors().layer(host),
                has_many_frames,
            ),
            LayerKind::Propagate => {
                driven(PropagateRequestIdLayer::new(ID_HEADER.clone()).layer(host), has_many_frames)
            }
            LayerKind::Set => {
                driven(SetRequestIdLayer::new(ID_HEADER.clone(), MakeRequestUuid).layer(host), has_many_frames)
            }
            LayerKind::InFlight => driven(InFlightRequestsLayer::pair().0.layer(host), has_many_frames),
            LayerKind::Trace => driven(TraceLayer::new_for_http().layer(host), has_many_frames),
            LayerKind::TowerSessions => {
                driven(SessionManagerLayer::new(MemoryStore::default()).layer(host), has_many_frames)
            }
        }
    }
}

/// The same rules as `HeaderProtocol`, but the layer treats it as a custom protocol.
struct Own(HeaderProtocol);

impl SessionProtocol for Own {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        self.0.request_id(request)
    }

    fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate {
        self.0.response(request, response)
    }
}

pub(crate) fn sessions() -> ActiveSessions {
    let sessions = ActiveSessions::builder().build().expect("the defaults are valid");
    sessions.note(ID);
    for other in 0..OTHERS {
        sessions.note(format!("other-{other}"));
    }
    sessions
}

/// Drives a service as hyper does: polls the future once, and the body until its end. The calls and polls go through
/// functions that are not inlined, because in a server they are in another crate.
fn driven<S, B>(mut service: S, has_many_frames: bool) -> Exchange
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Future: Future<Output = Result<Response<B>, S::Error>>>
        + 'static,
    B: Body + 'static,
{
    let polls = if has_many_frames { poll_inlined::<B> } else { poll_not_inlined::<B> };
    Box::new(move |request| {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(service.poll_ready(&mut cx).is_ready(), "the host must always be ready");
        let Poll::Ready(Ok(response)) = poll(pin!(call(&mut service, request)), &mut cx) else {
            panic!("the host must answer at once");
        };
        let (head, body) = response.into_parts();
        black_box(&head);
        polls(pin!(body), &mut cx);
    })
}

#[inline(never)]
fn call<S: Service<Request<Full<Bytes>>>>(service: &mut S, request: Request<Full<Bytes>>) -> S::Future {
    service.call(request)
}

#[inline(never)]
fn poll<F: Future>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    future.poll(cx)
}

fn poll_not_inlined<B: Body>(mut body: Pin<&mut B>, cx: &mut Context<'_>) {
    while !body.is_end_stream() {
        let Poll::Ready(Some(frame)) = poll_frame(body.as_mut(), cx) else { break };
        black_box(frame.is_ok());
    }
}

/// The outcome of one poll of a body.
type Polled<B> = Poll<Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>>;

#[inline(never)]
fn poll_frame<B: Body>(body: Pin<&mut B>, cx: &mut Context<'_>) -> Polled<B> {
    body.poll_frame(cx)
}

/// For bodies of many frames: a loop that knows the type of the body.
fn poll_inlined<B: Body>(mut body: Pin<&mut B>, cx: &mut Context<'_>) {
    while !body.is_end_stream() {
        let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(cx) else { break };
        black_box(frame.is_ok());
    }
}
