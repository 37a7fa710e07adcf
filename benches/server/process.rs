//! The measured server and its process.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write, stdin},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderValue, header::HeaderName},
    response::IntoResponse,
    routing::{get, post},
};
use tokio::net::TcpListener;
use tower_http::request_id::PropagateRequestIdLayer;
use tower_session_end::{ActiveSessions, SessionEnd};

use crate::{PEER, WITH, measure::Fallible};

pub(crate) static ID: HeaderName = HeaderName::from_static("x-session-id");

pub(crate) const BODY: &str = "{\"answer\":42}";

/// A server process, killed when dropped.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts a server; `pinned` to core 0, or on any core.
    pub(crate) fn start(which: &str, pinned: bool) -> Fallible<Self> {
        let program = env::current_exe()?;
        let mut command = if pinned {
            let mut taskset = Command::new("taskset");
            taskset.args(["-c", "0"]).arg(program);
            taskset
        } else {
            Command::new(program)
        };
        let mut child = command.args(["--serve", which]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("the output of the server is not piped")?;
        // From here on the process is killed on every return path.
        let mut server = Self { child, address: (Ipv4Addr::LOCALHOST, 0).into() };
        BufReader::new(stdout).read_line(&mut line)?;
        server.address = line.trim().parse().map_err(|_| format!("the server did not print its address: {line:?}"))?;
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The CPU time of a process so far.
pub(crate) fn processor_time(process: u32) -> Fallible<Duration> {
    /// Clock ticks per second, which Linux reports to all programs.
    const TICK: u64 = 100;
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name of the program may contain any character, and ends at the last parenthesis.
    let (_, rest) = stat.rsplit_once(')').ok_or("no such process")?;
    let ticks: u64 = rest.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICK))
}

/// Pins this thread and the threads that it starts. False if that fails, or there is no second core for the server.
pub(crate) fn pin_to(core: usize) -> bool {
    let this = std::process::id().to_string();
    let taskset = |args: &[&str]| {
        let status = Command::new("taskset").args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1)
        && taskset(&["-c", "0", "true"])
        && taskset(&["-c", "-p", &core.to_string(), &this])
}

/// Serves until it is killed, or its parent process exits.
pub(crate) fn serve(which: &str) -> Fallible<()> {
    std::thread::spawn(|| {
        let _ = stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let mut app = Router::new()
            .route("/chat", post(chat))
            .route("/sessions", post(start_session))
            .route("/about", get(async || BODY))
            .with_state(Arc::new(AtomicU64::new(0)));
        if which == PEER {
            app = app.layer(PropagateRequestIdLayer::new(ID.clone()));
        } else if which == WITH {
            let sessions = ActiveSessions::builder().on_session_end(async |_: SessionEnd| {}).build()?;
            app = app.layer(sessions.layer());
        }
        println!("{address}");
        std::io::stdout().flush()?;
        axum::serve(listener, app).await?;
        Ok(())
    })
}

/// An exchange in a session: repeats the id.
async fn chat(headers: HeaderMap, _body: String) -> impl IntoResponse {
    ([(ID.clone(), headers.get(&ID).cloned().unwrap_or(HeaderValue::from_static("none")))], BODY)
}

/// Starts a session. Reads the body: over HTTP/2 an unread body resets its stream, and a connection with many resets is
/// closed.
async fn start_session(State(starts): State<Arc<AtomicU64>>, _body: String) -> impl IntoResponse {
    let id = format!("{:08}-3a5e-4c0e-9d4e-5d1e6c1f8a77", starts.fetch_add(1, Ordering::Relaxed));
    ([(ID.clone(), id)], BODY)
}
