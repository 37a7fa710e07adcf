//! The built gateway as a child process, a client for it, and its rows after the exit.

use std::{
    collections::HashMap,
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use axum::{
    body::Bytes,
    http::{Method, Request, StatusCode},
};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client as HttpClient, Error, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};

/// Longer than any step of a test takes on a busy machine; only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway process, killed if its test fails.
#[derive(Debug)]
pub(crate) struct Gateway {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub(crate) address: SocketAddr,
    pub(crate) client: Client,
    dir: Dir,
}

impl Gateway {
    /// Starts a gateway with these settings (`GATEWAY_*`, without the prefix) and an empty database.
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        let dir = Dir::new();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        command.env("GATEWAY_LISTEN", "127.0.0.1:0").env("GATEWAY_DB", dir.db());
        // Budgets that a test does not reach unless it sets its own.
        command.env("GATEWAY_DRAIN_TIMEOUT_MS", "30000").env("GATEWAY_CONNECTION_DRAIN_TIMEOUT_MS", "30000");
        for (name, value) in settings {
            command.env(format!("GATEWAY_{name}"), value);
        }
        let log = fs::File::create(dir.log()).expect("the directory must be writable");
        let mut child =
            command.stdout(Stdio::piped()).stderr(log).kill_on_drop(true).spawn().expect("the gateway must start");

        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        timeout(PATIENCE, stdout.read_line(&mut line)).await.expect("the gateway must print its address").unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect(&line).parse().unwrap();
        Self { child, stdout, address, client: Client::new(address), dir }
    }

    /// Sends a signal, by its name, to the process.
    pub(crate) async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("the process must be running");
        // The `kill` built into the shell works where the program `kill` is not installed.
        let kill = Command::new("sh").arg("-c").arg(format!("kill -s {name} {pid}")).status().await.unwrap();
        assert!(kill.success(), "kill -s {name} {pid}: {kill}");
    }

    /// Waits for the report, which is printed at the end of `finish`.
    pub(crate) async fn finished(&mut self) {
        let mut report = String::new();
        timeout(PATIENCE, self.stdout.read_line(&mut report)).await.expect("the gateway must shut down").unwrap();
        assert!(report.contains("sessions drained in"), "{report}");
    }

    /// Waits until it exits, for at most `limit`.
    pub(crate) async fn gone_within(mut self, limit: Duration) -> Gone {
        let mut report = String::new();
        let all = async {
            self.stdout.read_to_string(&mut report).await?;
            self.child.wait().await
        };
        let status = timeout(limit, all).await.unwrap_or_else(|_| panic!("still running after {limit:?}")).unwrap();
        let log = fs::read_to_string(self.dir.log()).unwrap_or_default();
        Gone { code: status.code(), report, log, rows: self.dir.rows() }
    }
}

/// The result of a gateway that has exited.
#[derive(Debug)]
pub(crate) struct Gone {
    pub(crate) code: Option<i32>,
    /// Its output after the first line.
    pub(crate) report: String,
    /// Its log.
    pub(crate) log: String,
    pub(crate) rows: Rows,
}

impl Gone {
    /// Asserts that it shut down cleanly, no row is active, and each generation has had one start and one end.
    pub(crate) fn assert_each_had_its_end(&self) {
        assert_eq!(self.code, Some(0), "{}{}", self.report, self.log);
        for row in self.rows.0.values().flatten() {
            assert_eq!((row.status.as_str(), row.start_count, row.end_count), ("completed", 1, 1), "{row:?}");
        }
    }
}

/// The rows of the database, by the session's id.
#[derive(Debug)]
pub(crate) struct Rows(pub(crate) HashMap<String, Vec<Row>>);

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) key: String,
    pub(crate) status: String,
    pub(crate) reason: Option<String>,
    pub(crate) next: Option<String>,
    pub(crate) resumed_from: Option<String>,
    pub(crate) message_count: Option<u64>,
    pub(crate) start_count: u32,
    pub(crate) end_count: u32,
}

impl Rows {
    /// The row of a session that had one generation.
    pub(crate) fn only(&self, id: &str) -> &Row {
        match self.0.get(id).map(Vec::as_slice) {
            Some([row]) => row,
            rows => panic!("expected one row for {id}, got {rows:?}"),
        }
    }

    pub(crate) fn reason(&self, id: &str) -> &str {
        self.only(id).reason.as_deref().unwrap_or("none")
    }
}

/// A separate directory for each gateway.
#[derive(Debug)]
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("gateway-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).expect("the directory must be writable");
        Self(path)
    }

    fn db(&self) -> PathBuf {
        self.0.join("sessions.db")
    }

    fn log(&self) -> PathBuf {
        self.0.join("stderr.log")
    }

    fn rows(&self) -> Rows {
        let db = rusqlite::Connection::open(self.db()).expect("the gateway must have created the database");
        let mut select = db.prepare("SELECT * FROM sessions").unwrap();
        let rows = select.query_map((), |row| {
            let id: String = row.get("session_id")?;
            let row = Row {
                key: row.get("session_key")?,
                status: row.get("status")?,
                reason: row.get("reason")?,
                next: row.get("next_session_id")?,
                resumed_from: row.get("resumed_from")?,
                message_count: row.get("message_count")?,
                start_count: row.get("start_count")?,
                end_count: row.get("end_count")?,
            };
            Ok((id, row))
        });
        let mut by_id: HashMap<String, Vec<Row>> = HashMap::new();
        for row in rows.unwrap() {
            let (id, row) = row.unwrap();
            by_id.entry(id).or_default().push(row);
        }
        Rows(by_id)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A client that reuses its connections.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    http: HttpClient<HttpConnector, Full<Bytes>>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// The session id in the head.
    pub(crate) id: Option<String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect(&self.body)
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, http: HttpClient::builder(TokioExecutor::new()).build_http() }
    }

    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        id: Option<&str>,
        body: &str,
    ) -> Result<Answer, Error> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        if let Some(id) = id {
            request = request.header("x-session-id", id);
        }
        if body.starts_with('{') {
            request = request.header("content-type", "application/json");
        }
        let response = self.http.request(request.body(Full::from(body.to_owned())).unwrap()).await?;
        let id = response.headers().get("x-session-id").map(|id| id.to_str().unwrap().to_owned());
        let status = response.status();
        // The body may be incomplete: only the head counts here.
        let body = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Ok(Answer { status, id, body: String::from_utf8_lossy(&body).into_owned() })
    }

    pub(crate) async fn send(&self, method: Method, path: &str, id: Option<&str>, body: &str) -> Answer {
        let answer =
            timeout(PATIENCE, self.try_send(method, path, id, body)).await.expect("the answer must come in time");
        answer.unwrap_or_else(|error| panic!("{path}: {error:?}"))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None, "").await
    }

    /// Starts a session and returns its id.
    pub(crate) async fn open(&self, key: &str) -> String {
        let answer = self.send(Method::POST, "/sessions", None, &format!(r#"{{"key":"{key}"}}"#)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        answer.id.expect("a new session must have an id")
    }

    /// Posts in a session.
    pub(crate) async fn post(&self, path: &str, id: &str, body: &str) -> Answer {
        self.send(Method::POST, path, Some(id), body).await
    }

    /// Posts a request that gives the session a successor, and returns its id.
    pub(crate) async fn successor(&self, path: &str, id: &str) -> String {
        let answer = self.post(path, id, "").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        answer.id.expect("a successor must have an id")
    }

    /// Waits until `/readyz` answers 503.
    pub(crate) async fn not_ready(&self) {
        until("not ready", async || self.get("/readyz").await.status == StatusCode::SERVICE_UNAVAILABLE).await;
    }
}

/// Polls a condition until it holds, with a limit.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("did not happen in time: {what}"));
}

/// Waits until the server has closed the connection; discards what it still sends.
pub(crate) async fn closes(socket: &mut (impl tokio::io::AsyncRead + Unpin)) -> bool {
    let mut rest = Vec::new();
    match timeout(PATIENCE, socket.read_to_end(&mut rest)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionReset,
        Err(_) => false,
    }
}
