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
        self.line("start", start.session.id.as_str(), &start.generation.to_string(), "-", start.idempotency_key())
    }

    /// Writes an end.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn end(&self, end: &SessionEnd) -> io::Result<()> {
        let (id, generation) = (end.session.id.as_str(), end.generation.to_string());
        self.line("end", id, &generation, end.reason.as_str(), end.idempotency_key())
    }

    /// Writes a line in one call, so that the lines of several processes never mix.
    fn line(&self, kind: &str, id: &str, event: &str, reason: &str, key: IdempotencyKey) -> io::Result<()> {
        let line = format!("{kind} {id} {event} {reason} {} {key} {}\n", self.writer, now());
        (&*self.file).write_all(line.as_bytes())
    }

    /// Every line that any process has written so far.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or has an invalid line.
    pub fn read(&self) -> io::Result<Vec<Entry>> {
        std::fs::read_to_string(&self.path)?.lines().map(parse).collect()
    }
}

/// The time of this machine, in microseconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_micros() as u64)
}

fn parse(line: &str) -> io::Result<Entry> {
    let words: Vec<_> = line.split(' ').collect();
    let invalid = || io::Error::other(format!("not a line of an event log: {line}"));
    let [kind, id, event, reason, writer, key, at] = words[..] else { return Err(invalid()) };
    let kind = if kind == "start" { Kind::Start } else { Kind::End };
    let at = at.parse().map_err(|_| invalid())?;
    let [id, event, reason, writer, key] = [id, event, reason, writer, key].map(str::to_owned);
    Ok(Entry { kind, id, event, reason, writer, key, at })
}
