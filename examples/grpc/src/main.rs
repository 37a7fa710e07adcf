//! gRPC: tonic's server with the layer around its services, tonic's client, and a real SIGTERM.
//!
//! ```text
//! cargo run -p grpc
//! ```
//!
//! Three sessions start. One is compacted into a successor and one is closed. One is watched by an endless stream when
//! the process receives SIGTERM. The program counts, and fails if a session did not have exactly one `session_end`.

use std::{
    io,
    process::{Command, ExitCode},
    time::Duration,
};

use grpc::{AgentClient, AgentServer, ChatRequest, Empty, OpenRequest, SESSION_ID, SmallAgent};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Server, server::TcpIncoming},
};
use tower_session_end::{ActiveSessions, BoxError, SessionEnd, SessionStart, signal};
use tracing_subscriber::filter::LevelFilter;

async fn run() -> Result<(), BoxError> {
    let (ended, ends) = mpsc::unbounded_channel();
    let sessions = ActiveSessions::builder()
        .drain_timeout(Duration::from_secs(2))
        .connection_drain_timeout(Duration::from_secs(5))
        .on_session_start(async |start: SessionStart| match &start.resumed_from {
            Some(old) => println!("session_start  {:<12} resumed from {old}", start.session.id),
            None => println!("session_start  {:<12} {}", start.session.id, start.session.key.unwrap_or_default()),
        })
        .on_session_end(move |end: SessionEnd| {
            println!("session_end    {:<12} {}", end.session.id, end.reason);
            let ended = ended.clone();
            async move { ended.send(end) }
        })
        .build()?;

    // One line for the layer, one for the signal. The example needs the port, so it makes the listener itself;
    // otherwise use `serve_with_shutdown(address, signal)`.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = Server::builder()
        .layer(sessions.layer())
        .add_service(AgentServer::new(SmallAgent::new(&sessions)))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), sessions.shutdown_on(signal::terminate()));

    let served = async { Ok(sessions.finish(server).await.into_result()?) };
    let client = async { visit(AgentClient::connect(format!("http://{address}")).await?).await };
    let (report, ()) = tokio::try_join!(served, client)?;
    println!("{report}");
    check_ends(ends)?;
    if !report.is_clean() {
        return Err("the shutdown was not clean".into());
    }
    println!("4 sessions, and each of them had exactly one session_end");
    Ok(())
}

/// The requests of the clients, and the SIGTERM of the operator.
async fn visit(mut agent: AgentClient<Channel>) -> Result<(), BoxError> {
    let telegram = id_of(&agent.open(OpenRequest { key: "telegram".into() }).await?)?;
    let discord = id_of(&agent.open(OpenRequest { key: "discord".into() }).await?)?;
    let slack = id_of(&agent.open(OpenRequest { key: "slack".into() }).await?)?;

    let reply = agent.chat(call(&telegram, ChatRequest { message: "hello".into() })).await?.into_inner();
    println!("telegram       {}", reply.reply);
    agent.compact(call(&slack, Empty {})).await?;
    agent.close(call(&discord, Empty {})).await?;
    // A gRPC error is an HTTP 200, and starts no session.
    let gone = agent.chat(call(&discord, ChatRequest { message: "still there?".into() })).await;
    expect(Code::NotFound, gone.map(drop))?;

    let mut ticks = agent.watch(call(&telegram, Empty {})).await?.into_inner();
    for _ in 0..2 {
        let tick = ticks.message().await?.ok_or("the stream ended")?;
        println!("telegram       tick {}", tick.number);
    }
    println!("sending SIGTERM to this process");
    raise_sigterm()?;
    let last = loop {
        match ticks.message().await {
            Ok(Some(_)) => {}
            Ok(None) => break Ok(()),
            Err(status) => break Err(status),
        }
    };
    expect(Code::Unavailable, last)
}

/// A call in a session.
fn call<T>(id: &MetadataValue<Ascii>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(SESSION_ID, id.clone());
    request
}

/// The session id of a response.
fn id_of<T>(response: &Response<T>) -> Result<MetadataValue<Ascii>, BoxError> {
    Ok(response.metadata().get(SESSION_ID).ok_or("the response has no session id")?.clone())
}

fn expect(code: Code, outcome: Result<(), Status>) -> Result<(), BoxError> {
    match outcome {
        Err(status) if status.code() == code => {
            println!("as expected    {code:?}: {}", status.message());
            Ok(())
        }
        other => Err(format!("expected {code:?}, got {other:?}").into()),
    }
}

/// Checks the guarantee of the crate: exactly one end for each session.
fn check_ends(mut ends: mpsc::UnboundedReceiver<SessionEnd>) -> Result<(), BoxError> {
    let mut seen = Vec::new();
    while let Ok(end) = ends.try_recv() {
        seen.push(format!("{} {}", end.session.id, end.reason));
    }
    seen.sort();
    let expected = ["compacted-4 shutdown", "discord-2 deleted", "slack-3 compaction", "telegram-1 shutdown"];
    if seen == expected { Ok(()) } else { Err(format!("expected {expected:?}, got {seen:?}").into()) }
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
            eprintln!("grpc failed: {error}");
            ExitCode::FAILURE
        }
    }
}
