//! What stands around the host, and how a server drives it.

use std::{
    convert::Infallible,
    future::Future,
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response, request, response};
use http_body::Body;
use http_body_util::Full;
use tower_http::{
    metrics::InFlightRequestsLayer,
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    trace::TraceLayer,
};
use tower_layer::Layer;
use tower_service::Service;
use tower_session_end::{ActiveSessions, HeaderProtocol, RequestInfo, SessionId, SessionProtocol, SessionSignal};
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
        B: Body<Data = Bytes, Error = Infallible> + Default + Send + 'static,
    {
        match self.around {
            Around::Bare => driven(host),
            Around::Sessions => driven(sessions().layer().without_extractors().layer(host)),
            Around::Extractors => driven(sessions().layer().layer(host)),
            Around::Own => driven(sessions().layer_with(Own(HeaderProtocol::new())).without_extractors().layer(host)),
            Around::Propagate => driven(PropagateRequestIdLayer::new(ID_HEADER.clone()).layer(host)),
            Around::Set => driven(SetRequestIdLayer::new(ID_HEADER.clone(), MakeRequestUuid).layer(host)),
            Around::InFlight => driven(InFlightRequestsLayer::pair().0.layer(host)),
            Around::Trace => driven(TraceLayer::new_for_http().layer(host)),
            Around::TowerSessions => driven(SessionManagerLayer::new(MemoryStore::default()).layer(host)),
        }
    }
}

/// As the preset, but for the layer a stranger.
struct Own(HeaderProtocol);

impl SessionProtocol for Own {
    fn request_id(&self, request: &request::Parts) -> Option<SessionId> {
        self.0.request_id(request)
    }

    fn response(&self, request: &RequestInfo, response: &mut response::Parts) -> SessionSignal {
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

/// As hyper does: one poll of the future, and the body polled until it says that it is over.
fn driven<S, B>(mut service: S) -> Exchange
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
        while !body.is_end_stream() {
            let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut cx) else { break };
            black_box(frame.is_ok());
        }
    })
}
