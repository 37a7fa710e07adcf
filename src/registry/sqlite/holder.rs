//! One holder: its connection, its lease, its row.

use std::{
    cell::{Cell, RefCell},
    mem, thread,
    time::{Duration, Instant, SystemTime},
};

use rusqlite::{Connection, ErrorCode, Result, Row, Transaction, TransactionBehavior};

use super::{
    changes::Changes,
    codec::{from_ms, now, to_ms},
    error::Failure,
    lease::{Lease, Leases},
    open::{FileId, Settings, file_id, open},
    recovery::{delete_notices, remove_holder},
    transaction::ClosedTransaction,
};
use crate::{
    registry::{Applied, Change, Heartbeat, Notice, process::process_label},
    session::SessionId,
};

/// The most notices of one heartbeat.
const NOTICES: usize = 1000;

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
    /// Enters the database, and waits so long for others that write or create it.
    pub(super) fn open(settings: Settings, timeout: Duration) -> Result<Self, Failure> {
        let path = &settings.path;
        let leases = Leases::for_database(path);
        let no_leases = |error| Failure::io(leases.dir(), &error);
        let (conn, file) = open(&settings, &leases, timeout)?;
        let lease = leases.create().map_err(no_leases)?;
        let me = enter(&conn, &lease).map_err(|error| Failure::at_start(path, &error))?;
        let known = known(&conn).map_err(|error| Failure::at_start(path, &error))?;
        leases.sweep(|name| known.iter().any(|known| known == name)).map_err(no_leases)?;
        // From here on `retry_while_busy` waits.
        conn.busy_timeout(Duration::ZERO).map_err(|error| Failure::at_start(path, &error))?;
        Ok(Self { settings, conn, leases, me, file, lease })
    }

    /// Applies the changes of several calls in one transaction. A call that was given up while it waited for the lock is left
    /// out: its caller may go on as if nothing was changed.
    pub(super) fn apply(
        &mut self,
        group: &[Vec<Change>],
        is_wanted: impl Fn(usize) -> bool,
    ) -> Result<Vec<Vec<Applied>>, Failure> {
        let (me, hook) = (self.me, self.settings.hook.clone());
        let mut is_closed = false;
        loop {
            let closed = Cell::new(false);
            let applied = self.in_transaction(|tx| {
                let calls = group.iter().enumerate();
                let calls: Vec<_> = calls.map(|(n, call)| if is_wanted(n) { &call[..] } else { &[] }).collect();
                let (hook, calls_hook) = (hook.as_deref(), !is_closed);
                let changes = Changes { tx, me, hook, calls_hook, commits: RefCell::default() };
                changes.apply_all(&calls).inspect_err(|error| closed.set(ClosedTransaction::is(error)))
            });
            if is_closed || !closed.get() {
                return applied;
            }
            // What it has left of this transaction is applied again, without the hook.
            is_closed = true;
            tracing::error!(
                name: "session-hook-closed-transaction",
                hook = hook.as_ref().map(|hook| hook.name.as_str()),
                "a transaction hook has ended the transaction of the session registry; its ends count as failed",
            );
        }
    }

    /// The lease needs no renewal, but its file or row may have been removed by hand.
    pub(super) fn heartbeat(&mut self) -> Result<Heartbeat, Failure> {
        if self.file.is_some() && file_id(&self.settings.path) != self.file {
            self.reopen()?;
            return Err(Failure::DataLost);
        }
        if !self.lease.exists() {
            self.replace_lease()?;
        }
        let me = self.me;
        self.in_read_transaction(|tx| read_heartbeat(tx, me))
    }

    /// Another process may have found the lease missing; then it has adopted this holder.
    fn replace_lease(&mut self) -> Result<(), Failure> {
        let lease = self.leases.create().map_err(|error| Failure::io(self.leases.dir(), &error))?;
        let sql = "UPDATE holders SET lease = ?2 WHERE number = ?1 AND adopted_by IS NULL";
        let is_known = self.with(|holder| holder.conn.execute(sql, (holder.me, lease.name())))? > 0;
        self.lease = lease;
        if is_known { Ok(()) } else { self.fenced() }
    }

    /// Other holders can claim the remaining sessions and ends at once.
    pub(super) fn release_lease(self) -> Result<(), Failure> {
        let me = self.me;
        let patience = self.settings.busy_timeout;
        let release = |tx: &Transaction<'_>| {
            // Those that it has adopted, and to which nothing refers any more.
            let mut query = tx.prepare_cached("SELECT number FROM holders WHERE adopted_by = ?1")?;
            let adopted: Vec<i64> = query.query_map([me], |row| row.get(0))?.collect::<Result<_>>()?;
            for n in adopted.into_iter().chain([me]) {
                delete_notices(tx, n)?;
                remove_holder(tx, n)?;
            }
            Ok(())
        };
        let result = match self.transaction(TransactionBehavior::Immediate, patience, release) {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::in_use(&self.settings.path, &error)),
        };
        self.lease.remove();
        result
    }

    /// Runs a query, or a change in one statement.
    pub(super) fn with<T>(&self, f: impl Fn(&Self) -> Result<T>) -> Result<T, Failure> {
        self.retry_while_busy(self.settings.busy_timeout, || f(self))
            .map_err(|error| Failure::in_use(&self.settings.path, &error))
    }

    /// Runs a transaction that writes, or returns [`Failure::Fenced`] if another holder has adopted this one.
    pub(super) fn in_transaction<T>(&mut self, f: impl Fn(&Transaction<'_>) -> Result<T>) -> Result<T, Failure> {
        self.in_transaction_of(TransactionBehavior::Immediate, self.settings.busy_timeout, f)
    }

    /// As [`in_transaction`](Self::in_transaction), for a transaction that only reads.
    pub(super) fn in_read_transaction<T>(&mut self, f: impl Fn(&Transaction<'_>) -> Result<T>) -> Result<T, Failure> {
        self.in_transaction_of(TransactionBehavior::Deferred, self.settings.busy_timeout, f)
    }

    /// As [`in_transaction`](Self::in_transaction). Does not wait while another process writes.
    pub(super) fn in_transaction_now<T>(&mut self, f: impl Fn(&Transaction<'_>) -> Result<T>) -> Result<T, Failure> {
        self.in_transaction_of(TransactionBehavior::Immediate, Duration::ZERO, f)
    }

    fn in_transaction_of<T>(
        &mut self,
        behavior: TransactionBehavior,
        patience: Duration,
        f: impl Fn(&Transaction<'_>) -> Result<T>,
    ) -> Result<T, Failure> {
        let me = self.me;
        let checked = |tx: &Transaction<'_>| if is_known(tx, me)? { f(tx).map(Some) } else { Ok(None) };
        match self.transaction(behavior, patience, checked) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => self.fenced(),
            Err(error) => Err(Failure::in_use(&self.settings.path, &error)),
        }
    }

    /// Runs a transaction on behalf of an operator: whether this holder is adopted does not matter.
    pub(super) fn as_operator<T>(
        &self,
        behavior: TransactionBehavior,
        f: impl Fn(&Transaction<'_>) -> Result<T>,
    ) -> Result<T, Failure> {
        self.transaction(behavior, self.settings.busy_timeout, f)
            .map_err(|error| Failure::in_use(&self.settings.path, &error))
    }

    fn transaction<T>(
        &self,
        behavior: TransactionBehavior,
        patience: Duration,
        f: impl Fn(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        self.retry_while_busy(patience, || {
            let tx = Transaction::new_unchecked(&self.conn, behavior)?;
            let answer = f(&tx)?;
            tx.commit()?;
            Ok(answer)
        })
    }

    /// Retries while another process writes. SQLite's own busy handler backs off, and starves when several processes write all
    /// the time.
    fn retry_while_busy<T>(&self, patience: Duration, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        loop {
            match attempt() {
                Err(error) if is_busy(&error) && started.elapsed() < patience => {
                    thread::sleep(Duration::from_millis(1));
                }
                result => return result,
            }
        }
    }

    /// Another holder has adopted this one, with all that it held and had claimed: it becomes a new holder.
    fn fenced<T>(&mut self) -> Result<T, Failure> {
        let lease = self.leases.create().map_err(|error| Failure::io(self.leases.dir(), &error))?;
        self.me = self.with(|holder| enter(&holder.conn, &lease))?;
        mem::replace(&mut self.lease, lease).remove();
        Err(Failure::Fenced)
    }

    /// Replaces this holder with a new one, in the file that is there now.
    fn reopen(&mut self) -> Result<(), Failure> {
        let new = Self::open(self.settings.clone(), self.settings.busy_timeout)?;
        mem::replace(self, new).lease.remove();
        Ok(())
    }
}

fn read_heartbeat(tx: &Transaction<'_>, me: i64) -> Result<Heartbeat> {
    let sql = "SELECT generation, id, ended_at FROM notices WHERE holder = ?1 ORDER BY ended_at LIMIT ?2";
    let limit = i64::try_from(NOTICES + 1).unwrap_or(i64::MAX);
    let mut notices = Vec::new();
    let mut query = tx.prepare_cached(sql)?;
    let mut rows = query.query((me, limit))?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        count += 1;
        if count <= NOTICES {
            notices.extend(notice(row));
        }
    }
    let dead = "SELECT count(*) FROM sessions WHERE reason IS NOT NULL AND claimer IS NULL AND dead = 1";
    let dead_letters: i64 = tx.prepare_cached(dead)?.query_row((), |row| row.get(0))?;
    Ok(Heartbeat::new(notices, count > NOTICES, dead_letters.try_into().unwrap_or(0)))
}

/// A notice that cannot be read is left out.
fn notice(row: &Row<'_>) -> Option<Notice> {
    let generation = row.get_ref(0).ok()?.as_str().ok()?.parse().ok()?;
    let id = SessionId::with_max_len(row.get::<_, String>(1).ok()?, usize::MAX).ok()?;
    let age = now().duration_since(from_ms(row.get(2).ok()?)).unwrap_or_default();
    Some(Notice::new(id, generation, age))
}

fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

fn enter(conn: &Connection, lease: &Lease) -> Result<i64> {
    let sql = "INSERT INTO holders (lease, process, since) VALUES (?1, ?2, ?3)";
    conn.execute(sql, (lease.name(), process_label(), to_ms(SystemTime::now())))?;
    Ok(conn.last_insert_rowid())
}

/// The leases of all holders that are not adopted.
fn known(conn: &Connection) -> Result<Vec<String>> {
    conn.prepare("SELECT lease FROM holders WHERE adopted_by IS NULL")?.query_map((), |row| row.get(0))?.collect()
}

fn is_known(conn: &Connection, me: i64) -> Result<bool> {
    conn.prepare_cached("SELECT 1 FROM holders WHERE number = ?1 AND adopted_by IS NULL")?.exists([me])
}
