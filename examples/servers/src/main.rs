//! One gateway on the server that the arguments name. It prints `ready`, every end, and the report.
//!
//! ```text
//! cargo run -p servers -- unix /tmp/gateway.sock
//! curl -X POST --unix-socket /tmp/gateway.sock http://gateway/chat
//! ```

use std::{
    env,
    future::{Future, pending, ready},
    io,
    net::TcpListener,
    pin::Pin,
};

use axum::{Router, routing::post};
use axum_server::tls_rustls::RustlsConfig;
use servers::{hyper, systemd, tls, unix, worker};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::UnixListener,
    sync::mpsc,
};
use tower_session_end::{ActiveSessions, BoxError, SessionEnd, SessionId, SessionStart};

const USAGE: &str = "servers tls <certificate> <key> | unix <socket> | hyper <socket> | worker | systemd";

async fn chat(id: Option<SessionId>) -> [(&'static str, String); 1] {
    [("x-session-id", id.map_or_else(|| "4711".to_owned(), |id| id.to_string()))]
}

/// A free port of this machine.
fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    println!("ready {}", listener.local_addr()?);
    Ok(listener)
}

fn listen_on(socket: &str) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(socket)?;
    println!("ready {socket}");
    Ok(listener)
}

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Each line of the standard input is a job, which goes on until the shutdown unless it is `done`.
async fn lines(jobs: mpsc::Sender<(String, Job)>) -> io::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let is_done = line == "done";
        let job: Job = if is_done { Box::pin(ready(())) } else { Box::pin(pending()) };
        drop(jobs.send((line, job)).await);
    }
    Ok(())
}

async fn run() -> Result<(), BoxError> {
    let sessions = ActiveSessions::builder()
        .on_session_start(async |start: SessionStart| println!("{} started", start.session.id))
        .on_session_end(async |end: SessionEnd| println!("{} ended: {}", end.session.id, end.reason))
        .build()?;
    let app = Router::new().route("/chat", post(chat)).layer(sessions.layer());
    let arguments: Vec<_> = env::args().skip(1).collect();
    let report = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tls", certificate, key] => {
            let config = RustlsConfig::from_pem_file(certificate, key).await?;
            tls::serve(sessions, app, listen()?, config).await?
        }
        ["unix", socket] => unix::serve(sessions, app, listen_on(socket)?).await?,
        ["hyper", socket] => hyper::serve(sessions, app, listen_on(socket)?).await,
        ["systemd"] => systemd::serve(sessions, app, tokio::net::TcpListener::from_std(listen()?)?).await?,
        ["worker"] => {
            let (sender, jobs) = mpsc::channel(1);
            tokio::spawn(lines(sender));
            worker::work(sessions, jobs).await
        }
        _ => return Err(USAGE.into()),
    };
    println!("{report}");
    Ok(())
}

fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .init();
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(run());
    // The thread that reads the standard input cannot be stopped.
    runtime.shutdown_background();
    result
}
