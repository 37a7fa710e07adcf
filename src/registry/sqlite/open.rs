//! Opens the file, and checks that it was written by this crate, is intact, and is writable.

use std::{
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::{
    error::Failure,
    lease::{DirectoryLock, Leases},
    schema,
};

/// The time limit of the check at the start. Only a part of a larger file is checked.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a start waits for other processes that start (and may check a large file) or write.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// SQLite checks the time limit after this number of virtual machine instructions.
const CHECK_STEPS: i32 = 1000;

/// The settings of the builder that a holder needs.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) path: PathBuf,
    pub(super) busy_timeout: Duration,
    pub(super) set_aside_damaged: bool,
}

/// Resolves the path, so that all processes find the leases in the same directory.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, Failure> {
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(Failure::Invalid(format!("{} is a directory", path.display()))),
        Ok(there) if !there.is_file() => Err(Failure::Invalid(format!("{} is not a regular file", path.display()))),
        Ok(_) => fs::canonicalize(path).map_err(|error| Failure::io(path, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if fs::symlink_metadata(path).is_ok() {
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

/// Opens the file, or creates it. The directory lock excludes other processes that do the same.
pub(super) fn open(settings: &Settings, leases: &Leases, lock: &DirectoryLock) -> Result<Connection, Failure> {
    match open_once(settings, leases) {
        Err(Failure::Damaged(why)) if settings.set_aside_damaged => {
            set_aside(&settings.path, &why, lock)?;
            open_once(settings, leases)
        }
        result => result,
    }
}

fn open_once(settings: &Settings, leases: &Leases) -> Result<Connection, Failure> {
    let path = &settings.path;
    // Marks a database that was created before: an empty file is then a damaged one.
    let begun = leases.dir().join("BEGUN");
    match fs::metadata(path) {
        Ok(there) if there.len() == 0 && begun.exists() => {
            return Err(Failure::damaged(path, "it is empty, but had content before"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let _ = fs::remove_file(&begun);
            create(path).map_err(|error| Failure::io(path, &error))?;
        }
        Err(error) => return Err(Failure::io(path, &error)),
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| Failure::at_start(path, &error))?;
    prepare(connection, settings).and_then(|connection| {
        OpenOptions::new().create(true).append(true).open(&begun).map_err(|error| Failure::io(&begun, &error))?;
        Ok(connection)
    })
}

/// Creates the file for its owner only, because session ids may be credentials.
fn create(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

/// Identifies the file before anything in it is changed, then sets it up or checks it.
fn prepare(mut connection: Connection, settings: &Settings) -> Result<Connection, Failure> {
    let path = &settings.path;
    let at_start = |error: rusqlite::Error| Failure::at_start(path, &error);
    connection.busy_timeout(OPEN_TIMEOUT).map_err(at_start)?;
    if connection.is_readonly("main").map_err(at_start)? {
        return Err(Failure::Unavailable(format!("{} is read-only", path.display())));
    }
    let is_new = identify(&connection, path)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", (), |row| row.get(0)).map_err(at_start)?;
    if mode != "wal" {
        let text = format!("{}: its file system does not support SQLite's log (WAL); use a local one", path.display());
        return Err(Failure::Invalid(text));
    }
    let settings = "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA journal_size_limit = 16777216;";
    connection.execute_batch(settings).map_err(at_start)?;
    connection.set_prepared_statement_cache_capacity(64);
    if is_new {
        begin(&mut connection).map_err(at_start)?;
    } else {
        check(&mut connection, path)?;
    }
    Ok(connection)
}

/// True if the database is empty. An error if it is not a database of this crate and version.
fn identify(connection: &Connection, path: &Path) -> Result<bool, Failure> {
    let number = |sql| connection.query_row(sql, (), |row| row.get(0)).map_err(|error| Failure::at_start(path, &error));
    let objects: i32 = number("SELECT count(*) FROM sqlite_schema")?;
    let application: i32 = number("PRAGMA application_id")?;
    let version: i32 = number("PRAGMA user_version")?;
    match (application, version) {
        (0, 0) if objects == 0 => Ok(true),
        (schema::APPLICATION_ID, schema::VERSION) => Ok(false),
        (schema::APPLICATION_ID, newer) if newer > schema::VERSION => Err(Failure::Invalid(format!(
            "{} was written by a newer version of this crate: it has schema {newer}, and this version knows up to {}",
            path.display(),
            schema::VERSION
        ))),
        (schema::APPLICATION_ID, older) if older > 0 => Err(Failure::Invalid(format!(
            "{} was written by an older version of this crate: it has schema {older}, and this version needs {}; \
             deliver its ends with that version, or move the file away",
            path.display(),
            schema::VERSION
        ))),
        (schema::APPLICATION_ID, other) => Err(Failure::damaged(path, format!("there is no schema {other}"))),
        _ => Err(Failure::Invalid(format!("{} is a database of another application", path.display()))),
    }
}

fn begin(connection: &mut Connection) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    tx.execute_batch(schema::CREATE)?;
    tx.pragma_update(None, "application_id", schema::APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", schema::VERSION)?;
    tx.commit()
}

/// Checks the file, for up to [`CHECK_TIMEOUT`].
fn check(connection: &mut Connection, path: &Path) -> Result<(), Failure> {
    let at_start = |error: rusqlite::Error| Failure::at_start(path, &error);
    let there = names(connection).map_err(|error| damage(path, &error))?;
    if let Some(missing) = schema::OBJECTS.iter().find(|object| !there.iter().any(|name| name == *object)) {
        return Err(Failure::damaged(path, format!("`{missing}` is missing")));
    }
    let started = Instant::now();
    connection.progress_handler(CHECK_STEPS, Some(move || started.elapsed() > CHECK_TIMEOUT)).map_err(at_start)?;
    let result = connection.query_row("PRAGMA quick_check(1)", (), |row| row.get::<_, String>(0));
    connection.progress_handler(0, None::<fn() -> bool>).map_err(at_start)?;
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
