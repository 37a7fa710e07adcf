//! The built example as a process.

use std::{
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// Longer than any step of a test takes on a busy machine; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits, with a limit.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("stuck: {what}"),
    }
}

/// Killed if its test fails.
pub(crate) struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub(crate) async fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_servers"));
        command.args(arguments).envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, stdin, lines }
    }

    pub(crate) async fn write(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).await.unwrap();
    }

    /// The next line of its output.
    pub(crate) async fn line(&mut self) -> String {
        within("a line", self.lines.next_line()).await.unwrap().expect("the process has exited")
    }

    /// The rest of the next line, which has to begin so.
    pub(crate) async fn line_after(&mut self, start: &str) -> String {
        let line = self.line().await;
        line.strip_prefix(start).unwrap_or_else(|| panic!("{line}")).to_owned()
    }

    pub(crate) async fn terminate(&self) {
        let kill = format!("kill -s TERM {}", self.child.id().expect("the process is running"));
        // The `kill` built into the shell works where the program `kill` is not installed.
        assert!(Command::new("sh").arg("-c").arg(kill).status().await.unwrap().success());
    }

    /// Waits until it exits, with 0, a clean report, and no deadline reached, and returns the ends that it has printed meanwhile.
    pub(crate) async fn ends(mut self) -> Vec<String> {
        let (mut ends, mut report) = (Vec::new(), String::new());
        while let Some(line) = within("the end of the output", self.lines.next_line()).await.unwrap() {
            if line.contains(" ended: ") {
                ends.push(line);
            } else if !line.ends_with(" started") {
                report.push_str(&line);
            }
        }
        let status = within("the exit", self.child.wait()).await.unwrap();
        assert_eq!(status.code(), Some(0), "{report}");
        assert!(report.contains(" ended, 0 unfinished") && report.contains("connections drained in"), "{report}");
        ends
    }
}

/// A directory that goes with its test.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Short: the path of a Unix socket has at most 107 bytes.
        let dir = std::env::temp_dir().join(format!("servers-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
