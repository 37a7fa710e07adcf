//! Shared by the tests: the same gRPC service behind three servers, with and without the layer.
#![allow(dead_code, unused_imports, reason = "each test crate uses a part of it")]

mod host;
mod raw;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "../../../../tests/support/recorder.rs"]
mod recorder;

use std::{future::Future, net::SocketAddr, pin::Pin, pin::pin, time::Duration};

use grpc::{AgentClient, AgentServer, SESSION_ID};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{
    Request, Response,
    service::Routes,
    transport::{Channel, Server, server::TcpIncoming},
};
use tower_session_end::{ActiveSessions, SessionLayer, ShutdownFuture, ShutdownReport};

pub(crate) use self::{
    host::{Mode, OddAgent},
    raw::{RawClient, Recorded, message},
    recorder::{Recorder, assert_sum},
};

/// Longer than any step of these tests; only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits, with a limit.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("stuck: {what}"),
    }
}

/// The HTTP/2 server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum By {
    /// tonic's own server.
    Tonic,
    /// axum, with the services as routes.
    Axum,
    /// hyper without axum.
    Hyper,
}

impl By {
    pub(crate) const ALL: [Self; 3] = [Self::Tonic, Self::Axum, Self::Hyper];
}

/// A server on its own port, with `finish` around it.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    finished: JoinHandle<ShutdownReport>,
}

impl Running {
    /// tonic's client, with its own connection.
    pub(crate) async fn client(&self) -> AgentClient<Channel> {
        within("connect", AgentClient::connect(format!("http://{}", self.addr))).await.unwrap()
    }

    /// Sends the signal.
    pub(crate) fn signal(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits for the end of `finish`.
    pub(crate) async fn report(self) -> ShutdownReport {
        within("finish", self.finished).await.unwrap()
    }

    pub(crate) async fn shut_down(mut self) -> ShutdownReport {
        self.signal();
        self.report().await
    }
}

/// Serves an agent with tonic and the layer.
pub(crate) async fn serve<A: grpc::Agent>(sessions: &ActiveSessions, agent: A) -> Running {
    serve_by(By::Tonic, sessions, Some(sessions.layer()), Routes::new(AgentServer::new(agent))).await
}

pub(crate) async fn serve_by(
    by: By,
    sessions: &ActiveSessions,
    layer: Option<SessionLayer>,
    routes: Routes,
) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let signal = sessions.shutdown_on(stopped);
    let incoming = |listener| TcpIncoming::from(listener);
    let server: Pin<Box<dyn Future<Output = ()> + Send>> = match (by, layer) {
        (By::Tonic, None) => {
            let server = Server::builder().add_routes(routes);
            Box::pin(async move { server.serve_with_incoming_shutdown(incoming(listener), signal).await.unwrap() })
        }
        (By::Tonic, Some(layer)) => {
            let server = Server::builder().layer(layer).add_routes(routes);
            Box::pin(async move { server.serve_with_incoming_shutdown(incoming(listener), signal).await.unwrap() })
        }
        (By::Axum, layer) => {
            let app = routes.into_axum_router();
            let app = match layer {
                Some(layer) => app.layer(layer),
                None => app,
            };
            Box::pin(async move { axum::serve(listener, app).with_graceful_shutdown(signal).await.unwrap() })
        }
        (By::Hyper, None) => Box::pin(hyper_server(listener, routes.prepare(), signal)),
        (By::Hyper, Some(layer)) => {
            Box::pin(hyper_server(listener, tower_layer::Layer::layer(&layer, routes.prepare()), signal))
        }
    };
    let finish = sessions.finish(server);
    Running { addr, stop: Some(stop), finished: tokio::spawn(async move { finish.await.report }) }
}

/// HTTP/2 with prior knowledge, served by hyper alone.
async fn hyper_server<S, B>(listener: TcpListener, service: S, shutdown: ShutdownFuture)
where
    S: tower_service::Service<http::Request<hyper::body::Incoming>, Response = http::Response<B>>,
    S: Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<tower_session_end::BoxError>,
    B: http_body::Body<Data: Send, Error: Into<tower_session_end::BoxError>> + Send + 'static,
{
    let connections = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            () = &mut shutdown => break,
        };
        let service = TowerToHyperService::new(service.clone());
        let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let connection = connections.watch(http2.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move { drop(connection.await) });
    }
    drop(listener);
    connections.shutdown().await;
}

/// A call in a session.
pub(crate) fn call<T>(id: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(SESSION_ID, id.parse().unwrap());
    request
}

/// The session id of a response.
pub(crate) fn id_of<T>(response: &Response<T>) -> Option<&str> {
    response.metadata().get(SESSION_ID).map(|id| id.to_str().unwrap())
}
