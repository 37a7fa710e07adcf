//! [`serve`]: the layer around rmcp, two servers for it, and the order of a shutdown.

use std::{future::Future, io, net::SocketAddr, pin::Pin, pin::pin, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use rmcp::{
    ServerHandler,
    transport::streamable_http_server::{StreamableHttpService, session::SessionManager},
};
use tokio::{net::TcpListener, time::sleep};
use tower::Layer;
use tower_session_end::{ActiveSessions, McpProtocol, SessionService, ShutdownReport, signal::ShutdownRequest};

use crate::unavailable::Unavailable;

/// How rmcp's service is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mount {
    /// In an axum router, with `nest_service`.
    Nested,
    /// Without a router: hyper-util's server calls it directly.
    Direct,
}

impl Mount {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nested, Self::Direct];
}

/// A running server; resolves when it has shut down.
pub type Served = Pin<Box<dyn Future<Output = io::Result<ShutdownReport>> + Send>>;

/// Serves `host` on a free port until `signal`. Returns the address and the future that runs the server.
///
/// # Errors
///
/// If there is no free port.
pub async fn serve<H, M, S>(
    mount: Mount,
    host: StreamableHttpService<H, M>,
    protocol: McpProtocol,
    sessions: &ActiveSessions,
    signal: S,
) -> io::Result<(SocketAddr, Served)>
where
    H: ServerHandler + Send + 'static,
    M: SessionManager,
    S: Future<Output: Into<ShutdownRequest>> + Send + 'static,
{
    // The order of a shutdown. First the sessions: `shutdown_on` resolves when every session has had its end; calls in
    // flight have had `settle_timeout`. Then rmcp: its token ends the remaining streams and their workers. Then the
    // connections drain, with little left to wait for.
    let (drained, token) = (sessions.shutdown_on(signal), host.config.cancellation_token.clone());
    let host = Unavailable::when_cancelled(token.clone(), host);
    let shutdown = async move {
        drained.await;
        token.cancel();
    };

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = sessions.layer_with(protocol).layer(host);
    let served: Served = match mount {
        Mount::Nested => {
            let app = Router::new().nest_service("/mcp", service);
            let finish = sessions.finish(axum::serve(listener, app).with_graceful_shutdown(shutdown));
            Box::pin(async move { finish.await.into_result() })
        }
        Mount::Direct => {
            let finish = sessions.finish(hyper(listener, service, shutdown));
            Box::pin(async move { finish.await.into_result() })
        }
    };
    Ok((address, served))
}

/// hyper-util's server: it accepts until `shutdown` resolves, and then waits for its connections.
async fn hyper<H, M>(
    listener: TcpListener,
    service: SessionService<Unavailable<StreamableHttpService<H, M>>>,
    shutdown: impl Future<Output = ()>,
) where
    H: ServerHandler + Send + 'static,
    M: SessionManager,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    let connections = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    eprintln!("accept: {error}");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        let service = TowerToHyperService::new(service.clone());
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        // A connection that its client closes early is an error here; ignore it.
        tokio::spawn(connections.watch(connection));
    }
    drop(listener);
    connections.shutdown().await;
}
