//! [`SqliteTransactionHook`]: a hook that writes in the registry's own transactions.

use std::fmt;

use rusqlite::{Error, ErrorCode, Transaction, ffi};

use crate::{
    error::BoxError,
    observability::{HookMeter, Stopwatch, TransactionMeters, error_chain, escape_controls},
    panic::catch,
    registry::{EndRecord, Record},
    session::{SessionEnd, SessionStart},
};

/// A hook that writes in the transactions of a [`SqliteRegistry`](super::SqliteRegistry).
///
/// What it writes for a start is committed together with the record of the session, and what it writes for an end together
/// with the removal of that record. So its writes take effect **exactly once** for each recorded session: across SIGKILL, power
/// cuts, recovery by another process and repeated calls. Set it with
/// [`SqliteRegistryBuilder::transaction_hook`](super::SqliteRegistryBuilder::transaction_hook).
///
/// # The tables
///
/// The hook's tables are in the file of the registry. Create them over a connection of your own to
/// [`SqliteRegistry::path`](super::SqliteRegistry::path), after `open` and before the server accepts connections. Your
/// application reads and writes them over its own connections. The registry uses the pragmas `application_id` and `user_version`
/// of the file, and the tables `settings`, `holders`, `sessions`, `holds` and `notices`: leave these alone.
///
/// # Calls
///
/// * A call blocks the registry's thread, and starts and ends of other sessions wait for it. Keep it below a few milliseconds,
///   and write to this database only: what a call does elsewhere is done again if the transaction is rolled back.
/// * [`session_start`](Self::session_start) is called when a record is created. An error rolls back what this call has written,
///   and is logged (`session-hook-failed`). The session continues.
/// * [`session_end`](Self::session_end) gets up to 64 ends. If it returns an error or panics, what it has written is rolled
///   back, and it is called for each half, down to single ends. An end whose own call fails counts as failed, like that of any hook: it is in
///   the drain's report, is delivered again after 1, 2, 4 and 8 s, and then becomes a dead letter.
/// * Other hooks run before it. If one of them fails, the transaction is committed all the same, and only the others are called
///   again. If the process dies between them and the commit, they are called again, and this hook is called for the first time.
/// * A hook must not end the transaction (`COMMIT`, `ROLLBACK`). If it does, an error is logged
///   (`session-hook-closed-transaction`), and its ends count as failed. Nothing else is lost. What it has committed stays, so
///   it is no longer exactly once.
/// * With feature `metrics`, its calls are timed and counted, for the recorder that is installed when the hook is set.
///
/// While the registry is unavailable, sessions and their ends wait for it. A session that starts and ends in an outage is written
/// afterwards, with both calls. Only one that a shutdown ends in the outage has no record, and no call.
///
/// # Examples
///
/// ```
/// use tower_session_end::{
///     ActiveSessions, BoxError, SessionEnd, SessionStart,
///     registry::{SqliteRegistry, SqliteTransactionHook, rusqlite::{Connection, Transaction}},
/// };
///
/// struct Chats;
///
/// impl SqliteTransactionHook for Chats {
///     fn session_start(&self, transaction: &Transaction<'_>, start: &SessionStart) -> Result<(), BoxError> {
///         transaction.execute("INSERT INTO chats (id) VALUES (?1)", [start.session.id.as_str()])?;
///         Ok(())
///     }
///
///     fn session_end(&self, transaction: &Transaction<'_>, ends: &[SessionEnd]) -> Result<(), BoxError> {
///         let mut update = transaction.prepare_cached("UPDATE chats SET ends = ends + 1, reason = ?2 WHERE id = ?1")?;
///         for end in ends {
///             update.execute([end.session.id.as_str(), end.reason.as_str()])?;
///         }
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = std::env::temp_dir().join(format!("registry-hook-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let file = dir.join("chats.db");
/// let registry = SqliteRegistry::builder(&file).transaction_hook("chats", Chats).open()?;
/// let app = Connection::open(registry.path())?;
/// app.execute_batch("CREATE TABLE IF NOT EXISTS chats (id TEXT PRIMARY KEY, ends INTEGER NOT NULL DEFAULT 0, reason TEXT)")?;
///
/// let sessions = ActiveSessions::builder().registry(registry).build()?;
/// sessions.note("4711").recorded().await;
/// sessions.drain(tower_session_end::EndReason::Shutdown).await;
/// let row = app.query_row("SELECT ends, reason FROM chats WHERE id = '4711'", (), |row| {
///     Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
/// })?;
/// assert_eq!(row, (1, "shutdown".to_owned()));
/// # drop((sessions, app));
/// # std::fs::remove_dir_all(dir)?;
/// # Ok(())
/// # }
/// ```
pub trait SqliteTransactionHook: Send + Sync + 'static {
    /// A session is recorded. The default does nothing.
    ///
    /// [`resumed_from`](SessionStart::resumed_from) is `None`: the end of the compacted session names its successor.
    ///
    /// # Errors
    ///
    /// Any. What this call has written is rolled back, and the session continues.
    fn session_start(&self, transaction: &Transaction<'_>, start: &SessionStart) -> Result<(), BoxError> {
        let _ = (transaction, start);
        Ok(())
    }

    /// Sessions have ended, and their records are removed in this transaction.
    ///
    /// # Errors
    ///
    /// Any. What this call has written is rolled back. See [Calls](Self#calls).
    fn session_end(&self, transaction: &Transaction<'_>, ends: &[SessionEnd]) -> Result<(), BoxError>;
}

/// `source` is user code, and its chain may be endless.
const MAX_CHAIN: usize = 32;

/// A hook, its name and its metrics.
pub(super) struct TransactionHook {
    pub(super) name: String,
    hook: Box<dyn SqliteTransactionHook>,
    meters: TransactionMeters,
}

impl TransactionHook {
    pub(super) fn new(name: String, hook: impl SqliteTransactionHook) -> Self {
        let meters = TransactionMeters::new(&name);
        Self { name, hook: Box::new(hook), meters }
    }

    pub(super) fn session_start(&self, tx: &Transaction<'_>, record: &Record) -> rusqlite::Result<()> {
        let start = SessionStart::new(record.session.clone()).with_generation(record.generation);
        if let Some(error) = self.call(tx, &self.meters.start, |hook| hook.session_start(tx, &start))? {
            tracing::warn!(
                name: "session-hook-failed",
                session = %record.session.id.redacted(),
                generation = %record.generation,
                hook = self.name,
                error = %escape_controls(&error),
                "a session hook failed",
            );
        }
        Ok(())
    }

    /// Returns the error of each end.
    pub(super) fn session_end(
        &self,
        tx: &Transaction<'_>,
        ends: &[SessionEnd],
    ) -> rusqlite::Result<Vec<Option<String>>> {
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        match self.call(tx, &self.meters.end, |hook| hook.session_end(tx, ends))? {
            None => Ok(vec![None; ends.len()]),
            error if ends.len() == 1 => Ok(vec![error]),
            // One bad end holds up no other: it is found by halves.
            Some(_) => {
                let (first, second) = ends.split_at(ends.len() / 2);
                let mut errors = self.session_end(tx, first)?;
                errors.extend(self.session_end(tx, second)?);
                Ok(errors)
            }
        }
    }

    /// Calls the hook within a savepoint. Returns its error, after what it wrote was rolled back.
    fn call(
        &self,
        tx: &Transaction<'_>,
        meter: &HookMeter,
        call: impl FnOnce(&dyn SqliteTransactionHook) -> Result<(), BoxError>,
    ) -> rusqlite::Result<Option<String>> {
        tx.execute_batch("SAVEPOINT session_end_hook")?;
        let began = Stopwatch::start();
        let error = match catch(|| call(&*self.hook)) {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(panic) => Some(format!("panicked: {panic}").into()),
        };
        meter.over(began, error.is_some());
        let release = match &error {
            None => "RELEASE session_end_hook",
            Some(_) => "ROLLBACK TO session_end_hook; RELEASE session_end_hook",
        };
        // In a transaction that the hook has begun there is no such savepoint.
        if tx.is_autocommit() || tx.execute_batch(release).is_err() {
            return Err(match error.and_then(|error| rolled_back_by(&*error)) {
                Some(code) => Error::SqliteFailure(code, Some("in a transaction hook".to_owned())),
                None => ClosedTransaction::error(),
            });
        }
        Ok(error.map(|error| catch(|| error_chain(&*error).to_string()).unwrap_or_default()))
    }
}

impl fmt::Debug for TransactionHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TransactionHook").field(&self.name).finish()
    }
}

/// The error after which SQLite has rolled back the transaction itself, in this chain of errors.
fn rolled_back_by(error: &(dyn std::error::Error + 'static)) -> Option<ffi::Error> {
    use ErrorCode::{DiskFull, OperationInterrupted, OutOfMemory, SystemIoFailure};
    let chain = std::iter::successors(Some(error), |error| error.source()).take(MAX_CHAIN);
    chain
        .filter_map(|error| error.downcast_ref::<Error>()?.sqlite_error().copied())
        .find(|error| matches!(error.code, DiskFull | SystemIoFailure | OutOfMemory | OperationInterrupted))
}

/// The hook has ended the registry's transaction.
#[derive(Debug)]
pub(super) struct ClosedTransaction;

impl ClosedTransaction {
    /// The text for the ends of such a hook.
    pub(super) const TEXT: &str = "the hook has ended the transaction of the registry";

    fn error() -> Error {
        Error::ToSqlConversionFailure(Box::new(Self))
    }

    pub(super) fn is(error: &Error) -> bool {
        matches!(error, Error::ToSqlConversionFailure(error) if error.is::<Self>())
    }
}

impl fmt::Display for ClosedTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::TEXT)
    }
}

impl std::error::Error for ClosedTransaction {}

/// The event of an end on record.
pub(super) fn end_event(record: Record, end: EndRecord) -> SessionEnd {
    let EndRecord { reason, next, ended_at, requests } = end;
    let event = SessionEnd::new(record.session, reason)
        .with_generation(record.generation)
        .with_started_at(record.started_at)
        .with_duration(ended_at.duration_since(record.started_at).unwrap_or_default())
        .with_requests(requests);
    match next {
        Some(next) => event.with_next(next),
        None => event,
    }
}
