//! Guards over real WebSockets: one end, whoever leaves first, and a stop that does not wait for those who stay.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::support::recorder::Recorder;
use axum::{
    Router,
    extract::{
        Path, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite};
use tokio_util::task::TaskTracker;
use tower_session_end::{ActiveSessions, ActiveSessionsBuilder, EndReason, Phase, SessionGuard, ShutdownReport};

/// For what should take milliseconds, on a machine that is busy.
const SOON: Duration = Duration::from_secs(5);
/// A connection drain that no test waits for.
const LONG: Duration = Duration::from_secs(60);

/// What the server does with its sockets when it is told to stop.
#[derive(Clone, Copy, PartialEq)]
enum Manners {
    /// The sockets say goodbye, and the server waits for them.
    Polite,
    /// The sockets do not listen, and the server waits for them.
    Stubborn,
    /// The sockets do not listen, and the server does not wait.
    Hasty,
}

#[derive(Clone)]
struct Host {
    sessions: ActiveSessions,
    sockets: TaskTracker,
    manners: Manners,
    /// Told when the task of a socket is over, and its guard is gone.
    gone: mpsc::UnboundedSender<()>,
}

struct Server {
    address: SocketAddr,
    recorder: Recorder,
    sessions: ActiveSessions,
    gone: mpsc::UnboundedReceiver<()>,
    stop: oneshot::Sender<()>,
    finished: JoinHandle<(ShutdownReport, Duration)>,
}

impl Server {
    async fn start(manners: Manners, configure: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder) -> Self {
        let recorder = Recorder::default();
        let sessions = configure(recorder.builder()).build().unwrap();
        let (told, gone) = mpsc::unbounded_channel();
        let host = Host { sessions: sessions.clone(), sockets: TaskTracker::new(), manners, gone: told };
        let sockets = host.sockets.clone();
        let app = Router::new()
            .route("/guarded/{id}", get(guarded))
            .route("/unguarded/{id}", get(unguarded))
            .with_state(host)
            .layer(sessions.layer());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();

        let (stop, stopped) = oneshot::channel::<()>();
        let (signalled, signal_time) = oneshot::channel();
        let serve = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(async {
            stopped.await.unwrap();
            signalled.send(Instant::now()).unwrap();
        }));
        let finish = sessions.finish(async move {
            serve.await?;
            if manners != Manners::Hasty {
                sockets.close();
                sockets.wait().await;
            }
            std::io::Result::Ok(())
        });
        let finished = tokio::spawn(async move {
            let report = finish.await.into_result().unwrap();
            (report, signal_time.await.unwrap().elapsed())
        });
        Self { address, recorder, sessions, gone, stop, finished }
    }

    async fn connect(&self, path: &str) -> WebSocketStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut socket, _) = client_async(format!("ws://{}{path}", self.address), stream).await.unwrap();
        // The other side has begun to listen.
        socket.send(tungstenite::Message::text("hello")).await.unwrap();
        assert_eq!(soon(socket.next()).await.unwrap().unwrap().to_text().unwrap(), "hello");
        socket
    }

    async fn stop(self) -> (ShutdownReport, Duration) {
        self.stop.send(()).unwrap();
        let (report, elapsed) = soon(self.finished).await.unwrap();
        assert_eq!(self.sessions.phase(), Phase::Closed);
        (report, elapsed)
    }
}

async fn guarded(Path(id): Path<String>, State(host): State<Host>, upgrade: WebSocketUpgrade) -> Response {
    let guard = host.sessions.guard(id).unwrap();
    let token = host.sockets.token();
    upgrade.on_upgrade(async move |socket| {
        echo(socket, guard, host.manners).await;
        drop(token);
        let _ = host.gone.send(());
    })
}

/// The session is named in the head of the 101, and tied to nothing.
async fn unguarded(Path(id): Path<String>, State(host): State<Host>, upgrade: WebSocketUpgrade) -> impl IntoResponse {
    let response = upgrade.on_upgrade(async move |mut socket| {
        while let Some(Ok(message @ Message::Text(_))) = socket.recv().await {
            let _ = socket.send(message).await;
        }
        drop(socket);
        let _ = host.gone.send(());
    });
    ([("x-session-id", id)], response)
}

async fn echo(mut socket: WebSocket, guard: SessionGuard, manners: Manners) {
    let mut closing = std::pin::pin!(guard.closing());
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => socket.send(Message::Text(text)).await.unwrap(),
                Some(Ok(Message::Close(_))) => {
                    guard.end(EndReason::Deleted);
                    return;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
            () = &mut closing, if manners == Manners::Polite => {
                let away = CloseFrame { code: close_code::AWAY, reason: "".into() };
                let _ = socket.send(Message::Close(Some(away))).await;
                while let Some(Ok(_)) = socket.recv().await {}
                return;
            }
        }
    }
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.expect("it should have come at once")
}

fn all(ends: &[(&str, EndReason)]) -> Vec<(String, EndReason)> {
    ends.iter().map(|(id, reason)| ((*id).to_owned(), *reason)).collect()
}

#[tokio::test]
async fn g01_the_session_of_a_socket_ends_once_whoever_leaves_first() {
    let mut server = Server::start(Manners::Polite, |builder| builder.connection_drain_timeout(LONG)).await;
    let mut closes = server.connect("/guarded/closes").await;
    let vanishes = server.connect("/guarded/vanishes").await;
    let ended = server.connect("/guarded/ended").await;
    let mut stays = server.connect("/guarded/stays").await;
    assert_eq!(server.sessions.len(), 4);

    closes.close(None).await.unwrap();
    soon(server.gone.recv()).await.unwrap();
    assert!(!server.sessions.contains("closes"));

    drop(vanishes);
    soon(server.gone.recv()).await.unwrap();
    assert!(!server.sessions.contains("vanishes"));

    // Here the host is first, and the guard comes too late.
    assert!(server.sessions.end("ended", EndReason::Reset));
    drop(ended);
    soon(server.gone.recv()).await.unwrap();

    // And here the stop is.
    server.stop.send(()).unwrap();
    let goodbye = soon(stays.next()).await.unwrap().unwrap();
    assert!(matches!(&goodbye, tungstenite::Message::Close(Some(frame)) if u16::from(frame.code) == 1001), "{goodbye}");
    assert!(soon(stays.next()).await.is_none_or(|message| message.is_err()));
    soon(server.gone.recv()).await.unwrap();

    let (report, elapsed) = soon(server.finished).await.unwrap();
    assert!(report.is_clean(), "{report}");
    assert!(elapsed < SOON, "{elapsed:?}");
    let expected = [
        ("closes", EndReason::Deleted),
        ("ended", EndReason::Reset),
        ("stays", EndReason::Shutdown),
        ("vanishes", EndReason::Unknown),
    ];
    assert_eq!(server.recorder.reasons(), all(&expected));
}

#[tokio::test]
async fn g01_the_guard_of_a_closed_socket_does_not_end_the_session_that_came_after() {
    let mut server = Server::start(Manners::Polite, |builder| builder.connection_drain_timeout(LONG)).await;
    let first = server.connect("/guarded/a").await;
    assert!(server.sessions.end("a", EndReason::Reset));
    let second = server.connect("/guarded/a").await;
    drop(first);
    soon(server.gone.recv()).await.unwrap();
    assert!(server.sessions.contains("a"));
    drop(second);
    soon(server.gone.recv()).await.unwrap();
    assert!(!server.sessions.contains("a"));
    let recorder = server.recorder.clone();
    let (report, _) = server.stop().await;
    assert!(report.is_clean(), "{report}");
    recorder.assert_no_generation_ended_twice();
    assert_eq!(recorder.reasons(), all(&[("a", EndReason::Reset), ("a", EndReason::Unknown)]));
}

#[tokio::test]
async fn g10_a_stop_does_not_wait_for_a_socket_beyond_its_budgets() {
    let budget = Duration::from_millis(500);
    let mut server = Server::start(Manners::Stubborn, |builder| builder.connection_drain_timeout(budget)).await;
    let stays = server.connect("/guarded/stays").await;
    server.stop.send(()).unwrap();
    let (report, elapsed) = soon(server.finished).await.unwrap();
    assert!(elapsed >= budget / 2 && elapsed < budget + Duration::from_secs(1), "{elapsed:?}");
    assert!(report.connections.timed_out && report.sessions.is_clean(), "{report}");
    // The socket is no response: its answer was the 101.
    assert_eq!(report.connections.open_responses, 0);

    // The guard outlives `finish`, and has nothing left to end.
    drop(stays);
    soon(server.gone.recv()).await.unwrap();
    assert_eq!(server.recorder.reasons(), all(&[("stays", EndReason::Shutdown)]));
}

#[tokio::test]
async fn g10_a_server_that_does_not_ask_for_its_sockets_does_not_wait_for_them() {
    let server = Server::start(Manners::Hasty, |builder| builder.connection_drain_timeout(LONG)).await;
    let _stays = server.connect("/guarded/stays").await;
    let recorder = server.recorder.clone();
    let (report, elapsed) = server.stop().await;
    assert!(elapsed < SOON && report.is_clean(), "{elapsed:?} {report}");
    assert_eq!(recorder.reasons(), all(&[("stays", EndReason::Shutdown)]));
}

#[tokio::test]
async fn a_socket_without_a_guard_is_invisible_after_its_101() {
    let mut server = Server::start(Manners::Hasty, |builder| builder.connection_drain_timeout(LONG)).await;
    let socket = server.connect("/unguarded/a").await;
    assert!(server.sessions.contains("a"));
    drop(socket);
    soon(server.gone.recv()).await.unwrap();
    assert!(server.sessions.contains("a"), "nobody can know that the socket is gone");
    let recorder = server.recorder.clone();
    let (report, _) = server.stop().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(recorder.reasons(), all(&[("a", EndReason::Shutdown)]));
}
