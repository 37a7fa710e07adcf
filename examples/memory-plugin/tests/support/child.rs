//! The built program as a child process.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout, Command},
};

use super::{Client, within};

/// The program, without settings from the environment of the test.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memory_plugin"));
    for (name, _) in std::env::vars_os() {
        let ours = ["MEMORY_PLUGIN_", "GATEWAY_", "RECEIVER_"];
        if name.to_str().is_some_and(|name| ours.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command.args(arguments).kill_on_drop(true);
    command
}

/// A child process that prints its address.
struct Listening {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Listening {
    async fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program must start");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        within("the address", stdout.read_line(&mut line)).await.unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect(&line).parse().unwrap();
        Self { child, stdout, address }
    }

    /// Sends a signal, by its name, to the process.
    async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("the process must be running");
        // The `kill` built into the shell works where the program `kill` is not installed.
        let kill = Command::new("sh").arg("-c").arg(format!("kill -s {name} {pid}")).status().await.unwrap();
        assert!(kill.success(), "kill -s {name} {pid}: {kill}");
    }

    /// Waits until it exits, and returns its exit code and the rest of its output.
    async fn gone(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        let all = async {
            self.stdout.read_to_string(&mut rest).await?;
            self.child.wait().await
        };
        let status = within("the end of the process", all).await.unwrap();
        (status.code(), rest)
    }
}

/// A limit that no test reaches.
const UNLIMITED: &str = "1000000/1";

/// The gateway: `memory_plugin serve`.
pub(crate) struct Gateway {
    process: Listening,
    pub(crate) client: Client,
    log: PathBuf,
    _dir: Dir,
}

impl Gateway {
    /// Starts a gateway whose plugin is at this URL, with additional settings.
    pub(crate) async fn start(plugin: &str, settings: &[(&str, &str)]) -> Self {
        let dir = Dir::new();
        let log = dir.0.join("stderr.log");
        let mut command = program(&["serve"]);
        command.env("MEMORY_PLUGIN_URL", plugin).env("GATEWAY_ADDR", "127.0.0.1:0");
        // A budget that a test does not reach unless it sets its own.
        command.env("GATEWAY_DRAIN_TIMEOUT_MS", "30000").env("MEMORY_PLUGIN_TIMEOUT_MS", "30000");
        command.env("MEMORY_PLUGIN_LIMIT", UNLIMITED);
        command.envs(settings.iter().copied()).stderr(fs::File::create(&log).expect("the directory must be writable"));
        let process = Listening::start(&mut command).await;
        let client = Client::new(process.address);
        Self { process, client, log, _dir: dir }
    }

    pub(crate) async fn sigterm(&self) {
        self.process.signal("TERM").await;
    }

    /// Shuts it down, asserts a clean exit, and returns its output.
    pub(crate) async fn stop(self) -> String {
        self.sigterm().await;
        self.stopped_cleanly().await
    }

    pub(crate) async fn stopped_cleanly(self) -> String {
        let (code, said, log) = self.gone().await;
        assert_eq!(code, Some(0), "{said}{log}");
        said
    }

    /// Its exit code, its output, and its log.
    pub(crate) async fn gone(self) -> (Option<i32>, String, String) {
        let (code, said) = self.process.gone().await;
        (code, said, fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// Its log so far.
    pub(crate) fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// The minimal plugin: `memory_plugin receiver`, with its SQLite file.
pub(crate) struct Receiver {
    process: Listening,
    db: PathBuf,
}

impl Receiver {
    pub(crate) async fn start(dir: &Dir) -> Self {
        Self::start_on(dir, "127.0.0.1:0").await
    }

    async fn start_on(dir: &Dir, address: &str) -> Self {
        let db = dir.0.join("memory.db");
        let mut command = program(&["receiver"]);
        let process = Listening::start(command.env("RECEIVER_ADDR", address).env("RECEIVER_DB", &db)).await;
        Self { process, db }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.process.address)
    }

    /// Kills it, as a crash would; its file stays. Returns a future that starts another one in its place.
    pub(crate) async fn crash(self) -> impl AsyncFnOnce(&Dir) -> Self {
        let address = self.process.address.to_string();
        self.process.signal("KILL").await;
        self.process.gone().await;
        async move |dir: &Dir| Self::start_on(dir, &address).await
    }

    /// The table, by id.
    pub(crate) fn rows(&self) -> BTreeMap<String, Row> {
        let db = rusqlite::Connection::open(&self.db).expect("the receiver must have created the database");
        let mut select = db.prepare("SELECT * FROM sdk_sessions").unwrap();
        let rows = select.query_map((), |row| {
            let columns = Row {
                project: row.get("project")?,
                prompt: row.get("prompt")?,
                status: row.get("status")?,
                completed_at: row.get("completed_at")?,
            };
            Ok((row.get("content_session_id")?, columns))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) project: String,
    pub(crate) prompt: String,
    pub(crate) status: String,
    pub(crate) completed_at: Option<i64>,
}

/// A temporary directory.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("memory-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).expect("the directory must be writable");
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
