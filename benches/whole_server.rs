//! A whole axum server with hyper's client at the other end of a pipe in memory, all on one thread. Its counts depend on
//! no network and no scheduler.

use std::{
    future::pending,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, HeaderValue, Method, Request, Uri,
        header::{CACHE_CONTROL, COOKIE, DATE, HOST},
    },
    response::{IntoResponse, Response},
    routing::post,
    serve::Listener,
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{DuplexStream, duplex},
    runtime::{Builder, Runtime},
};
use tower_http::{map_response_body::MapResponseBodyLayer, request_id::PropagateRequestIdLayer, trace::TraceLayer};
use tower_layer::Identity;
use tower_sessions::{MemoryStore, SessionManagerLayer};

use crate::{
    host::{ID_HEADER, SessionUse},
    layers::sessions,
};

/// Headers of the request besides the cookie, the id, the length and, over HTTP/2, the host.
const HEADERS: usize = 4;

/// The layer around the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerLayer {
    /// No layer.
    Bare,
    /// A layer that does nothing: axum's own price.
    Identity,
    /// A layer that only changes the type of the body.
    OtherBody,
    /// This crate's layer with its defaults.
    Sessions,
    /// This crate's layer without its extractors.
    WithoutExtractors,
    /// tower-http's layer that copies the same header from the request to the response.
    Propagate,
    /// tower-http's tracing layer, without a subscriber.
    Trace,
    /// tower-sessions with its store in memory.
    TowerSessions,
}

impl ServerLayer {
    pub(crate) const ALL: [Self; 8] = [
        Self::Bare,
        Self::Identity,
        Self::OtherBody,
        Self::Sessions,
        Self::WithoutExtractors,
        Self::Propagate,
        Self::Trace,
        Self::TowerSessions,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Identity => "identity",
            Self::OtherBody => "body of another type",
            Self::Sessions => "this layer",
            Self::WithoutExtractors => "this layer, without extractors",
            Self::Propagate => "PropagateRequestId",
            Self::Trace => "TraceLayer",
            Self::TowerSessions => "tower-sessions",
        }
    }

    fn around(self, app: Router) -> Router {
        match self {
            Self::Bare => app,
            Self::Identity => app.layer(Identity::new()),
            Self::OtherBody => app.layer(MapResponseBodyLayer::new(Other)),
            Self::Sessions => app.layer(sessions().layer()),
            Self::WithoutExtractors => app.layer(sessions().layer().without_extractors()),
            Self::Propagate => app.layer(PropagateRequestIdLayer::new(ID_HEADER.clone())),
            Self::Trace => app.layer(TraceLayer::new_for_http()),
            Self::TowerSessions => app.layer(SessionManagerLayer::new(MemoryStore::default())),
        }
    }
}

/// The protocol of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    pub(crate) const ALL: [Self; 2] = [Self::Http1, Self::Http2];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// One exchange that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServerCase {
    pub(crate) layer: ServerLayer,
    pub(crate) session_use: SessionUse,
    pub(crate) protocol: Protocol,
}

impl ServerCase {
    /// The rows of a table.
    pub(crate) fn exchanges() -> impl Iterator<Item = (Protocol, SessionUse)> {
        let uses = [SessionUse::None, SessionUse::InBoth];
        Protocol::ALL.into_iter().flat_map(move |protocol| uses.map(|session_use| (protocol, session_use)))
    }

    pub(crate) fn connect(self) -> Connection {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = runtime.block_on(self.start());
        Connection { case: self, runtime, client }
    }

    async fn start(self) -> Client {
        let app = self.layer.around(Router::new().route("/chat", post(chat)).with_state(self.session_use));
        let (client, server) = duplex(64 * 1024);
        tokio::spawn(async move { axum::serve(Pipe(Some(server)), app).await });
        let io = TokioIo::new(client);
        match self.protocol {
            Protocol::Http1 => {
                let (client, connection) = http1::handshake(io).await.expect("a connection");
                tokio::spawn(connection);
                Client::Http1(client)
            }
            Protocol::Http2 => {
                let (client, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("a connection");
                tokio::spawn(connection);
                Client::Http2(client)
            }
        }
    }

    fn request(self) -> Request<Full<Bytes>> {
        let mut request = self.session_use.request(HEADERS, false);
        // The requests of all layers are the same; tower-sessions reads the cookie.
        request.headers_mut().insert(COOKIE, HeaderValue::from_static("id=WXBD8ITOXHXRvYi0N7Y4zg"));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = match self.protocol {
            Protocol::Http1 => Uri::from_static("/chat"),
            Protocol::Http2 => {
                request.headers_mut().remove(HOST);
                Uri::from_static("http://gateway.example.com/chat")
            }
        };
        request
    }
}

/// The server and its client. The client sends one request at a time.
pub(crate) struct Connection {
    case: ServerCase,
    runtime: Runtime,
    client: Client,
}

enum Client {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    /// One exchange, to the end of the response's body.
    pub(crate) fn exchange(&mut self) {
        let request = self.case.request();
        let client = &mut self.client;
        self.runtime.block_on(async {
            let response = match client {
                Client::Http1(client) => {
                    client.ready().await.expect("the connection is kept alive");
                    client.send_request(request).await
                }
                Client::Http2(client) => client.send_request(request).await,
            };
            let response = response.expect("a response");
            assert!(response.status().is_success(), "{response:?}");
            assert_eq!(response.headers().contains_key(&ID_HEADER), self.case.session_use == SessionUse::InBoth);
            let body = response.into_body().collect().await.expect("a body").to_bytes();
            assert_eq!(body, ANSWER);
        });
    }
}

const ANSWER: &str = "{\"answer\":42}";

/// Answers with two headers of its own, and repeats the id of a known session. The one is the date, which hyper would add:
/// its value would change with the time.
async fn chat(State(session_use): State<SessionUse>, headers: HeaderMap, _body: String) -> Response {
    let own = [(CACHE_CONTROL, "no-store"), (DATE, "Sun, 06 Nov 1994 08:49:37 GMT")];
    match headers.get(&ID_HEADER).filter(|_| session_use == SessionUse::InBoth) {
        Some(id) => (own, [(ID_HEADER.clone(), id.clone())], ANSWER).into_response(),
        None => (own, ANSWER).into_response(),
    }
}

/// A listener that accepts one connection.
struct Pipe(Option<DuplexStream>);

impl Listener for Pipe {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.take() {
            Some(pipe) => (pipe, ()),
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// axum's body behind another type.
struct Other(axum::body::Body);

impl Body for Other {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
