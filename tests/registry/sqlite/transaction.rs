//! Hooks that write in the transactions of the registry. Each hook here increments: a status would hide a second call.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tower_session_end::{
    ActiveSessions, ActiveSessionsBuilder, BoxError, EndReason, SessionEnd, SessionStart,
    registry::{
        Applied, Change, EndRecord, Record, Registry, RegistryError, SqliteRegistry, SqliteTransactionHook,
        rusqlite::Transaction,
    },
};

use super::support::{Dir, count, delivered, die, end, hold, holds, is_locked, record, records, take_over_all, until};

/// What the hook does at an end, besides its increments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    /// An error for a session whose id begins with `bad`.
    Bad,
    /// As `Bad`, as often as the counter says.
    BadFor(u64),
    Panics,
    Executes(&'static str),
}

#[derive(Clone, Default)]
pub(crate) struct Chats {
    fault: Fault,
    calls: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
}

impl SqliteTransactionHook for Chats {
    fn session_start(&self, tx: &Transaction<'_>, start: &SessionStart) -> Result<(), BoxError> {
        let sql =
            "INSERT INTO chats (id, starts, ends) VALUES (?1, 1, 0) ON CONFLICT (id) DO UPDATE SET starts = starts + 1";
        tx.execute(sql, [start.session.id.as_str()])?;
        if start.session.id.as_str().starts_with("unwelcome") {
            return Err("not this one".into());
        }
        if let Fault::Executes(sql) = self.fault
            && start.session.id.as_str().starts_with("closes")
        {
            tx.execute_batch(sql)?;
        }
        Ok(())
    }

    fn session_end(&self, tx: &Transaction<'_>, ends: &[SessionEnd]) -> Result<(), BoxError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        for end in ends {
            let sql = "UPDATE chats SET ends = ends + 1, reason = ?2, requests = ?3 WHERE id = ?1";
            let requests = i64::try_from(end.requests)?;
            tx.execute(sql, (end.session.id.as_str(), end.reason.as_str(), requests))?;
            let is_bad = end.session.id.as_str().starts_with("bad");
            match self.fault {
                Fault::Bad if is_bad => return Err("bad".into()),
                Fault::BadFor(times) if is_bad && self.refused.fetch_add(1, Ordering::SeqCst) < times => {
                    return Err("not yet".into());
                }
                Fault::Panics => panic!("of the hook"),
                Fault::Executes(sql) => tx.execute_batch(sql)?,
                _ => {}
            }
        }
        Ok(())
    }
}

pub(crate) fn open(dir: &Dir, hook: Chats) -> SqliteRegistry {
    let registry = SqliteRegistry::builder(dir.file()).transaction_hook("chats", hook).open().unwrap();
    let table = "CREATE TABLE IF NOT EXISTS chats (id TEXT PRIMARY KEY, starts INTEGER, ends INTEGER, reason TEXT, requests INTEGER)";
    dir.look().execute_batch(table).unwrap();
    registry
}

fn ended(record: &Record) -> Change {
    end(record, EndRecord::new(EndReason::Deleted, None, std::time::SystemTime::now(), 7))
}

fn ends(records: &[Record]) -> Vec<Change> {
    records.iter().map(ended).collect()
}

fn done(records: &[Record]) -> Vec<Change> {
    records.iter().map(delivered).collect()
}

fn commit(record: &Record) -> Change {
    Change::Commit { generation: record.generation }
}

/// The chats that have started and ended so often.
fn chats(dir: &Dir, starts: u64, ends: u64) -> i64 {
    count(dir, &format!("SELECT count(*) FROM chats WHERE starts = {starts} AND ends = {ends}"))
}

#[tokio::test]
async fn g19_each_start_and_each_end_is_written_once_although_calls_are_repeated() {
    let dir = Dir::new();
    let hook = Chats::default();
    let registry = open(&dir, hook.clone());
    let all = records("s", 1000);
    for _ in 0..3 {
        assert!(registry.apply(holds(&all)).await.unwrap().iter().all(|applied| *applied == Applied::Created));
    }
    assert_eq!(chats(&dir, 1, 0), 1000);
    for _ in 0..3 {
        registry.apply(ends(&all)).await.unwrap();
    }
    assert_eq!(chats(&dir, 1, 0), 1000, "an end is delivered, not claimed");
    for _ in 0..3 {
        assert!(registry.apply(done(&all)).await.unwrap().iter().all(|applied| *applied == Applied::Ok));
    }
    assert_eq!(chats(&dir, 1, 1), 1000);
    assert_eq!(count(&dir, "SELECT count(*) FROM chats WHERE reason = 'deleted' AND requests = 7"), 1000);
    assert_eq!(hook.calls.load(Ordering::SeqCst), 1, "one call for the group");
    assert_eq!(count(&dir, "SELECT count(*) FROM sessions"), 0);
}

#[tokio::test]
async fn g19_one_bad_end_holds_up_no_other_and_keeps_its_record() {
    let dir = Dir::new();
    let registry = open(&dir, Chats { fault: Fault::Bad, ..Chats::default() });
    let mut all = records("s", 50);
    all.insert(20, record("bad"));
    registry.apply(holds(&all)).await.unwrap();
    registry.apply(ends(&all)).await.unwrap();
    let answers = registry.apply(done(&all)).await.unwrap();
    for (record, answer) in all.iter().zip(answers) {
        let expected = if record.session.id == *"bad" { Applied::Failed("bad".to_owned()) } else { Applied::Ok };
        assert_eq!(answer, expected);
    }
    assert_eq!((chats(&dir, 1, 1), chats(&dir, 1, 0)), (50, 1));
    assert_eq!(count(&dir, "SELECT count(*) FROM sessions"), 1);
}

#[tokio::test]
async fn g19_a_start_that_is_refused_writes_nothing_and_the_session_goes_on() {
    let dir = Dir::new();
    let registry = open(&dir, Chats::default());
    let (good, refused) = (record("good"), record("unwelcome"));
    let answers = registry.apply(holds(&[good, refused.clone()])).await.unwrap();
    assert_eq!(answers, [Applied::Created, Applied::Created]);
    assert_eq!(count(&dir, "SELECT count(*) FROM chats"), 1);
    assert_eq!(registry.apply(vec![ended(&refused)]).await.unwrap(), [Applied::Owned { requests: 7 }]);
}

#[tokio::test]
async fn g19_a_hook_that_panics_has_failed() {
    let dir = Dir::new();
    let registry = open(&dir, Chats { fault: Fault::Panics, ..Chats::default() });
    let one = record("one");
    registry.apply(vec![hold(&one)]).await.unwrap();
    registry.apply(vec![ended(&one)]).await.unwrap();
    let answers = registry.apply(vec![delivered(&one)]).await.unwrap();
    assert_eq!(answers, [Applied::Failed("panicked: of the hook".to_owned())]);
    assert_eq!(chats(&dir, 1, 0), 1);
}

#[tokio::test]
async fn g19_a_hook_that_ends_the_transaction_is_recognised_and_nothing_is_lost() {
    for sql in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN IMMEDIATE", "ROLLBACK; BEGIN"] {
        let dir = Dir::new();
        let registry = open(&dir, Chats { fault: Fault::Executes(sql), ..Chats::default() });
        let (one, two, other) = (record("one"), record("two"), record("other"));
        registry.apply(holds(&[one.clone(), two.clone()])).await.unwrap();
        registry.apply(ends(&[one.clone(), two.clone()])).await.unwrap();
        let changes = vec![delivered(&one), hold(&other), delivered(&two)];
        let answers = registry.apply(changes).await.unwrap();
        let failed = Applied::Failed("the hook has ended the transaction of the registry".to_owned());
        assert_eq!(answers, [failed.clone(), Applied::Created, failed], "{sql}");
        assert_eq!(count(&dir, "SELECT count(*) FROM sessions"), 3, "{sql}: the records stay");
        // The registry still works, and its transactions are whole.
        let closes = record("closes");
        assert_eq!(registry.apply(vec![hold(&closes)]).await.unwrap(), [Applied::Created], "{sql}");
        assert_eq!(registry.apply(vec![ended(&closes)]).await.unwrap(), [Applied::Owned { requests: 7 }], "{sql}");
        assert!(registry.heartbeat().await.is_ok());
        drop(registry);
    }
}

#[tokio::test]
async fn g19_what_is_committed_before_other_hooks_are_done_is_not_written_again() {
    let dir = Dir::new();
    let registry = open(&dir, Chats::default());
    let one = record("one");
    registry.apply(vec![hold(&one)]).await.unwrap();
    registry.apply(vec![ended(&one)]).await.unwrap();
    for _ in 0..2 {
        assert_eq!(registry.apply(vec![commit(&one)]).await.unwrap(), [Applied::Ok]);
        assert_eq!(chats(&dir, 1, 1), 1);
    }
    die(&dir, registry);
    let next = open(&dir, Chats::default());
    let orphans = take_over_all(&next).await;
    assert_eq!(orphans.len(), 1);
    let dead = Change::DeadLetter { generation: one.generation, error: "of another hook".to_owned() };
    next.apply(vec![dead]).await.unwrap();
    assert!(next.redeliver(one.generation).await.unwrap());
    assert_eq!(take_over_all(&next).await.len(), 1);
    next.apply(vec![delivered(&one)]).await.unwrap();
    assert_eq!(chats(&dir, 1, 1), 1);
    assert_eq!(count(&dir, "SELECT count(*) FROM sessions"), 0);
}

#[tokio::test]
async fn g19_who_has_lost_the_claim_writes_nothing() {
    let dir = Dir::new();
    let (away, here) = (open(&dir, Chats::default()), open(&dir, Chats::default()));
    let all = records("s", 3);
    away.apply(holds(&all)).await.unwrap();
    away.apply(ends(&all[..2])).await.unwrap();
    away.apply(vec![delivered(&all[0])]).await.unwrap();
    // Its lease is lost while the process goes on.
    let lease =
        dir.lease_files().into_iter().min_by_key(|file| fs::metadata(file).unwrap().modified().unwrap()).unwrap();
    assert!(is_locked(&lease));
    fs::remove_file(lease).unwrap();
    assert_eq!(take_over_all(&here).await.len(), 2);
    let late = away.apply(vec![delivered(&all[1]), ended(&all[2])]).await;
    assert!(matches!(late, Err(RegistryError::Fenced)), "{late:?}");
    assert_eq!((chats(&dir, 1, 1), chats(&dir, 1, 0)), (1, 2));
    away.apply(vec![delivered(&all[1])]).await.unwrap();
    assert_eq!(chats(&dir, 1, 1), 1, "another holder has claimed it");
    here.apply(done(&all)).await.unwrap();
    assert_eq!(chats(&dir, 1, 1), 3);
}

fn sessions(
    registry: SqliteRegistry,
    f: impl FnOnce(ActiveSessionsBuilder) -> ActiveSessionsBuilder,
) -> ActiveSessions {
    f(ActiveSessions::builder().registry(registry)).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_a_drain_commits_its_ends_and_reports_them() {
    let dir = Dir::new();
    let hook = Chats { fault: Fault::Bad, ..Chats::default() };
    let sessions = sessions(open(&dir, hook.clone()), |builder| builder.drain_timeout(Duration::from_secs(60)));
    for i in 0..2000 {
        sessions.note(format!("s{i}").as_str());
    }
    sessions.note("bad").recorded().await;
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, report.failed), (2000, 1), "{report}");
    let failure = &report.failures[0];
    assert_eq!((failure.hook.as_str(), failure.error.to_string().as_str()), ("chats", "bad"));
    assert_eq!((chats(&dir, 1, 1), chats(&dir, 1, 0)), (2000, 1));
    let calls = hook.calls.load(Ordering::SeqCst);
    assert!(calls <= 200, "{calls} calls for 2,001 ends");
    assert_eq!(count(&dir, "SELECT count(*) FROM sessions"), 1, "the next process delivers it");
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_a_failed_transaction_is_tried_again_and_other_hooks_are_not() {
    let dir = Dir::new();
    let others = Arc::new(AtomicU64::new(0));
    let registry = open(&dir, Chats { fault: Fault::BadFor(2), ..Chats::default() });
    let called = Arc::clone(&others);
    let sessions = sessions(registry, |builder| {
        builder.on_session_end(move |_| {
            called.fetch_add(1, Ordering::SeqCst);
            async { Ok::<_, BoxError>(()) }
        })
    });
    sessions.note("bad").recorded().await;
    sessions.end("bad", EndReason::Deleted);
    until("the second delivery succeeds", || chats(&dir, 1, 1) == 1);
    until("its record is removed", || count(&dir, "SELECT count(*) FROM sessions") == 0);
    assert_eq!(others.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_a_failed_hook_holds_up_no_transaction_and_is_called_again_alone() {
    let dir = Dir::new();
    let others = Arc::new(AtomicU64::new(0));
    let hook = Chats::default();
    let called = Arc::clone(&others);
    let sessions = sessions(open(&dir, hook.clone()), |builder| {
        builder.on_session_end(move |_| {
            let is_first = called.fetch_add(1, Ordering::SeqCst) == 0;
            async move { if is_first { Err(BoxError::from("not yet")) } else { Ok(()) } }
        })
    });
    sessions.note("one").recorded().await;
    sessions.end("one", EndReason::Deleted);
    until("the transaction is committed", || chats(&dir, 1, 1) == 1);
    assert_eq!(others.load(Ordering::SeqCst), 1);
    until("the other hook has succeeded", || count(&dir, "SELECT count(*) FROM sessions") == 0);
    assert_eq!((others.load(Ordering::SeqCst), hook.calls.load(Ordering::SeqCst)), (2, 1));
    assert_eq!(chats(&dir, 1, 1), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn g19_what_a_dead_process_has_left_is_committed_by_the_next_one() {
    let dir = Dir::new();
    let registry = open(&dir, Chats::default());
    let all = records("s", 20);
    registry.apply(holds(&all)).await.unwrap();
    registry.apply(ends(&all[..10])).await.unwrap();
    registry.apply(done(&all[..5])).await.unwrap();
    die(&dir, registry);
    let sessions = sessions(open(&dir, Chats::default()), |builder| builder);
    let report = sessions.recover().await;
    assert_eq!((report.found, report.ended), (15, 15), "{report}");
    assert_eq!(chats(&dir, 1, 1), 20);
    assert_eq!(count(&dir, "SELECT count(*) FROM chats WHERE reason = 'lost'"), 10);
    until("the records are removed", || count(&dir, "SELECT count(*) FROM sessions") == 0);
}
