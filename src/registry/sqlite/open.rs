//! Opens the file, and checks that it was written by this crate, is intact, and is writable.

use std::{
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use rusqlite::{Connection, MAIN_DB, OpenFlags, OptionalExtension, TransactionBehavior};

use super::{
    error::Failure,
    lease::{DirectoryLock, Leases},
    schema,
    transaction::TransactionHook,
};

/// The time limit of the check at the start. Only a part of a larger file is checked.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a start waits for other processes that start (and may check a large file) or write.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the file may be replaced while it is opened.
const REPLACED_ATTEMPTS: usize = 10;

/// SQLite checks the time limit after this number of virtual machine instructions.
const CHECK_STEPS: i32 = 1000;

/// The settings of the builder that a holder needs.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) path: PathBuf,
    pub(super) busy_timeout: Duration,
    pub(super) set_aside_damaged: bool,
    pub(super) deployment: Option<String>,
    pub(super) hook: Option<Arc<TransactionHook>>,
}

/// Identifies a file, also after it was renamed.
pub(super) type FileId = (u64, u64);

#[cfg(unix)]
pub(super) fn file_id(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;

    fs::metadata(path).ok().map(|there| (there.dev(), there.ino()))
}

/// Outside Unix an open file cannot be removed.
#[cfg(not(unix))]
pub(super) fn file_id(_: &Path) -> Option<FileId> {
    None
}

/// Resolves the path, so that all processes find the leases in the same directory.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, Failure> {
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(Failure::Invalid(format!("{} is a directory", path.display()))),
        Ok(there) if !there.is_file() => Err(Failure::Invalid(format!("{} is not a regular file", path.display()))),
        Ok(_) => match fs::canonicalize(path) {
            // Another process has just set it aside.
            Err(error) if error.kind() == io::ErrorKind::NotFound => resolve(path),
            resolved => resolved.map_err(|error| Failure::io(path, &error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink()) {
                return Err(Failure::Invalid(format!("{} is a dangling symbolic link", path.display())));
            }
            let Some(name) = path.file_name() else {
                return Err(Failure::Invalid(format!("{:?} is not the name of a file", path.display().to_string())));
            };
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let found = fs::canonicalize(parent);
            let parent = found.map_err(|error| {
                Failure::Unavailable(format!("{}: its directory cannot be found: {error}", path.display()))
            })?;
            Ok(parent.join(name))
        }
        Err(error) => Err(Failure::io(path, &error)),
    }
}

/// The connection to the file, and which file it is.
pub(super) type Opened = (Connection, Option<FileId>);

/// Opens the file, or creates it. Only a process that creates or replaces it excludes others that do the same: no process that
/// already runs waits for a start.
pub(super) fn open(settings: &Settings, leases: &Leases, timeout: Duration) -> Result<Opened, Failure> {
    let path = &settings.path;
    match attempt(settings, timeout) {
        Ok(Some(opened)) => return Ok(opened),
        Ok(None) => {}
        // Damaged, or another process is replacing it right now: under the lock there is no such process.
        Err(_) if settings.set_aside_damaged => {}
        Err(error) => return Err(error),
    }
    let lock = leases.lock_directory(timeout).map_err(|error| Failure::io(leases.dir(), &error))?;
    // Marks a database that was created before: an empty file is then a damaged one.
    let begun = leases.dir().join("BEGUN");
    // Another process may have been faster.
    let is_emptied = || fs::metadata(path).is_ok_and(|there| there.len() == 0) && begun.exists();
    let attempted = match attempt(settings, timeout) {
        Ok(None) if is_emptied() => Err(Failure::damaged(path, "it is empty, but had content before")),
        result => result,
    };
    match attempted {
        Ok(Some(opened)) => return Ok(opened),
        Ok(None) => {}
        Err(Failure::Damaged(why)) if settings.set_aside_damaged => set_aside(path, &why, &lock)?,
        Err(error) => return Err(error),
    }
    let opened = begin(settings, &begun, timeout, &lock)?;
    OpenOptions::new().create(true).append(true).open(&begun).map_err(|error| Failure::io(&begun, &error))?;
    Ok(opened)
}

/// Opens the file, and checks it in a read transaction. None if there is no file, or none with tables.
fn attempt(settings: &Settings, timeout: Duration) -> Result<Option<Opened>, Failure> {
    let path = &settings.path;
    for _ in 0..REPLACED_ATTEMPTS {
        match fs::metadata(path) {
            Ok(there) if there.len() == 0 => return Ok(None),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::io(path, &error)),
        }
        let file = file_id(path);
        let mut connection = connect(path, timeout)?;
        if identify(&mut connection, path)? {
            return Ok(None);
        }
        configure(&connection, path)?;
        check(&mut connection, settings)?;
        // Another process may have replaced it meanwhile.
        if file == file_id(path) {
            return Ok(Some((connection, file)));
        }
    }
    Err(Failure::Unavailable(format!("{} is replaced again and again", path.display())))
}

fn connect(path: &Path, timeout: Duration) -> Result<Connection, Failure> {
    let at_start = |error: rusqlite::Error| Failure::at_start(path, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(path, flags).map_err(at_start)?;
    connection.busy_timeout(timeout).map_err(at_start)?;
    if connection.is_readonly(MAIN_DB).map_err(at_start)? {
        return Err(Failure::Unavailable(format!("{} is read-only", path.display())));
    }
    Ok(connection)
}

/// Creates the file for its owner only, because session ids may be credentials.
fn create(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

/// Called once the file is identified: nothing is changed in a file of another kind.
fn configure(connection: &Connection, path: &Path) -> Result<(), Failure> {
    let at_start = |error: rusqlite::Error| Failure::at_start(path, &error);
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0)).map_err(at_start)?;
    if mode != "wal" {
        let text = format!("{}: its file system does not support SQLite's log (WAL); use a local one", path.display());
        return Err(Failure::Invalid(text));
    }
    let settings = "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA journal_size_limit = 16777216;";
    connection.execute_batch(settings).map_err(at_start)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// True if the database is empty. An error if it is not a database of this crate and version.
fn identify(connection: &mut Connection, path: &Path) -> Result<bool, Failure> {
    let connection = connection
        .transaction_with_behavior(TransactionBehavior::Deferred)
        .map_err(|error| Failure::at_start(path, &error))?;
    let number = |sql| connection.query_row(sql, (), |row| row.get(0)).map_err(|error| Failure::at_start(path, &error));
    let objects: i32 = number("SELECT count(*) FROM sqlite_schema")?;
    let application: i32 = number("PRAGMA application_id")?;
    let version: i32 = number("PRAGMA user_version")?;
    match (application, version) {
        (0, 0) if objects == 0 => Ok(true),
        (schema::APPLICATION_ID, schema::VERSION) => Ok(false),
        (schema::APPLICATION_ID, newer) if newer > schema::VERSION => Err(Failure::Invalid(format!(
            "{} was written by a newer version of this crate: it has schema {newer}, and this version knows up to {}; \
             start the newer version, or use another file",
            path.display(),
            schema::VERSION
        ))),
        (schema::APPLICATION_ID, older) if older > 0 => Err(Failure::Invalid(format!(
            "{} was written by an older version of this crate: it has schema {older}, and this version needs {}; \
             start the older version once, let it deliver what the views `active_sessions` and `ending_sessions` show, \
             and remove the file",
            path.display(),
            schema::VERSION
        ))),
        (schema::APPLICATION_ID, other) => Err(Failure::damaged(path, format!("there is no schema {other}"))),
        _ => Err(Failure::Invalid(format!("{} is a database of another application", path.display()))),
    }
}

/// Creates the tables, in a file that is new or empty.
fn begin(settings: &Settings, begun: &Path, timeout: Duration, _: &DirectoryLock) -> Result<Opened, Failure> {
    let path = &settings.path;
    let _ = fs::remove_file(begun);
    match create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Failure::io(path, &error)),
        _ => {}
    }
    let file = file_id(path);
    let mut connection = connect(path, timeout)?;
    configure(&connection, path)?;
    create_tables(&mut connection, settings).map_err(|error| Failure::at_start(path, &error))?;
    Ok((connection, file))
}

fn create_tables(connection: &mut Connection, settings: &Settings) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    tx.execute_batch(schema::CREATE)?;
    if let Some(deployment) = &settings.deployment {
        tx.execute("INSERT INTO settings (name, value) VALUES ('deployment', ?1)", [deployment])?;
    }
    tx.pragma_update(None, "application_id", schema::APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", schema::VERSION)?;
    tx.commit()
}

/// Checks the file, for up to [`CHECK_TIMEOUT`]. Processes that write do not wait for it.
fn check(connection: &mut Connection, settings: &Settings) -> Result<(), Failure> {
    let path = &settings.path;
    let at_start = |error: rusqlite::Error| Failure::at_start(path, &error);
    // Set before the transaction, which borrows the connection; the time starts with the check.
    let started = Arc::new(OnceLock::<Instant>::new());
    let watched = Arc::clone(&started);
    let is_over = move || watched.get().is_some_and(|started| started.elapsed() > CHECK_TIMEOUT);
    connection.progress_handler(CHECK_STEPS, Some(is_over)).outcome().map_err(at_start)?;
    let tx = connection.transaction_with_behavior(TransactionBehavior::Deferred).map_err(at_start)?;
    let there = names(&tx).map_err(|error| damage(path, &error))?;
    if let Some(missing) = schema::OBJECTS.iter().find(|object| !there.iter().any(|name| name == *object)) {
        return Err(Failure::damaged(path, format!("`{missing}` is missing")));
    }
    check_deployment(&tx, settings)?;
    started.get_or_init(Instant::now);
    let result = tx.query_row("PRAGMA quick_check(1)", (), |row| row.get::<_, String>(0));
    drop(tx);
    connection.progress_handler(0, None::<fn() -> bool>).outcome().map_err(at_start)?;
    match result {
        Ok(ok) if ok == "ok" => Ok(()),
        Ok(damage) => Err(Failure::damaged(path, damage)),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) => {
            tracing::debug!(
                name: "session-registry-large",
                path = %path.display(),
                "the session registry is large: only a part of it was checked"
            );
            Ok(())
        }
        Err(error) => Err(damage(path, &error)),
    }
}

/// What `progress_handler` returns: nothing in some of the versions of rusqlite that this crate accepts.
trait Outcome {
    fn outcome(self) -> rusqlite::Result<()>;
}

impl Outcome for () {
    fn outcome(self) -> rusqlite::Result<()> {
        Ok(())
    }
}

impl Outcome for rusqlite::Result<()> {
    fn outcome(self) -> Self {
        self
    }
}

/// A file that was made for another deployment is refused: it may be a copy.
fn check_deployment(connection: &Connection, settings: &Settings) -> Result<(), Failure> {
    let path = &settings.path;
    let sql = "SELECT value FROM settings WHERE name = 'deployment'";
    let recorded = connection.query_row(sql, (), |row| row.get::<_, String>(0)).optional();
    let recorded = recorded.map_err(|error| damage(path, &error))?;
    if recorded == settings.deployment {
        return Ok(());
    }
    let name = |deployment: &Option<String>| match deployment {
        Some(name) => format!("the deployment {name:?}"),
        None => "no deployment".to_owned(),
    };
    Err(Failure::Invalid(format!(
        "{} was made for {}, and this process is set up for {}; if it is a copy, remove it",
        path.display(),
        name(&recorded),
        name(&settings.deployment)
    )))
}

fn names(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    connection.prepare("SELECT name FROM sqlite_schema")?.query_map((), |row| row.get(0))?.collect()
}

/// A value of an unexpected type is damage too.
fn damage(path: &Path, error: &rusqlite::Error) -> Failure {
    match error {
        rusqlite::Error::SqliteFailure(..) => Failure::at_start(path, error),
        error => Failure::damaged(path, error),
    }
}

/// Renames a damaged file and its `-wal` and `-shm`.
fn set_aside(path: &Path, why: &str, _: &DirectoryLock) -> Result<(), Failure> {
    let stamp = Connection::open_in_memory()
        .and_then(|clock| {
            clock.query_row("SELECT strftime('%Y%m%dT%H%M%SZ', 'now')", (), |row| row.get::<_, String>(0))
        })
        .unwrap_or_default();
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let free = |n: &u32| !with(&format!(".damaged-{stamp}-{n}")).exists();
    let aside = format!(".damaged-{stamp}-{}", (1..).find(free).unwrap_or_default());
    for of_it in ["", "-wal", "-shm"] {
        let from = with(of_it);
        match fs::rename(&from, with(&format!("{aside}{of_it}"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Failure::io(&from, &error)),
            _ => {}
        }
    }
    tracing::error!(
        name: "session-registry-set-aside",
        path = %path.display(),
        aside = %with(&aside).display(),
        why,
        "the session registry was damaged: it was renamed and a new one created; its pending ends will not be \
         delivered",
    );
    Ok(())
}
