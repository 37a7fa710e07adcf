//! [`EventLog`]: a file to which the hooks append a line for every event, whichever process they run in.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use tower_session_end::{IdempotencyKey, SessionEnd, SessionStart};

/// The consumer of the session events. A written line survives SIGKILL of the process.
#[derive(Clone, Debug)]
pub struct EventLog {
    file: Arc<File>,
    path: PathBuf,
    writer: String,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// A start or an end.
    pub kind: Kind,
    /// The session.
    pub id: String,
    /// The generation.
    pub event: String,
    /// The reason of an end.
    pub reason: String,
    /// The name of the process that delivered the event.
    pub writer: String,
    /// The idempotency key of the event.
    pub key: String,
    /// When the line was written, in microseconds since 1970.
    pub at: u64,
    /// When the session ended; its hook may run later. For a start, the same as `at`.
    pub ended_at: u64,
    /// When the session started; its hook may run later. For a start, the same as `at`.
    pub started_at: u64,
}

/// Start or end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A `session_start`.
    Start,
    /// A `session_end`.
    End,
}

impl EventLog {
    /// Opens the event log at `path` for the process with the name `writer`.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn open(path: &Path, writer: &str) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self { file: Arc::new(file), path: path.to_owned(), writer: writer.to_owned() })
    }

    /// Writes a start.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn start(&self, start: &SessionStart) -> io::Result<()> {
        let (id, generation) = (start.session.id.as_str(), start.generation.to_string());
        let now = now();
        self.line(["start", id, &generation, "-"], start.idempotency_key(), [now, now])
    }

    /// Writes an end.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn end(&self, end: &SessionEnd) -> io::Result<()> {
        let (id, generation) = (end.session.id.as_str(), end.generation.to_string());
        let times = [end.started_at + end.duration, end.started_at].map(micros);
        self.line(["end", id, &generation, end.reason.as_str()], end.idempotency_key(), times)
    }

    /// Writes whether the registry is degraded from now on: the process, `down` or `up`, and the time.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn health(&self, is_degraded: bool) -> io::Result<()> {
        let line = format!("{} {} {}\n", self.writer, if is_degraded { "down" } else { "up" }, now());
        (&*self.file).write_all(line.as_bytes())
    }

    /// Writes a line in one call, so that the lines of several processes never mix.
    fn line(&self, words: [&str; 4], key: IdempotencyKey, [ended_at, started_at]: [u64; 2]) -> io::Result<()> {
        let line = format!("{} {} {key} {} {ended_at} {started_at}\n", words.join(" "), self.writer, now());
        (&*self.file).write_all(line.as_bytes())
    }

    /// Every line that any process has written so far.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or has an invalid line.
    pub fn read(&self) -> io::Result<Vec<Entry>> {
        let text = std::fs::read_to_string(&self.path)?;
        // A write that crosses a page is visible in two parts: the last line may not be complete yet.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(parse).collect()
    }
}

/// The time of this machine, in microseconds since 1970.
#[must_use]
pub fn now() -> u64 {
    micros(SystemTime::now())
}

fn micros(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

fn parse(line: &str) -> io::Result<Entry> {
    let words: Vec<_> = line.split(' ').collect();
    let invalid = || io::Error::other(format!("not a line of an event log: {line}"));
    let [kind, id, event, reason, writer, key, at, ended_at, started_at] = words[..] else { return Err(invalid()) };
    let kind = if kind == "start" { Kind::Start } else { Kind::End };
    let [at, ended_at, started_at] = [at, ended_at, started_at].map(|time| time.parse().map_err(|_| invalid()));
    let [id, event, reason, writer, key] = [id, event, reason, writer, key].map(str::to_owned);
    Ok(Entry { kind, id, event, reason, writer, key, at: at?, ended_at: ended_at?, started_at: started_at? })
}
