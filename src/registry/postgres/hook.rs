//! [`PostgresTransactionHook`]: a hook whose writes are committed together with the record.

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

use sqlx::{Executor, PgConnection};

use super::{error::Failure, holder::Tx};
use crate::{
    error::BoxError,
    observability::{Stopwatch, TransactionMeters, error_chain, escape_controls},
    panic::{CatchPanic, catch},
    session::{SessionEnd, SessionStart},
};

/// A hook that writes to the database of the registry, in the transaction of the registry (feature `postgres`).
///
/// What it writes and the record are committed together: the start with the creation of the record, the end with its removal.
/// So the writes take effect exactly once, also across SIGKILL, a recovery, a lost lease and a restart of the server. A process
/// that has lost its lease commits nothing.
///
/// The calls for an end run after all other hooks of it. They are part of one call of the registry, which has one second at most.
/// So a hook only writes rows. It makes no requests to other services, because their effect cannot be rolled back.
///
/// * A group has 64 events at most. Its calls have 500 ms together, and less in the last seconds of a drain. After an error each
///   half is tried, down to single events; after a slow call each event alone. A part has 100 ms. A statement has four fifths of the
///   time of its call. An event for which no time is left has failed with its group. If no call is made for the group, or there is a
///   start without time, nothing is committed, and the registry counts as unavailable.
/// * A call that errs, panics, or takes longer writes nothing: it runs in a savepoint, which is rolled back.
/// * Deferred constraints are checked when the calls for the group are over.
/// * A hook may begin nested transactions. It must not commit or roll back the transaction itself: the registry detects that,
///   logs the error `session-hook-closed-transaction`, and repeats its changes without the hook. An end keeps its record then.
/// * With feature `metrics`, its calls are timed and counted, for the recorder that is installed when the hook is set.
///
/// # Examples
///
/// ```
/// use sqlx::{PgConnection, postgres::PgPoolOptions};
/// use tower_session_end::{
///     BoxError, SessionEnd, SessionStart,
///     registry::{PostgresRegistry, PostgresTransactionHook, Registry},
/// };
///
/// struct Chats;
///
/// impl PostgresTransactionHook for Chats {
///     async fn session_start(&self, transaction: &mut PgConnection, start: &SessionStart) -> Result<(), BoxError> {
///         let insert = "INSERT INTO chats (session, active) VALUES ($1, true)";
///         sqlx::query(insert).bind(start.session.id.as_str()).execute(transaction).await?;
///         Ok(())
///     }
///
///     async fn session_end(&self, transaction: &mut PgConnection, ends: &[SessionEnd]) -> Result<(), BoxError> {
///         let ids: Vec<_> = ends.iter().map(|end| end.session.id.to_string()).collect();
///         let update = "UPDATE chats SET active = false WHERE session = ANY($1)";
///         sqlx::query(update).bind(ids).execute(transaction).await?;
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = PgPoolOptions::new().connect_lazy("postgres://app@127.0.0.1/app")?;
/// let registry = PostgresRegistry::builder(pool).transaction_hook("chats", Chats).lazy();
/// assert_eq!(registry.transaction_hook(), Some("chats"));
/// # Ok(())
/// # }
/// ```
pub trait PostgresTransactionHook: Send + Sync + 'static {
    /// Called in the transaction that records the start of a session. The default does nothing.
    ///
    /// It is called for a record that is created: not for a session that continues on this replica, and not for a repeated
    /// record. [`resumed_from`](SessionStart::resumed_from) is not recorded, and is `None`.
    ///
    /// # Errors
    ///
    /// What the hook has written is rolled back, and the error is logged (`session-hook-failed`). The session stays active.
    fn session_start(
        &self,
        transaction: &mut PgConnection,
        start: &SessionStart,
    ) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = (transaction, start);
        async { Ok(()) }
    }

    /// Called in the transaction that removes the records of these ends, or that marks them if other hooks have failed.
    ///
    /// There is one end at least, and 64 at most.
    ///
    /// # Errors
    ///
    /// What the hook has written is rolled back. If there are several ends, it is called again for each half, down to single
    /// ends. An end whose own call errs keeps its record.
    fn session_end(
        &self,
        transaction: &mut PgConnection,
        ends: &[SessionEnd],
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
}

type HookFuture<'a> = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send + 'a>>;

/// As [`PostgresTransactionHook`], dyn-compatible.
trait DynHook: Send + Sync {
    fn session_start<'a>(&'a self, transaction: &'a mut PgConnection, start: &'a SessionStart) -> HookFuture<'a>;
    fn session_end<'a>(&'a self, transaction: &'a mut PgConnection, ends: &'a [SessionEnd]) -> HookFuture<'a>;
}

impl<H: PostgresTransactionHook> DynHook for H {
    fn session_start<'a>(&'a self, transaction: &'a mut PgConnection, start: &'a SessionStart) -> HookFuture<'a> {
        Box::pin(PostgresTransactionHook::session_start(self, transaction, start))
    }

    fn session_end<'a>(&'a self, transaction: &'a mut PgConnection, ends: &'a [SessionEnd]) -> HookFuture<'a> {
        Box::pin(PostgresTransactionHook::session_end(self, transaction, ends))
    }
}

/// How long the calls of one slice may take. The caller drops the whole transaction after a second. In a drain it does so earlier,
/// and this time is shorter.
const SLICE_LIMIT: Duration = Duration::from_millis(500);

/// How long a call for a part of a slice may take, after the slice has failed. With less time left, no call is made.
const SHORT_LIMIT: Duration = Duration::from_millis(100);

/// After so long no further call is made in a transaction.
const LIMIT: Duration = Duration::from_millis(800);

/// Keeps what the hook has written. Deferred constraints are checked here, where their failure concerns this hook alone.
/// The next call may write in any order again.
pub(super) const KEEP: &str =
    "SET CONSTRAINTS ALL IMMEDIATE; RELEASE SAVEPOINT tower_session_end_hook; SET CONSTRAINTS ALL DEFERRED";
const UNDO: &str = "ROLLBACK TO SAVEPOINT tower_session_end_hook; RELEASE SAVEPOINT tower_session_end_hook";

/// The result of a hook for each event; the error as text.
pub(super) type HookResults = Vec<Result<(), String>>;

pub(super) struct NamedHook {
    name: String,
    hook: Box<dyn DynHook>,
    meters: TransactionMeters,
}

/// The hook, for the calls of one transaction.
#[derive(Clone, Copy)]
pub(super) struct HookCalls<'a> {
    hook: &'a NamedHook,
    started: Instant,
    /// No further call is made after this time.
    limit: Duration,
    /// It has ended the transaction of an earlier attempt, and is not called again.
    is_banned: bool,
}

#[derive(Clone, Copy)]
enum Slice<'a> {
    Starts(&'a [SessionStart]),
    Ends(&'a [SessionEnd]),
}

impl<'a> Slice<'a> {
    const fn len(self) -> usize {
        match self {
            Self::Starts(starts) => starts.len(),
            Self::Ends(ends) => ends.len(),
        }
    }

    /// Its parts of this length.
    fn parts(self, len: usize) -> Vec<Self> {
        match self {
            Self::Starts(starts) => starts.chunks(len).map(Self::Starts).collect(),
            Self::Ends(ends) => ends.chunks(len).map(Self::Ends).collect(),
        }
    }
}

impl NamedHook {
    pub(super) fn new(name: String, hook: impl PostgresTransactionHook) -> Self {
        let meters = TransactionMeters::new(&name);
        Self { name, hook: Box::new(hook), meters }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The calls of one transaction, which begins now and has so long.
    pub(super) fn calls(&self, is_banned: bool, left: Duration) -> HookCalls<'_> {
        HookCalls { hook: self, started: Instant::now(), limit: LIMIT.min(left * 4 / 5), is_banned }
    }

    pub(super) fn log_closed_transaction(&self) {
        tracing::error!(
            name: "session-hook-closed-transaction",
            hook = self.name,
            "a transaction hook has committed or rolled back the transaction of the session registry; it must not do that",
        );
    }

    async fn call(&self, transaction: &mut PgConnection, slice: Slice<'_>, limit: Duration) -> Result<(), String> {
        let panicked = |panic| Err(format!("panicked: {panic}"));
        let future: HookFuture<'_> = match slice {
            Slice::Starts(starts) => Box::pin(async move {
                for start in starts {
                    self.hook.session_start(transaction, start).await?;
                }
                Ok(())
            }),
            Slice::Ends(ends) => match catch(|| self.hook.session_end(transaction, ends)) {
                Ok(future) => future,
                Err(panic) => return panicked(panic),
            },
        };
        match tokio::time::timeout(limit, CatchPanic::new(future)).await {
            // Showing an error runs user code too.
            Ok(Ok(Err(error))) => {
                Err(catch(|| error_chain(&*error).to_string())
                    .unwrap_or_else(|_| "showing the error panicked".to_owned()))
            }
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Err(panic)) => panicked(panic),
            Err(_) => Err(format!("took longer than {limit:?}")),
        }
    }
}

impl HookCalls<'_> {
    /// Calls the hook for sessions whose records were just created. An error is logged.
    pub(super) async fn starts(self, tx: &mut Tx, starts: &[SessionStart]) -> Result<(), Failure> {
        let results = self.run(tx, Slice::Starts(starts)).await?;
        for (start, result) in starts.iter().zip(results) {
            let Err(error) = result else { continue };
            tracing::warn!(
                name: "session-hook-failed",
                session = %start.session.id.redacted(),
                generation = %start.generation,
                hook = self.hook.name,
                error = %escape_controls(error),
                "a transaction hook failed for the start of a session, which stays active",
            );
        }
        Ok(())
    }

    /// Calls the hook for ends. The answers are in the same order.
    pub(super) async fn ends(self, tx: &mut Tx, ends: &mut [SessionEnd]) -> Result<HookResults, Failure> {
        let deadline = Instant::now() + SLICE_LIMIT.min(self.left());
        for end in &mut *ends {
            end.deadline = Some(deadline);
        }
        self.run(tx, Slice::Ends(ends)).await
    }

    /// The time until which calls are made.
    fn left(self) -> Duration {
        self.limit.saturating_sub(self.started.elapsed())
    }

    async fn run(self, tx: &mut Tx, slice: Slice<'_>) -> Result<HookResults, Failure> {
        if slice.len() == 0 {
            return Ok(Vec::new());
        }
        if self.is_banned {
            let error = "the hook has committed or rolled back the transaction of the registry";
            return Ok(vec![Err(error.to_owned()); slice.len()]);
        }
        // One bad event holds up no other: it is found by halves.
        let (mut results, mut parts) = (Vec::with_capacity(slice.len()), vec![slice]);
        let mut limit = SLICE_LIMIT;
        let short = SHORT_LIMIT.min(self.limit / 4);
        while let Some(part) = parts.pop() {
            let limit_now = limit.min(self.left());
            if limit_now < short {
                const NO_TIME: &str = "no time was left for it in the transaction";
                // Without a call there is no failure that could be counted.
                if part.len() == slice.len() || matches!(part, Slice::Starts(_)) {
                    return Err(Failure::Unavailable(format!("the transaction hook {:?}: {NO_TIME}", self.hook.name)));
                }
                results.extend(vec![Err(NO_TIME.to_owned()); part.len()]);
                continue;
            }
            let began = Instant::now();
            let result = self.in_savepoint(tx, part, limit_now).await?;
            if part.len() == 1 || result.is_ok() {
                results.extend(vec![result; part.len()]);
            } else {
                // There is no time for several slow calls.
                let is_slow = began.elapsed() > limit_now / 2;
                let len = if is_slow { 1 } else { part.len().div_ceil(2) };
                parts.extend(part.parts(len).into_iter().rev());
            }
            limit = short;
        }
        Ok(results)
    }

    /// One call of the hook. What it has written is kept if it succeeds, and undone otherwise.
    async fn in_savepoint(self, tx: &mut Tx, slice: Slice<'_>, limit: Duration) -> Result<Result<(), String>, Failure> {
        let savepoint = tx.sql.made(savepoint(limit));
        tx.conn().execute(savepoint).await?;
        let began = Stopwatch::start();
        let mut result = self.hook.call(tx.conn(), slice, limit).await;
        let meters = &self.hook.meters;
        let meter = if matches!(slice, Slice::Starts(_)) { &meters.start } else { &meters.end };
        meter.over(began, result.is_err());
        if result.is_ok() {
            let keep = tx.keep_savepoint;
            if let Err(error) = tx.conn().execute(keep).await {
                result = Err(failure_of_hook(error)?);
            }
        }
        if result.is_err() {
            // A statement of a call that was dropped may still run. Its error is the answer to the next one.
            if let Err(error) = tx.conn().execute("SELECT").await {
                failure_of_hook(error)?;
            }
            if let Err(error) = tx.conn().execute(UNDO).await {
                let text = failure_of_hook(error)?;
                return Err(Failure::Unavailable(text));
            }
        }
        Ok(result)
    }
}

/// Begins a savepoint. A statement of the hook ends before its call has to, so that the savepoint can be rolled back in time.
fn savepoint(limit: Duration) -> String {
    // Few texts, because each lives as long as the process.
    let ms = (limit.as_millis() / 5).max(1);
    let ms = if ms > 10 { ms / 5 * 5 } else { ms };
    format!(
        "SAVEPOINT tower_session_end_hook; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}",
        ms * 4,
        ms * 3
    )
}

/// The text of an error, or the failure of the whole transaction if the savepoint is gone.
fn failure_of_hook(error: sqlx::Error) -> Result<String, Failure> {
    match &error {
        sqlx::Error::Database(database) => match database.code().as_deref() {
            // There is no such savepoint, or no transaction.
            Some("3B001" | "25P01") => Err(Failure::HookClosedTransaction),
            _ => Ok(error.to_string()),
        },
        _ => Err(error.into()),
    }
}
