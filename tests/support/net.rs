//! Real sockets: a server that can be stopped, and clients.

use std::{future::Future, net::SocketAddr, time::Duration};

use axum::{Router, body::Body};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};
use tower_session_end::{ActiveSessions, EndReason, ShutdownReport};

/// Nothing in these tests takes that long unless it is stuck.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits, but not for ever.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("stuck: {what}"),
    }
}

/// A server on a port of its own, with `finish` around it.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    stop: Option<oneshot::Sender<EndReason>>,
    /// Resolves when the session drain is over and the connection drain begins.
    pub(crate) drained: Option<oneshot::Receiver<()>>,
    finished: JoinHandle<ShutdownReport>,
}

impl Running {
    /// Sends the signal.
    pub(crate) fn signal(&mut self) {
        self.stop.take().unwrap().send(EndReason::Shutdown).unwrap();
    }

    /// Waits until the session drain is over.
    pub(crate) async fn drained(&mut self) {
        within("the session drain", self.drained.take().unwrap()).await.unwrap();
    }

    /// Waits for the end of `finish`.
    pub(crate) async fn report(self) -> ShutdownReport {
        within("finish", self.finished).await.unwrap()
    }

    /// Sends the signal and waits for the end of it all.
    pub(crate) async fn shut_down(mut self) -> ShutdownReport {
        self.signal();
        self.report().await
    }
}

/// Serves `app` with axum, over HTTP/1 and HTTP/2 with prior knowledge.
pub(crate) async fn serve(sessions: &ActiveSessions, app: Router) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let (tell_drained, drained) = oneshot::channel();
    let shutdown = sessions.shutdown_on(async { stopped.await.unwrap_or(EndReason::Unknown) });
    let server = axum::serve(listener, app).with_graceful_shutdown(async move {
        shutdown.await;
        let _ = tell_drained.send(());
    });
    let finish = sessions.finish(server);
    let finished = tokio::spawn(async move { finish.await.into_result().unwrap() });
    Running { addr, stop: Some(stop), drained: Some(drained), finished }
}

pub(crate) fn h1_client() -> Client<HttpConnector, Body> {
    Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build_http()
}

pub(crate) fn h2_client() -> Client<HttpConnector, Body> {
    Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).http2_only(true).build_http()
}

/// A client that speaks in bytes.
pub(crate) struct Raw(TcpStream);

impl Raw {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self(within("connect", TcpStream::connect(addr)).await.unwrap())
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// False once nobody takes it.
    pub(crate) async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.write_all(bytes.as_ref()).await.is_ok()
    }

    /// The next response head, and whatever of the body came with it.
    pub(crate) async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            let read = within("a response head", self.0.read_buf(&mut head)).await.unwrap();
            assert_ne!(read, 0, "closed after {:?}", String::from_utf8_lossy(&head));
        }
        String::from_utf8(head).unwrap()
    }

    pub(crate) async fn exact(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        within("bytes", self.0.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// Everything until the server closes.
    pub(crate) async fn rest(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset is an end too.
        let _ = within("the end of the connection", self.0.read_to_end(&mut bytes)).await;
        bytes
    }
}
