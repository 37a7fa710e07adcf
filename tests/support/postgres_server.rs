//! A real PostgreSQL server, in processes and a folder of its own. Uses nothing but std, so that any test or example can take
//! it in by its path.
use std::{
    env, fs,
    io::Write,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

/// How long a server may take to start, to stop, or to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The files of a cluster that was just made, which each server copies.
static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();

/// A server on a port of its own. It and its folder are removed when this is dropped, and when the process ends in any way.
#[derive(Debug)]
pub(crate) struct PostgresServer {
    port: u16,
    dir: PathBuf,
    settings: Vec<String>,
    has_own_disk: bool,
    /// A shell that starts the server and stops it when its input ends.
    keeper: Option<Child>,
}

/// Whether there is a server to start. If not, a test that needs one returns at once; in CI that is an error.
pub(crate) fn is_installed() -> bool {
    let found = find("postgres").is_some();
    assert!(found || env::var_os("CI").is_none(), "PostgreSQL is not installed: install `postgresql` (Debian)");
    if !found {
        eprintln!("skipped: PostgreSQL is not installed; install `postgresql` (Debian)");
    }
    found
}

/// The server that the tests of one binary share. It does not sync its files. None if PostgreSQL is not installed.
pub(crate) fn shared() -> Option<&'static PostgresServer> {
    static SERVER: OnceLock<PostgresServer> = OnceLock::new();
    is_installed().then(|| SERVER.get_or_init(|| PostgresServer::start(&["fsync=off"])))
}

impl PostgresServer {
    /// A server with these settings, `fsync=off` for example.
    pub(crate) fn start(settings: &[&str]) -> Self {
        let dir = new_dir("server");
        copy_cluster(&dir);
        Self::new(dir, settings, false)
    }

    /// One whose files are on a disk of their own, of so many megabytes. None if this process may not mount one.
    pub(crate) fn start_on_disk(megabytes: usize, settings: &[&str]) -> Option<Self> {
        let dir = new_dir("disk");
        let owner = unprivileged_ids().map_or_else(String::new, |(user, group)| format!(",uid={user},gid={group}"));
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m{owner}"), "tmpfs"])
            .arg(&dir)
            .stderr(Stdio::null());
        if !mount.status().is_ok_and(|status| status.success()) {
            eprintln!("skipped: this process may not mount a disk");
            let _ = fs::remove_dir(&dir);
            return None;
        }
        copy_cluster(&dir);
        Some(Self::new(dir, settings, true))
    }

    /// A standby that replicates this server.
    pub(crate) fn standby(&self) -> Self {
        let dir = new_dir("standby");
        let mut command = unprivileged(&binary("pg_basebackup"));
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-R", "-c", "fast", "-D"]);
        checked(command.arg(dir.join("data")).current_dir("/").output(), "pg_basebackup");
        Self::new(dir, &[], false)
    }

    /// The other server is lost, and this standby takes its place and its address.
    pub(crate) fn take_over(&mut self, mut primary: Self) {
        primary.kill();
        self.ask("SELECT pg_promote()");
        self.kill();
        self.port = primary.port;
        assert!(self.spawn(), "the server did not start again:\n{}", self.log());
    }

    fn new(dir: PathBuf, settings: &[&str], has_own_disk: bool) -> Self {
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let mut server = Self { port: 0, dir, settings, has_own_disk, keeper: None };
        // Another process may be quicker to take a port that was free.
        for _ in 0..10 {
            server.port = free_port();
            if server.spawn() {
                return server;
            }
        }
        panic!("no PostgreSQL server could be started; the last one said:\n{}", server.log());
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// For the user `postgres`, who may do everything.
    pub(crate) fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// For another user. No password is asked for.
    pub(crate) fn url_of(&self, user: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/postgres", self.port)
    }

    /// Runs statements with `psql`, and returns the values without headings: a line for each row, `|` between columns.
    pub(crate) fn ask(&self, statements: &str) -> String {
        self.try_ask(statements).unwrap_or_else(|error| panic!("{statements}: {error}"))
    }

    /// As [`ask`](Self::ask); the error of the server is an error.
    pub(crate) fn try_ask(&self, statements: &str) -> Result<String, String> {
        let mut psql = Command::new(binary("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url(), "-c", statements]);
        let output = psql.env("PGCONNECT_TIMEOUT", "5").output().map_err(|error| error.to_string())?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// Asks until this is the answer.
    pub(crate) fn wait_until(&self, question: &str, expected: &str) {
        let start = Instant::now();
        loop {
            let answer = self.try_ask(question);
            if answer.as_deref() == Ok(expected) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{question}: expected {expected}, the last answer is {answer:?}");
            sleep(Duration::from_millis(20));
        }
    }

    /// The processes of the server: the first one, and those that it has started, one for each connection among them.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let file = fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap_or_default();
        let Some(first) = file.lines().next().and_then(|line| line.trim().parse::<u32>().ok()) else {
            return Vec::new();
        };
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap_or_default();
        std::iter::once(first).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }

    /// Ends the server at once, as a power cut does, and leaves the folder: `pg_ctl stop -m immediate`.
    pub(crate) fn kill(&mut self) {
        let Some(mut keeper) = self.keeper.take() else { return };
        // The end of its input.
        drop(keeper.stdin.take());
        let start = Instant::now();
        while keeper.try_wait().is_ok_and(|status| status.is_none()) && start.elapsed() < PATIENCE {
            sleep(Duration::from_millis(5));
        }
        let _ = keeper.kill();
        let _ = keeper.wait();
    }

    /// Starts it again where it was, with what it has on disk.
    pub(crate) fn start_again(&mut self) {
        self.kill();
        assert!(self.spawn(), "the server did not start again:\n{}", self.log());
    }

    /// `pg_ctl restart -m immediate`.
    pub(crate) fn restart_immediately(&mut self) {
        self.start_again();
    }

    fn spawn(&mut self) -> bool {
        let data = self.dir.join("data");
        let log = self.dir.join("log");
        // Without the file of the server that was killed, `wait_until_ready` cannot take that one for this one.
        let _ = fs::remove_file(data.join("postmaster.pid"));
        let mut settings = String::new();
        for setting in &self.settings {
            settings.push_str(&format!(" -c {setting}"));
        }
        let script = format!(
            "'{}' -D '{}' -h 127.0.0.1 -p {} -c unix_socket_directories= -c max_connections=200 \
             -c shared_buffers=64MB{settings} >>'{}' 2>&1 </dev/null & server=$!; \
             (while kill -0 $server 2>/dev/null; do sleep 0.1; done; kill -TERM $$ 2>/dev/null) & \
             read -r line; kill -QUIT $server 2>/dev/null; wait $server",
            binary("postgres").display(),
            data.display(),
            self.port,
            log.display()
        );
        let mut command = unprivileged(Path::new("/bin/sh"));
        command.arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut keeper = command.spawn().unwrap_or_else(|error| panic!("/bin/sh: {error}"));
        let start = Instant::now();
        loop {
            // The last line of this file says so once the server answers.
            let ready = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
            if ready.lines().last().is_some_and(|line| line.trim() == "ready")
                && TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
            {
                self.keeper = Some(keeper);
                return true;
            }
            if keeper.try_wait().is_ok_and(|status| status.is_some()) {
                return false;
            }
            if start.elapsed() > PATIENCE {
                let _ = keeper.kill();
                let _ = keeper.wait();
                panic!("the server never answered:\n{}", self.log());
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Writes a file until the disk is full.
    pub(crate) fn fill_disk(&self) {
        let mut file = fs::File::create(self.dir.join("ballast")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    pub(crate) fn free_disk(&self) {
        fs::remove_file(self.dir.join("ballast")).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
        if self.has_own_disk {
            let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A proxy that gives each transaction a connection of its own. None if `pgbouncer` is not installed; in CI that is an error.
#[derive(Debug)]
pub(crate) struct PgBouncer {
    port: u16,
    dir: PathBuf,
    keeper: Child,
}

impl PgBouncer {
    /// In front of this server, with so many connections to it.
    pub(crate) fn start(server: &PostgresServer, connections: usize) -> Option<Self> {
        let Some(binary) = find("pgbouncer") else {
            assert!(env::var_os("CI").is_none(), "pgbouncer is not installed: install `pgbouncer` (Debian)");
            eprintln!("skipped: pgbouncer is not installed");
            return None;
        };
        let (dir, port) = (new_dir("pgbouncer"), free_port());
        let file = dir.join("pgbouncer.ini");
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\n\
             unix_socket_dir=\nauth_type=any\npool_mode=transaction\ndefault_pool_size={connections}\n\
             ignore_startup_parameters=extra_float_digits\nlogfile={}\n",
            server.port,
            dir.join("log").display()
        );
        fs::write(&file, settings).unwrap();
        let script = format!(
            "'{}' -q '{}' </dev/null & proxy=$!; read -r line; kill -INT $proxy; wait $proxy",
            binary.display(),
            file.display()
        );
        let mut command = unprivileged(Path::new("/bin/sh"));
        command.arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let keeper = command.spawn().unwrap_or_else(|error| panic!("/bin/sh: {error}"));
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "pgbouncer never answered:\n{log}");
            sleep(Duration::from_millis(10));
        }
        Some(Self { port, dir, keeper })
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A command that does not run as root, which PostgreSQL refuses.
fn unprivileged(program: &Path) -> Command {
    match unprivileged_ids() {
        None => Command::new(program),
        Some((user, group)) => {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
            command.arg("--").arg(program);
            command
        }
    }
}

/// PostgreSQL refuses to run as root. If this process does, the server runs as this user and group.
fn unprivileged_ids() -> Option<(u32, u32)> {
    static IDS: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *IDS.get_or_init(|| {
        let id = |args: &[&str]| {
            let output = Command::new("id").args(args).output().expect("`id`");
            String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().expect("a number from `id`")
        };
        (id(&["-u"]) == 0).then(|| (id(&["-u", "nobody"]), id(&["-g", "nobody"])))
    })
}

/// Makes the files of a cluster, as a copy of those that were made first.
fn copy_cluster(dir: &Path) {
    let template = TEMPLATE.get_or_init(|| {
        let dir = new_dir("template");
        let mut command = unprivileged(&binary("initdb"));
        command.args(["-N", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D"]).arg(dir.join("data"));
        checked(command.current_dir("/").output(), "initdb");
        dir
    });
    let mut command = unprivileged(Path::new("cp"));
    checked(command.arg("-R").arg(template.join("data")).arg(dir.join("data")).current_dir("/").output(), "cp");
    fs::set_permissions(dir.join("data"), fs::Permissions::from_mode(0o700)).unwrap();
}

fn checked(output: std::io::Result<Output>, what: &str) {
    let output = output.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

fn binary(name: &str) -> PathBuf {
    find(name).unwrap_or_else(|| panic!("{name} is not installed"))
}

/// In the path, or where Debian has the newest version.
fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut versions: Vec<_> = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().collect();
    versions.sort_by_key(|version| version.file_name().to_string_lossy().parse::<u32>().unwrap_or_default());
    let of_debian = versions.into_iter().rev().map(|version| version.path().join("bin"));
    // Programs of the administrator are not in the path of other users.
    let others = [PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")];
    env::split_paths(&path).chain(of_debian).chain(others).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A folder of the user who runs the server.
fn new_dir(kind: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    remove_old();
    let dir = env::temp_dir().join(format!("tower-session-end-postgres-{}-{kind}-{count}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    if let Some((user, group)) = unprivileged_ids() {
        chown(&dir, Some(user), Some(group)).unwrap();
    }
    dir
}

/// Removes the template, which no destructor removes. No server can be started afterwards.
pub(crate) fn remove_template() {
    if let Some(dir) = TEMPLATE.get() {
        let _ = fs::remove_dir_all(dir);
    }
}

/// Removes what earlier processes have left that were killed, and the shared server's files, which no destructor removes.
fn remove_old() {
    for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("tower-session-end-postgres-")?.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) && Path::new("/proc/self").exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
