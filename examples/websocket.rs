//! WebSockets: each socket holds a [`SessionGuard`] and sends a close frame at shutdown. Its session ends exactly once,
//! whichever side closes first.
//!
//! ```text
//! cargo run --example websocket
//! ```
//!
//! For a layer, an upgrade ends with its 101: the response has no body, and the traffic afterwards is not HTTP. A
//! session that only a header of the 101 names stays active until it is ended by its id or the process shuts down,
//! even if its socket closed long ago. The guard ties the session to the socket.
//!
//! One client closes with a close frame, one disconnects without one, and one stays until the shutdown.

use std::{
    io,
    net::SocketAddr,
    process::{Command, ExitCode},
    time::Duration,
};

use axum::{
    Router,
    extract::{
        Path, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    response::Response,
    routing::get,
    serve::ListenerExt,
};
use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite};
use tokio_util::task::TaskTracker;
use tower_session_end::{ActiveSessions, BoxError, EndReason, SessionEnd, SessionGuard, signal};
use tracing_subscriber::filter::LevelFilter;

/// How long a client may take to answer the close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Gateway {
    sessions: ActiveSessions,
    sockets: TaskTracker,
}

async fn run() -> Result<(), BoxError> {
    let (ended, ends) = mpsc::unbounded_channel();
    let sessions = ActiveSessions::builder()
        .on_session_end(move |end: SessionEnd| {
            println!("session_end    {:<10} {}", end.session.id, end.reason);
            let ended = ended.clone();
            async move { ended.send(end) }
        })
        .build()?;

    let gateway = Gateway { sessions: sessions.clone(), sockets: TaskTracker::new() };
    let (sockets, left_behind) = (gateway.sockets.clone(), gateway.sockets.clone());
    // A gateway with sockets only needs no layer. One that also answers requests in their sessions does.
    let app = Router::new().route("/echo/{id}", get(upgrade)).with_state(gateway).layer(sessions.layer());

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    // Sends small messages at once. By default each waits about 40 ms until the client has acknowledged the one before,
    // and so would the close frame.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let serve = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signal::terminate()));
    // axum waits for its connections, but not for upgraded ones: without the last two lines the process would exit
    // before the sockets have sent their close frames. `finish` bounds all of it by `connection_drain_timeout`, so a
    // client that never disconnects cannot hold the process.
    let server = async move {
        serve.await?;
        sockets.close();
        sockets.wait().await;
        io::Result::Ok(())
    };

    let served = async {
        let report = sessions.finish(server).await.into_result()?;
        check(left_behind.is_empty(), "the server finished before its sockets")?;
        Ok(report)
    };
    let (report, mut ends) = tokio::try_join!(served, visit(address, ends))?;

    println!("{report}");
    check(ends.try_recv().is_err(), "a session had more than one session_end")?;
    check(report.is_clean() && sessions.is_empty(), "the shutdown was not clean")?;
    println!("3 sockets, and each session had exactly one session_end");
    Ok(())
}

/// The guard and the token are taken here, not in the socket's task: that task starts after the 101 is sent, and a
/// shutdown in between would see neither. If the upgrade fails, both are dropped.
async fn upgrade(Path(id): Path<String>, State(gateway): State<Gateway>, upgrade: WebSocketUpgrade) -> Response {
    // The client chooses the id here. In production, use ids that a client cannot choose.
    let guard = gateway.sessions.guard(id).unwrap();
    let token = gateway.sockets.token();
    upgrade.on_upgrade(async move |socket| {
        echo(socket, guard).await;
        drop(token);
    })
}

async fn echo(mut socket: WebSocket, guard: SessionGuard) {
    let mut closing = std::pin::pin!(guard.closing());
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                    if socket.send(message).await.is_err() {
                        break;
                    }
                }
                Some(Ok(Message::Close(_))) => {
                    guard.end(EndReason::Deleted);
                    // The answer to the close frame is sent by the next read.
                    let _ = timeout(CLOSE_TIMEOUT, socket.recv()).await;
                    return;
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                // The client disconnected without a close frame. (A client whose network fails sends nothing: ping
                // silent clients.)
                Some(Err(_)) | None => break,
            },
            () = &mut closing => {
                close(&mut socket).await;
                break;
            }
        }
    }
    // The guard is dropped here and ends the session as `unknown`, unless it has ended already, as in a shutdown.
}

/// Sends the close frame with a reason, and waits for the answer: closing the socket earlier may lose the last
/// messages.
async fn close(socket: &mut WebSocket) {
    let away = CloseFrame { code: close_code::AWAY, reason: "the server is restarting".into() };
    let close_frame = async {
        socket.send(Message::Close(Some(away))).await?;
        while let Some(Ok(_)) = socket.recv().await {}
        Ok::<_, axum::Error>(())
    };
    let _ = timeout(CLOSE_TIMEOUT, close_frame).await;
}

type Ends = mpsc::UnboundedReceiver<SessionEnd>;

/// The requests of the clients, and the SIGTERM of the operator.
async fn visit(address: SocketAddr, mut ends: Ends) -> Result<Ends, BoxError> {
    let mut leaves = connect(address, "leaves").await?;
    let vanishes = connect(address, "vanishes").await?;
    let mut stays = connect(address, "stays").await?;

    leaves.close(None).await?;
    next_end(&mut ends, "leaves", EndReason::Deleted).await?;

    drop(vanishes);
    next_end(&mut ends, "vanishes", EndReason::Unknown).await?;

    println!("sending SIGTERM to this process");
    raise_sigterm()?;
    let close_frame = match stays.next().await {
        Some(Ok(tungstenite::Message::Close(Some(close_frame)))) => close_frame,
        other => return Err(format!("expected a close frame, got {other:?}").into()),
    };
    println!("the client that stayed received: {} {}", u16::from(close_frame.code), close_frame.reason);
    check(u16::from(close_frame.code) == close_code::AWAY, "the close code is not 1001")?;
    // A slow client: its next poll sends the answer, and then the server closes the connection.
    sleep(CLOSE_TIMEOUT / 5).await;
    check(stays.next().await.is_none_or(|message| message.is_err()), "a message followed the close frame")?;
    next_end(&mut ends, "stays", EndReason::Shutdown).await?;
    Ok(ends)
}

/// Connects a socket, and sends and receives one message.
async fn connect(address: SocketAddr, id: &str) -> Result<WebSocketStream<TcpStream>, BoxError> {
    let stream = TcpStream::connect(address).await?;
    let (mut socket, _) = client_async(format!("ws://{address}/echo/{id}"), stream).await?;
    socket.send(tungstenite::Message::text("hello")).await?;
    match socket.next().await {
        Some(Ok(tungstenite::Message::Text(echo))) if echo.as_str() == "hello" => Ok(socket),
        other => Err(format!("{id}: expected an echo, got {other:?}").into()),
    }
}

async fn next_end(ends: &mut Ends, id: &str, reason: EndReason) -> Result<(), BoxError> {
    let end = ends.recv().await.ok_or("the channel of the hook is closed")?;
    if end.session.id == id && end.reason == reason {
        return Ok(());
    }
    Err(format!("expected the end of {id} ({reason}), got {} ({})", end.session.id, end.reason).into())
}

fn check(holds: bool, complaint: &'static str) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(complaint.into()) }
}

/// std has no safe call for this. The shell that runs `kill` is a child of this process.
fn raise_sigterm() -> io::Result<()> {
    let kill = Command::new("sh").args(["-c", "kill -s TERM $PPID"]).status()?;
    if kill.success() { Ok(()) } else { Err(io::Error::other(format!("kill: {kill}"))) }
}

#[tokio::main]
async fn main() -> ExitCode {
    // Shows warnings and errors; a successful run logs none.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();

    let outcome = match timeout(Duration::from_secs(30), run()).await {
        Ok(outcome) => outcome,
        Err(_) => Err("did not shut down within 30 s".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("websocket failed: {error}");
            ExitCode::FAILURE
        }
    }
}
