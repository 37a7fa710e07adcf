//! A `COMMIT` that is under way when its call is given up. The process does not know whether it will succeed, until a later call is
//! answered.

use std::{
    future::pending,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tower_session_end::{
    ActiveSessions, BoxError, EndReason, SessionEnd, SessionStart,
    registry::{SqliteRegistry, SqliteTransactionHook, rusqlite::Transaction},
};

use super::support::{Dir, PATIENCE, count, take_over_all};

/// Whether a `COMMIT` waits, and whether it shall fail when it goes on.
#[derive(Default)]
struct State {
    is_closed: bool,
    waits: bool,
    fails: bool,
}

/// While it is closed, each `COMMIT` after a call for an end lasts.
#[derive(Clone, Default)]
struct Gate {
    state: Arc<(Mutex<State>, Condvar)>,
    calls: Arc<AtomicU64>,
}

impl Gate {
    /// Called by SQLite within `COMMIT`. True rolls back.
    fn pass(&self) -> bool {
        let (state, changed) = &*self.state;
        let mut state = state.lock().unwrap();
        while state.is_closed {
            state.waits = true;
            state = changed.wait(state).unwrap();
        }
        std::mem::take(&mut state.fails)
    }

    fn close(&self) {
        self.state.0.lock().unwrap().is_closed = true;
    }

    fn waits(&self) -> bool {
        self.state.0.lock().unwrap().waits
    }

    fn open(&self, fails: bool) {
        let mut state = self.state.0.lock().unwrap();
        (state.is_closed, state.fails) = (false, fails);
        self.state.1.notify_all();
    }
}

impl SqliteTransactionHook for Gate {
    fn session_start(&self, tx: &Transaction<'_>, start: &SessionStart) -> Result<(), BoxError> {
        tx.execute("INSERT INTO chats (id, ends) VALUES (?1, 0)", [start.session.id.as_str()])?;
        Ok(())
    }

    fn session_end(&self, tx: &Transaction<'_>, ends: &[SessionEnd]) -> Result<(), BoxError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        for end in ends {
            tx.execute("UPDATE chats SET ends = ends + 1 WHERE id = ?1", [end.session.id.as_str()])?;
        }
        let gate = self.clone();
        tx.commit_hook(Some(move || gate.pass()))?;
        Ok(())
    }
}

fn open(dir: &Dir, gate: &Gate) -> SqliteRegistry {
    let registry = SqliteRegistry::builder(dir.file()).transaction_hook("chats", gate.clone()).open().unwrap();
    dir.look().execute_batch("CREATE TABLE IF NOT EXISTS chats (id TEXT PRIMARY KEY, ends INTEGER)").unwrap();
    registry
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: never");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const ENDS: &str = "SELECT sum(ends) FROM chats";
const RECORDS: &str = "SELECT count(*) FROM sessions";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_an_end_whose_commit_outlasts_its_call_is_committed_once() {
    for fails in [false, true] {
        let (dir, gate) = (Dir::new(), Gate::default());
        let sessions =
            ActiveSessions::builder().registry(open(&dir, &gate)).on_session_end(async |_| {}).build().unwrap();
        tokio::spawn(sessions.shutdown_on(pending::<()>()));
        assert!(sessions.note("a").recorded().await);
        gate.close();
        assert!(sessions.end("a", EndReason::Deleted));
        until("a commit that lasts", || gate.waits()).await;
        until("its call is given up", || sessions.is_degraded()).await;
        assert_eq!((gate.calls.load(Ordering::SeqCst), count(&dir, ENDS)), (1, 0));
        gate.open(fails);
        until("the record is removed", || count(&dir, RECORDS) == 0).await;
        assert_eq!(count(&dir, ENDS), 1, "fails: {fails}");
        assert_eq!(gate.calls.load(Ordering::SeqCst), 1 + u64::from(fails));
        let report = sessions.drain(EndReason::Shutdown).await;
        assert!(report.is_clean() && report.failures.is_empty(), "fails: {fails}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g19_a_drain_does_not_say_what_it_does_not_know() {
    for fails in [false, true] {
        let (dir, gate) = (Dir::new(), Gate::default());
        let sessions =
            ActiveSessions::builder().registry(open(&dir, &gate)).on_session_end(async |_| {}).build().unwrap();
        assert!(sessions.note("a").recorded().await);
        gate.close();
        let report = sessions.drain(EndReason::Shutdown).await;
        assert!(gate.waits());
        // Not `ended`, since it may be rolled back, and not `failed`, since it may be committed.
        assert_eq!((report.ended, report.failed, report.unfinished.len()), (0, 0, 1), "fails: {fails}: {report}");
        assert!(report.failures.is_empty(), "fails: {fails}: {:?}", report.failures);
        let _ = sessions.finish(async {}).await;
        drop(sessions);
        assert_eq!(count(&dir, ENDS), 0);
        gate.open(fails);
        // The next process delivers what was not committed.
        let next = ActiveSessions::builder().registry(open(&dir, &gate)).build().unwrap();
        until("the record is removed", || count(&dir, RECORDS) == 0 || fails).await;
        let start = Instant::now();
        while count(&dir, RECORDS) > 0 {
            let _ = next.recover().await;
            assert!(start.elapsed() < PATIENCE, "never recovered");
        }
        assert_eq!(count(&dir, ENDS), 1, "fails: {fails}");
        drop(next);
        assert!(take_over_all(&dir.open()).await.is_empty());
    }
}
