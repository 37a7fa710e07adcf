//! WebSockets: each socket holds a [`SessionGuard`], says goodbye when the process stops, and its session ends once,
//! whoever leaves first.
//!
//! ```text
//! cargo run --example websocket
//! ```
//!
//! To a layer an upgrade is over with its 101: the response has no body, and what the two sides say to each other
//! afterwards is no HTTP any more. A session that only a header of the 101 names is therefore active until somebody
//! ends it by its id, or the process stops; that its socket has closed long ago, nobody can see. The guard is what ties
//! the session to the socket.
//!
//! One client leaves with a close frame, one vanishes without a word, and one stays until the stop.

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

/// How long a client may take to answer our goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

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
    // A gateway with nothing but sockets needs no layer; one that also answers requests in their sessions does.
    let app = Router::new().route("/echo/{id}", get(upgrade)).with_state(gateway).layer(sessions.layer());

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    // Small messages at once: by default one waits until the client has acknowledged the one before, 40 ms or so, and
    // the goodbye with it.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let serve = axum::serve(listener, app).with_graceful_shutdown(sessions.shutdown_on(signal::terminate()));
    // axum waits for its connections, and a socket is none of them once it is upgraded: without the last two lines the
    // process would be gone before the sockets have said goodbye. `finish` bounds all of it by the connection drain's
    // time, so a client that never hangs up cannot hold the process.
    let server = async move {
        serve.await?;
        sockets.close();
        sockets.wait().await;
        io::Result::Ok(())
    };

    let served = async {
        let report = sessions.finish(server).await.into_result()?;
        check(left_behind.is_empty(), "the server was over before its sockets were")?;
        Ok(report)
    };
    let (report, mut ends) = tokio::try_join!(served, visit(address, ends))?;

    println!("{report}");
    check(ends.try_recv().is_err(), "a session had more than one session_end")?;
    check(report.is_clean() && sessions.is_empty(), "the stop was not clean")?;
    println!("3 sockets, and each of them had exactly one session_end");
    Ok(())
}

/// The guard and the token are taken here, not in the socket's own task: that one begins after the 101 has left, and a
/// stop in between would see neither. If the upgrade fails, both are dropped.
async fn upgrade(Path(id): Path<String>, State(gateway): State<Gateway>, upgrade: WebSocketUpgrade) -> Response {
    // From the path here; an id that a client cannot choose in a gateway of yours.
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
                    // Reading on sends our answer.
                    let _ = timeout(GOODBYE, socket.recv()).await;
                    return;
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                // It did not. (A client whose network is gone says nothing at all: ping those that are silent.)
                Some(Err(_)) | None => break,
            },
            () = &mut closing => {
                say_goodbye(&mut socket).await;
                break;
            }
        }
    }
    // The guard is dropped here. That is `unknown`, unless the session has ended already, as it has in a stop.
}

/// Tells the client why, and waits for its answer: a socket that is closed before may lose what was said last.
async fn say_goodbye(socket: &mut WebSocket) {
    let away = CloseFrame { code: close_code::AWAY, reason: "the server is restarting".into() };
    let goodbye = async {
        socket.send(Message::Close(Some(away))).await?;
        while let Some(Ok(_)) = socket.recv().await {}
        Ok::<_, axum::Error>(())
    };
    let _ = timeout(GOODBYE, goodbye).await;
}

type Ends = mpsc::UnboundedReceiver<SessionEnd>;

/// What the clients do, and the operator.
async fn visit(address: SocketAddr, mut ends: Ends) -> Result<Ends, BoxError> {
    let mut leaves = connect(address, "leaves").await?;
    let vanishes = connect(address, "vanishes").await?;
    let mut stays = connect(address, "stays").await?;

    leaves.close(None).await?;
    next_end(&mut ends, "leaves", EndReason::Deleted).await?;

    drop(vanishes);
    next_end(&mut ends, "vanishes", EndReason::Unknown).await?;

    println!("telling myself to stop, with SIGTERM");
    raise_sigterm()?;
    let goodbye = match stays.next().await {
        Some(Ok(tungstenite::Message::Close(Some(goodbye)))) => goodbye,
        other => return Err(format!("expected a goodbye, got {other:?}").into()),
    };
    println!("the client that stayed was told: {} {}", u16::from(goodbye.code), goodbye.reason);
    check(u16::from(goodbye.code) == close_code::AWAY, "the goodbye is not 1001")?;
    // A client that takes its time: polling on sends its answer, and then the server hangs up.
    sleep(GOODBYE / 5).await;
    check(stays.next().await.is_none_or(|message| message.is_err()), "there was more after the goodbye")?;
    next_end(&mut ends, "stays", EndReason::Shutdown).await?;
    Ok(ends)
}

/// A socket on which one message has gone back and forth.
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
    let end = ends.recv().await.ok_or("the hook is gone")?;
    if end.session.id == id && end.reason == reason {
        return Ok(());
    }
    Err(format!("expected the end of {id} ({reason}), got {} ({})", end.session.id, end.reason).into())
}

fn check(holds: bool, complaint: &'static str) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(complaint.into()) }
}

/// There is no safe call for this in std, but any shell has `kill`, and its parent is this process.
fn raise_sigterm() -> io::Result<()> {
    let kill = Command::new("sh").args(["-c", "kill -s TERM $PPID"]).status()?;
    if kill.success() { Ok(()) } else { Err(io::Error::other(format!("kill: {kill}"))) }
}

#[tokio::main]
async fn main() -> ExitCode {
    // The crate says what went wrong; in a good run that is nothing.
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(io::stderr).init();

    let outcome = match timeout(Duration::from_secs(30), run()).await {
        Ok(outcome) => outcome,
        Err(_) => Err("did not stop within 30 s".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("websocket failed: {error}");
            ExitCode::FAILURE
        }
    }
}
