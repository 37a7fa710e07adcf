//! One holder: its connection, its lease, its row.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use rusqlite::{Connection, ErrorCode, Result, Transaction, TransactionBehavior};

use super::{
    changes::Changes,
    codec::to_ms,
    error::Failure,
    lease::{DirectoryLock, Lease, Leases},
    open::{OPEN_TIMEOUT, Settings, open},
};
use crate::registry::{Applied, Change};

pub(super) struct Holder {
    settings: Settings,
    pub(super) conn: Connection,
    pub(super) leases: Leases,
    /// The number of the row in `holders`.
    pub(super) me: i64,
    /// The identity of the open file. Another file may replace it under the same name.
    file: Option<FileId>,
    /// The last field, so that the lease is released after everything else was dropped.
    lease: Lease,
}

impl Holder {
    pub(super) fn open(settings: Settings) -> Result<Self, Failure> {
        let path = &settings.path;
        let leases = Leases::for_database(path);
        let no_leases = |error| Failure::io(leases.dir(), &error);
        let lock = leases.lock_directory(OPEN_TIMEOUT).map_err(no_leases)?;
        let conn = open(&settings, &leases, &lock)?;
        let file = file_id(path);
        let lease = leases.create(&lock).map_err(no_leases)?;
        let me = enter(&conn, &lease).map_err(|error| Failure::at_start(path, &error))?;
        let known = known(&conn).map_err(|error| Failure::at_start(path, &error))?;
        leases.sweep(&lock, |name| known.iter().any(|known| known == name)).map_err(no_leases)?;
        drop(lock);
        // From here on `retry_while_busy` waits.
        conn.busy_timeout(Duration::ZERO).map_err(|error| Failure::at_start(path, &error))?;
        Ok(Self { settings, conn, leases, me, file, lease })
    }

    /// Applies the changes of several calls in one transaction.
    pub(super) fn apply(&mut self, group: &[Vec<Change>]) -> Result<Vec<Vec<Applied>>, Failure> {
        let me = self.me;
        self.in_transaction(|tx| {
            let changes = Changes { tx, me };
            group.iter().map(|call| call.iter().map(|change| changes.apply(change)).collect()).collect()
        })
    }

    /// The lease needs no renewal, but its file or row may have been removed by hand.
    pub(super) fn heartbeat(&mut self) -> Result<(), Failure> {
        if self.file.is_some() && file_id(&self.settings.path) != self.file {
            self.reopen()?;
            return Err(Failure::DataLost);
        }
        if self.lease.exists() {
            return self.with(|holder| holder.is_known()).and_then(|known| self.or_fenced(known));
        }
        let lock = self.lock_directory()?;
        let lease = self.leases.create(&lock).map_err(|error| Failure::io(self.leases.dir(), &error))?;
        let sql = "UPDATE holders SET lease = ?2 WHERE number = ?1";
        let known = self.with(|holder| holder.conn.execute(sql, (holder.me, lease.name())))? > 0;
        drop(lock);
        self.lease = lease;
        self.or_fenced(known)
    }

    /// Other holders can claim the remaining sessions and ends at once.
    pub(super) fn release_lease(self) -> Result<(), Failure> {
        let sql = "DELETE FROM holders WHERE number = ?1
             AND NOT EXISTS (SELECT 1 FROM ends WHERE holder = ?1)
             AND NOT EXISTS (SELECT 1 FROM holds WHERE holder = ?1)";
        let result = self.with(|holder| holder.conn.execute(sql, [holder.me]).map(drop));
        // Without the directory lock the file stays; a later start removes it.
        if let Ok(lock) = self.lock_directory() {
            self.lease.remove(&lock);
        }
        result
    }

    /// Runs a query, or a change in one statement.
    pub(super) fn with<T>(&self, f: impl Fn(&Self) -> Result<T>) -> Result<T, Failure> {
        self.retry_while_busy(|| f(self)).map_err(|error| Failure::in_use(&self.settings.path, &error))
    }

    pub(super) fn lock_directory(&self) -> Result<DirectoryLock, Failure> {
        self.leases.lock_directory(self.settings.busy_timeout).map_err(|error| Failure::io(self.leases.dir(), &error))
    }

    /// Runs a transaction, or returns [`Failure::Fenced`] if another holder has recovered this one.
    pub(super) fn in_transaction<T>(&mut self, f: impl Fn(&Transaction<'_>) -> Result<T>) -> Result<T, Failure> {
        let transaction = || {
            let tx = Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate)?;
            if !is_known(&tx, self.me)? {
                return Ok(None);
            }
            let answer = f(&tx)?;
            tx.commit()?;
            Ok(Some(answer))
        };
        match self.retry_while_busy(transaction) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => self.fenced(),
            Err(error) => Err(Failure::in_use(&self.settings.path, &error)),
        }
    }

    /// Retries while another process writes, up to the busy timeout. SQLite's own busy handler backs off, and starves
    /// when several processes write all the time.
    fn retry_while_busy<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        loop {
            match attempt() {
                Err(error) if is_busy(&error) && started.elapsed() < self.settings.busy_timeout => {
                    thread::sleep(Duration::from_millis(1));
                }
                result => return result,
            }
        }
    }

    fn is_known(&self) -> Result<bool> {
        is_known(&self.conn, self.me)
    }

    fn or_fenced(&mut self, known: bool) -> Result<(), Failure> {
        if known { Ok(()) } else { self.fenced() }
    }

    /// Another holder has recovered this one; its claims are gone too.
    fn fenced<T>(&mut self) -> Result<T, Failure> {
        self.reopen()?;
        Err(Failure::Fenced)
    }

    /// Replaces this holder with a new one.
    fn reopen(&mut self) -> Result<(), Failure> {
        *self = Self::open(self.settings.clone())?;
        Ok(())
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

fn enter(conn: &Connection, lease: &Lease) -> Result<i64> {
    let sql = "INSERT INTO holders (lease, process, since) VALUES (?1, ?2, ?3)";
    conn.execute(sql, (lease.name(), process_label(), to_ms(SystemTime::now())))?;
    Ok(conn.last_insert_rowid())
}

/// The leases of all rows.
fn known(conn: &Connection) -> Result<Vec<String>> {
    conn.prepare("SELECT lease FROM holders")?.query_map((), |row| row.get(0))?.collect()
}

fn is_known(conn: &Connection, me: i64) -> Result<bool> {
    conn.prepare_cached("SELECT 1 FROM holders WHERE number = ?1")?.exists([me])
}

/// The name of this process in the operator views.
fn process_label() -> String {
    let program = std::env::current_exe().ok().and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.or_else(|| std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).ok());
    let on = host.map(|host| format!(" on {}", host.trim())).unwrap_or_default();
    format!("{} (process {}{on})", program.unwrap_or_default(), std::process::id())
}

type FileId = (u64, u64);

#[cfg(unix)]
fn file_id(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;

    std::fs::metadata(path).ok().map(|there| (there.dev(), there.ino()))
}

/// Outside Unix an open file cannot be removed.
#[cfg(not(unix))]
fn file_id(_: &Path) -> Option<FileId> {
    None
}
