//! What stands around the host, and how a server drives it.

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

use crate::host::{Host, ID, ID_HEADER, Kind, Streams, Talk};

/// Sessions of others, so that the table is no table of one.
const OTHERS: usize = 10_000;

/// What stands around the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Around {
    /// Nothing.
    Bare,
    /// Our layer without its extractors.
    Sessions,
    /// Our layer as it comes.
    Extractors,
    /// Our layer with a protocol of the user's own, without the extractors.
    Own,
    /// The first yardstick: carries the same header from the request to the response.
    Propagate,
    /// The second: makes up an id for each request that has none.
    Set,
    /// Counts requests in flight to the end of their bodies.
    InFlight,
    /// With nobody who listens to the traces.
    Trace,
    /// With its store in memory.
    TowerSessions,
}

impl Around {
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
            Self::Own => "this layer, a protocol of one's own",
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
    pub(crate) around: Around,
    pub(crate) talk: Talk,
    /// Headers of the request, without the id.
    pub(crate) headers: usize,
    /// The frames of the response body, if it is none of a single one.
    pub(crate) frames: Option<(Kind, usize)>,
}

/// Handles one request to the end of its response's body.
pub(crate) type Exchange = Box<dyn FnMut(Request<Full<Bytes>>)>;

impl Case {
    pub(crate) fn request(self) -> Request<Full<Bytes>> {
        self.talk.request(self.headers, self.around == Around::TowerSessions)
    }

    /// The host with what stands around it. The indirection is the same for all of them.
    pub(crate) fn exchange(self) -> Exchange {
        match self.frames {
            None => self.around(Host { talk: self.talk, births: 0 }),
            Some((kind, frames)) => self.around(Streams { kind, frames }),
        }
    }

    fn around<S, B>(self, host: S) -> Exchange
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible, Future: Send>
            + Clone
            + Send
            + 'static,
        B: Body<Data = Bytes, Error: Display + Into<BoxError>> + Default + Send + 'static,
    {
        let at_hand = self.frames.is_some();
        match self.around {
            Around::Bare => driven(host, at_hand),
            Around::Sessions => driven(sessions().layer().without_extractors().layer(host), at_hand),
            Around::Extractors => driven(sessions().layer().layer(host), at_hand),
            Around::Own => {
                driven(sessions().layer_with(Own(HeaderProtocol::new())).without_extractors().layer(host), at_hand)
            }
            Around::Propagate => driven(PropagateRequestIdLayer::new(ID_HEADER.clone()).layer(host), at_hand),
            Around::Set => driven(SetRequestIdLayer::new(ID_HEADER.clone(), MakeRequestUuid).layer(host), at_hand),
            Around::InFlight => driven(InFlightRequestsLayer::pair().0.layer(host), at_hand),
            Around::Trace => driven(TraceLayer::new_for_http().layer(host), at_hand),
            Around::TowerSessions => driven(SessionManagerLayer::new(MemoryStore::default()).layer(host), at_hand),
        }
    }
}

/// As the preset, but for the layer a stranger.
struct Own(HeaderProtocol);

impl SessionProtocol for Own {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        self.0.request_id(request)
    }

    fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionUpdate {
        self.0.response(request, response)
    }
}

fn sessions() -> ActiveSessions {
    let sessions = ActiveSessions::builder().build().expect("the defaults are legal");
    sessions.note(ID);
    for other in 0..OTHERS {
        sessions.note(format!("other-{other}"));
    }
    sessions
}

/// As hyper does: one poll of the future, and the body polled until it says that it is over. The service is called, and its
/// future and its body are polled, by functions that nobody can merge with what they call: in a server that is elsewhere.
fn driven<S, B>(mut service: S, at_hand: bool) -> Exchange
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Future: Future<Output = Result<Response<B>, S::Error>>>
        + 'static,
    B: Body + 'static,
{
    let polls = if at_hand { polls_at_hand::<B> } else { polls_from_afar::<B> };
    Box::new(move |request| {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(service.poll_ready(&mut cx).is_ready(), "the host is always ready");
        let Poll::Ready(Ok(response)) = poll(pin!(call(&mut service, request)), &mut cx) else {
            panic!("the host answers at once");
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

fn polls_from_afar<B: Body>(mut body: Pin<&mut B>, cx: &mut Context<'_>) {
    while !body.is_end_stream() {
        let Poll::Ready(Some(frame)) = poll_frame(body.as_mut(), cx) else { break };
        black_box(frame.is_ok());
    }
}

/// What comes of one poll of a body.
type Polled<B> = Poll<Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>>;

#[inline(never)]
fn poll_frame<B: Body>(body: Pin<&mut B>, cx: &mut Context<'_>) -> Polled<B> {
    body.poll_frame(cx)
}

/// For bodies of many frames: in a loop that knows the body's type.
fn polls_at_hand<B: Body>(mut body: Pin<&mut B>, cx: &mut Context<'_>) {
    while !body.is_end_stream() {
        let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(cx) else { break };
        black_box(frame.is_ok());
    }
}
