//! A real Redis or Valkey server, in a process and a folder of its own. Uses nothing but std, so that any test or example
//! can take it in by its path.
use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

/// How long a server may take to start, or to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a port of its own. Killed when dropped.
#[derive(Debug)]
pub(crate) struct RedisServer {
    port: u16,
    dir: PathBuf,
    args: Vec<String>,
    password: Option<String>,
    child: Option<Child>,
}

impl RedisServer {
    /// A server that keeps nothing on disk.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// As [`start`](Self::start), with these options, e.g. `--appendonly yes`.
    pub(crate) fn with(args: &[&str]) -> Self {
        let password = args.iter().position(|arg| *arg == "--requirepass").map(|at| args[at + 1].to_owned());
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut server = Self { port: 0, dir: new_dir(), args, password, child: None };
        // Somebody else may be quicker to take a port that was free.
        for _ in 0..10 {
            server.port = free_port();
            if server.spawn() {
                return server;
            }
        }
        panic!("no redis-server could be started; the last one said:\n{}", server.log());
    }

    /// A node of a cluster, with no slots.
    pub(crate) fn cluster_node() -> Self {
        // A node talks to others on a second port, which is out of range for some of the free ones by default.
        let bus = free_port().to_string();
        Self::with(&["--cluster-enabled", "yes", "--cluster-port", &bus])
    }

    /// One node that is a whole cluster.
    pub(crate) fn cluster() -> Self {
        let server = Self::cluster_node();
        server.ask("CLUSTER ADDSLOTSRANGE 0 16383");
        server.wait_until("CLUSTER INFO", "cluster_state:ok");
        server
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The second port of a node of a cluster.
    pub(crate) fn bus_port(&self) -> &str {
        let at = self.args.iter().position(|arg| arg == "--cluster-port").expect("a node of a cluster");
        &self.args[at + 1]
    }

    /// For the `redis` crate, with the password if there is one.
    pub(crate) fn url(&self) -> String {
        let password = self.password.as_deref().map(|password| format!(":{password}@")).unwrap_or_default();
        format!("redis://{password}127.0.0.1:{}/", self.port)
    }

    /// Sends one command (words between spaces) and gives back the answer as it comes, or the error as `Err`.
    pub(crate) fn try_ask(&self, command: &str) -> Result<String, String> {
        let mut connection = Connection::open(self.port).map_err(|error| error.to_string())?;
        if let Some(password) = &self.password {
            connection.ask(&format!("AUTH {password}"))?;
        }
        connection.ask(command)
    }

    /// As [`try_ask`](Self::try_ask), where it has to work.
    pub(crate) fn ask(&self, command: &str) -> String {
        self.try_ask(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Asks until the answer has this in it.
    pub(crate) fn wait_until(&self, command: &str, part: &str) {
        let start = Instant::now();
        let mut last = String::new();
        while start.elapsed() < PATIENCE {
            last = self.try_ask(command).unwrap_or_else(|error| error);
            if last.contains(part) {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        panic!("{command} never said {part:?}; the last answer: {last}");
    }

    /// Every key there is.
    pub(crate) fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.ask("KEYS *").lines().map(str::to_owned).collect();
        keys.sort();
        keys
    }

    /// How often a command was carried out, inside scripts too.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let stats = self.ask("INFO commandstats");
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }

    /// Ends it as a power cut does, and leaves the folder.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again where it was, with what it has on disk.
    pub(crate) fn start_again(&mut self) {
        self.kill();
        assert!(self.spawn(), "the server did not start again:\n{}", self.log());
    }

    fn spawn(&mut self) -> bool {
        let mut command = Command::new(binary());
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--loglevel", "notice"]);
        command.arg("--dir").arg(&self.dir).arg("--logfile").arg(self.dir.join("log")).args(&self.args);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{}: {error}", binary().display()));
        let start = Instant::now();
        loop {
            let answer = self.try_ask("PING");
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            // Another server may have taken the port, and answer instead.
            let is_this = |info: String| info.contains(&format!("process_id:{}\r", child.id()));
            if answer.as_deref() == Ok("PONG") && self.try_ask("INFO server").is_ok_and(is_this) {
                self.child = Some(child);
                return true;
            }
            if start.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the server never answered: {answer:?}\n{}", self.log());
            }
            sleep(Duration::from_millis(5));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// `$REDIS_SERVER`, or what is in the path.
fn binary() -> PathBuf {
    if let Some(named) = env::var_os("REDIS_SERVER") {
        return named.into();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = ["redis-server", "valkey-server"]
        .iter()
        .flat_map(|name| env::split_paths(&path).map(|dir| dir.join(name)).collect::<Vec<_>>())
        .find(|file| file.is_file());
    found.unwrap_or_else(|| {
        panic!("these tests need a redis-server or valkey-server: install one (Debian: redis-server), or name it in $REDIS_SERVER")
    })
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn new_dir() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = env::temp_dir().join(format!("tower-session-end-redis-{}-{count}", std::process::id()));
    // From a run that was killed, under the same id.
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    Path::new(&dir).to_owned()
}

/// Enough of the protocol to ask something.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self, command: &str) -> Result<String, String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).map_err(|error| error.to_string())?;
        self.answer()
    }

    /// A list is a line for each.
    fn answer(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.0.read_line(&mut line).map_err(|error| error.to_string())?;
        let line = line.trim_end();
        let Some((kind, rest)) = line.split_at_checked(1) else {
            return Err("closed".to_owned());
        };
        match kind {
            "+" | ":" => Ok(rest.to_owned()),
            "$" if rest == "-1" => Ok(String::new()),
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
                self.0.read_exact(&mut bytes).map_err(|error| error.to_string())?;
                bytes.truncate(bytes.len() - 2);
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            "*" => {
                let items: Result<Vec<_>, _> = (0..rest.parse::<usize>().unwrap_or(0)).map(|_| self.answer()).collect();
                Ok(items?.join("\n"))
            }
            _ => Err(rest.to_owned()),
        }
    }
}
