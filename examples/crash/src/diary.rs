//! [`Diary`]: a file to which the hooks append a line for every event, whichever process they run in.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use tower_session_end::{SessionEnd, SessionStart};

/// The consumer of the session events. What is written is there, also if the process is killed in the next moment.
#[derive(Clone, Debug)]
pub struct Diary {
    file: Arc<File>,
    path: PathBuf,
    writer: String,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub kind: Kind,
    /// The session.
    pub id: String,
    /// The generation.
    pub event: String,
    /// Why it ended.
    pub reason: String,
    /// The process that delivered it.
    pub writer: String,
}

/// Start or end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A `session_start`.
    Start,
    /// A `session_end`.
    End,
}

impl Diary {
    /// Opens the diary at `path` for a process that calls itself `writer`.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn open(path: &Path, writer: &str) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self { file: Arc::new(file), path: path.to_owned(), writer: writer.to_owned() })
    }

    /// Writes down a start.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn start(&self, start: &SessionStart) -> io::Result<()> {
        self.line("start", start.session.id.as_str(), &start.generation.to_string(), "-")
    }

    /// Writes down an end.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn end(&self, end: &SessionEnd) -> io::Result<()> {
        self.line("end", end.session.id.as_str(), &end.generation.to_string(), end.reason.as_str())
    }

    /// In one write, so that the lines of several processes never mix.
    fn line(&self, kind: &str, id: &str, event: &str, reason: &str) -> io::Result<()> {
        let line = format!("{kind} {id} {event} {reason} {}\n", self.writer);
        (&*self.file).write_all(line.as_bytes())
    }

    /// Everything that was written so far, by anybody.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or has a line that is none of ours.
    pub fn read(&self) -> io::Result<Vec<Entry>> {
        std::fs::read_to_string(&self.path)?.lines().map(parse).collect()
    }
}

fn parse(line: &str) -> io::Result<Entry> {
    let words: Vec<_> = line.split(' ').collect();
    let [kind, id, event, reason, writer] = words[..] else {
        return Err(io::Error::other(format!("not a line of a diary: {line}")));
    };
    let kind = if kind == "start" { Kind::Start } else { Kind::End };
    Ok(Entry { kind, id: id.to_owned(), event: event.to_owned(), reason: reason.to_owned(), writer: writer.to_owned() })
}
