//! Other processes: this test binary again, in a role.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
};

use super::support::PATIENCE;

const ROLE: &str = "REGISTRY_TEST_ROLE";
const FILE: &str = "REGISTRY_TEST_FILE";

/// What marks a line of a role among those of the test harness.
const MARK: &str = "» ";

/// A process with a role; killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(role: &str, file: &Path) -> Self {
        Self::start_by(&[], role, file)
    }

    /// With a command before the program, and its arguments.
    pub(crate) fn start_by(prefix: &[&str], role: &str, file: &Path) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut words = prefix.iter().map(AsRef::as_ref).chain([program.as_os_str()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        // Two threads, so that the harness leaves the beginning of the line to us.
        command.args(["--exact", "registry::sqlite::process::in_a_role", "--nocapture", "--test-threads=2"]);
        command.env(ROLE, role).env(FILE, file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (to, from) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, to, from }
    }

    /// The next line; none at the end.
    pub(crate) fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        while self.from.read_line(&mut line).unwrap() > 0 {
            if let Some((_, said)) = line.split_once(MARK)
                && said.ends_with('\n')
            {
                return Some(said.trim_end().to_owned());
            }
            line.clear();
        }
        None
    }

    /// All that it still has to say.
    pub(crate) fn hear_all(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.hear()).collect()
    }

    #[track_caller]
    pub(crate) fn expect(&mut self, expected: &str) {
        assert_eq!(self.hear().as_deref(), Some(expected));
    }

    /// Lets it go on.
    pub(crate) fn go(&mut self) {
        self.to.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL; its lease is lost when this returns.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Speaks to whoever has started this process.
pub(crate) fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{MARK}{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Waits for [`Process::go`].
pub(crate) fn wait() {
    let mut line = String::new();
    assert!(std::io::stdin().lock().read_line(&mut line).unwrap() > 0, "whoever has started this process is gone");
}

/// Not a test by itself: what a child process does.
#[test]
fn in_a_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let file = std::env::var_os(FILE).unwrap();
    // It must not outlive a test that is stuck.
    thread::spawn(|| {
        thread::sleep(2 * PATIENCE);
        std::process::exit(3);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(super::multi_process::play(&role, Path::new(&file)));
    std::process::exit(0);
}
