//! The transaction hook: what it writes and the record are committed together.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{Connection, Executor, PgConnection};
use tower_session_end::{
    ActiveSessions, BoxError, EndReason, SessionEnd, SessionStart,
    registry::{Applied, Change, HoldMode, PostgresRegistry, PostgresTransactionHook, Record, Registry, RegistryError},
};

use super::support::{
    OWNED, PATIENCE, PostgresServer, builder, claim_so_many, dead_letter, done, end, hold, holder, new_schema, one,
    reach, record, records, release, shared,
};

/// What the hook does for ids with these words in them.
#[derive(Clone)]
pub(super) struct Chats {
    table: &'static str,
    pub(super) calls: Arc<AtomicUsize>,
    last: Arc<Mutex<Option<SessionEnd>>>,
}

impl Chats {
    /// With a table of its own.
    pub(super) fn new(server: &PostgresServer, schema: &str) -> Self {
        let table = format!("chats_of_{schema}");
        server.ask(&format!(
            "CREATE TABLE {table} (id text PRIMARY KEY, starts integer NOT NULL DEFAULT 0, ends integer NOT NULL DEFAULT 0);
             CREATE TABLE {table}_deferred (id text REFERENCES {table} (id) DEFERRABLE INITIALLY DEFERRED)"
        ));
        Self { table: table.leak(), calls: Arc::default(), last: Arc::default() }
    }

    async fn holder(&self, server: &PostgresServer, schema: &str) -> PostgresRegistry {
        builder(&server.url(), schema).transaction_hook("chats", self.clone()).connect().await.unwrap()
    }

    /// The rows, as `id starts ends`.
    pub(super) fn rows(&self, server: &PostgresServer) -> Vec<String> {
        let rows = server.ask(&format!("SELECT id || ' ' || starts || ' ' || ends FROM {} ORDER BY 1", self.table));
        rows.lines().map(str::to_owned).collect()
    }

    async fn count(&self, transaction: &mut PgConnection, id: &str, column: &str) -> Result<(), BoxError> {
        let count = format!(
            "INSERT INTO {0} (id, {column}) VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET {column} = {0}.{column} + 1",
            self.table
        );
        sqlx::query(&*count.leak()).persistent(false).bind(id).execute(&mut *transaction).await?;
        if id.contains("err") {
            return Err("an error of the hook".into());
        }
        if id.contains("panic") {
            panic!("a panic of the hook");
        }
        if id.contains("hang") {
            std::future::pending::<()>().await;
        }
        if id.contains("sleep") {
            transaction.execute("SELECT pg_sleep(30)").await?;
        }
        if id.contains("aborted") {
            // The error is not returned.
            let _ = transaction.execute("SELECT 1 / 0").await;
        }
        if id.contains("late-check") {
            let insert = format!("INSERT INTO {}_deferred VALUES ('missing')", self.table);
            sqlx::query(&*insert.leak()).execute(&mut *transaction).await?;
        }
        if id.contains("nested") {
            let mut nested = transaction.begin().await?;
            let insert = format!("INSERT INTO {} VALUES ('{id}-inner')", self.table);
            sqlx::query(&*insert.leak()).execute(&mut *nested).await?;
            nested.commit().await?;
        }
        for (word, statement) in [("commits", "COMMIT"), ("rolls-back", "ROLLBACK"), ("reopens", "COMMIT; BEGIN")] {
            if id.contains(word) {
                transaction.execute(statement).await?;
            }
        }
        Ok(())
    }
}

impl PostgresTransactionHook for Chats {
    async fn session_start(&self, transaction: &mut PgConnection, start: &SessionStart) -> Result<(), BoxError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if start.session.id.as_str().contains("at-end") {
            return self.count(transaction, "of-another", "starts").await;
        }
        self.count(transaction, start.session.id.as_str(), "starts").await
    }

    async fn session_end(&self, transaction: &mut PgConnection, ends: &[SessionEnd]) -> Result<(), BoxError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        for end in ends {
            *self.last.lock().unwrap() = Some(end.clone());
            self.count(transaction, end.session.id.as_str(), "ends").await?;
        }
        Ok(())
    }
}

fn commit(record: &Record) -> Change {
    Change::Commit { generation: record.generation }
}

fn sessions(server: &PostgresServer, schema: &str) -> String {
    server.ask(&format!("SELECT count(*) FROM \"{schema}\".sessions"))
}

#[tokio::test]
async fn g19_a_start_and_an_end_are_committed_with_the_record() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let chats = Chats::new(server, &schema);
    let holder = chats.holder(server, &schema).await;
    assert_eq!(holder.transaction_hook(), Some("chats"));
    let a = record("a");
    for _ in 0..2 {
        // A repeat creates no record, and calls no hook.
        assert_eq!(one(&holder, hold(&a)).await, Applied::Created);
    }
    // Nor does a hold that joins, or finds nothing to join.
    assert_eq!(one(&holder, hold(&record("a"))).await, Applied::Joined(a.clone()));
    let join = Change::Hold { record: record("unknown"), mode: HoldMode::Join };
    assert_eq!(one(&holder, join).await, Applied::NotFound);
    assert_eq!(chats.rows(server), ["a 1 0"]);
    assert_eq!(one(&holder, release(&a, 7)).await, Applied::Owned { requests: 7 });
    assert_eq!(chats.rows(server), ["a 1 0"]);
    for _ in 0..2 {
        assert_eq!(one(&holder, done(&a)).await, Applied::Ok);
    }
    assert_eq!((chats.rows(server), &*sessions(server, &schema)), (vec!["a 1 1".to_owned()], "0"));
    let end = chats.last.lock().unwrap().take().unwrap();
    assert_eq!((&end.session, end.generation, end.started_at), (&a.session, a.generation, a.started_at));
    assert_eq!((end.reason, end.requests, end.deadline.is_some()), (EndReason::Shutdown, 7, true));
    assert!(end.duration < Duration::from_secs(60));
}

#[tokio::test]
async fn g19_the_ends_of_a_group_are_one_call() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let chats = Chats::new(server, &schema);
    let plain = holder(server, &schema).await;
    let records = records(200);
    plain.apply(records.iter().map(hold).collect()).await.unwrap();
    plain.release_lease().await.unwrap();
    let holder = chats.holder(server, &schema).await;
    claim_so_many(&holder, 200).await;
    let deliveries: Vec<_> = records.iter().map(done).collect();
    let answers = reach(&holder, &deliveries).await.unwrap();
    // On a busy machine the limit of a call may be too short for all of them. The rest is delivered later.
    let failed: Vec<_> = records.iter().zip(&answers).filter(|(_, answer)| **answer != Applied::Ok).collect();
    for (record, _) in &failed {
        assert_eq!(one(&holder, done(record)).await, Applied::Ok);
    }
    if failed.is_empty() {
        let calls = chats.calls.load(Ordering::SeqCst);
        assert!(calls == 1 || calls > 200, "{calls} calls");
    }
    assert_eq!(sessions(server, &schema), "0");
    let wrong = server.ask(&format!("SELECT count(*) FROM {} WHERE ends <> 1", chats.table));
    assert_eq!((chats.rows(server).len(), &*wrong), (200, "0"));
}

#[tokio::test]
async fn g19_one_bad_end_keeps_its_record_and_holds_up_no_other() {
    let Some(server) = shared() else { return };
    for bad in ["err", "panic", "hang", "sleep", "aborted", "late-check"] {
        let schema = new_schema();
        let chats = Chats::new(server, &schema);
        let plain = holder(server, &schema).await;
        let all = [record("a"), record(bad), record("z")];
        plain.apply(all.iter().map(hold).collect()).await.unwrap();
        plain.release_lease().await.unwrap();
        let holder = chats.holder(server, &schema).await;
        claim_so_many(&holder, 3).await;
        let answers = reach(&holder, &all.each_ref().map(done)).await.unwrap();
        let Applied::Failed(error) = &answers[1] else { panic!("{bad}: {answers:?}") };
        let expected = match bad {
            "err" => "an error of the hook",
            "panic" => "a panic of the hook",
            "hang" => "took longer than",
            "sleep" => "statement timeout",
            "aborted" => "current transaction is aborted",
            _ => "foreign key",
        };
        assert!(error.contains(expected), "{bad}: {error}");
        // The others are delivered, unless the machine is so busy that no time was left for them.
        for (n, record) in [(0, &all[0]), (2, &all[2])] {
            if let Applied::Failed(error) = &answers[n] {
                assert!(error.contains("no time was left"), "{bad}: {answers:?}");
                assert_eq!(one(&holder, done(record)).await, Applied::Ok, "{bad}: {answers:?}");
            }
        }
        assert_eq!(chats.rows(server), ["a 0 1", "z 0 1"], "{bad}");
        assert_eq!(sessions(server, &schema), "1", "{bad}");
        let letter = one(&holder, dead_letter(&all[1], error)).await;
        assert_eq!((letter, holder.dead_letters(9).await.unwrap().len()), (Applied::Ok, 1));
    }
}

#[tokio::test]
async fn g19_a_start_hook_that_fails_leaves_nothing_but_the_record() {
    let Some(server) = shared() else { return };
    for bad in ["err", "panic", "hang", "aborted", "late-check"] {
        let schema = new_schema();
        let chats = Chats::new(server, &schema);
        let holder = chats.holder(server, &schema).await;
        let all = [record("a"), record(bad)];
        let answers = reach(&holder, &all.each_ref().map(hold)).await.unwrap();
        assert_eq!(answers, [Applied::Created, Applied::Created], "{bad}");
        assert_eq!((chats.rows(server), &*sessions(server, &schema)), (vec!["a 1 0".to_owned()], "2"), "{bad}");
    }
}

#[tokio::test]
async fn g19_a_marked_record_does_not_call_the_hook_again() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let chats = Chats::new(server, &schema);
    let holder = chats.holder(server, &schema).await;
    let (a, b) = (record("a"), record("b"));
    holder.apply(vec![hold(&a), hold(&b)]).await.unwrap();
    holder.apply(vec![end(&a), end(&b)]).await.unwrap();
    for _ in 0..2 {
        assert_eq!(holder.apply(vec![commit(&a), commit(&b)]).await.unwrap(), [Applied::Ok, Applied::Ok]);
    }
    assert_eq!((chats.rows(server), &*sessions(server, &schema)), (vec!["a 1 1".to_owned(), "b 1 1".to_owned()], "2"));
    // The mark survives a recovery, a dead letter and its redelivery.
    one(&holder, dead_letter(&b, "another hook has failed")).await;
    assert!(holder.redeliver(b.generation).await.unwrap());
    holder.release_lease().await.unwrap();
    let next = chats.holder(server, &schema).await;
    assert_eq!(claim_so_many(&next, 2).await.len(), 2);
    assert_eq!(next.apply(vec![done(&a), done(&b)]).await.unwrap(), [Applied::Ok, Applied::Ok]);
    assert_eq!((chats.rows(server), &*sessions(server, &schema)), (vec!["a 1 1".to_owned(), "b 1 1".to_owned()], "0"));
}

#[tokio::test]
async fn g19_who_has_lost_the_claim_writes_nothing() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let chats = Chats::new(server, &schema);
    let (a, b) = (chats.holder(server, &schema).await, chats.holder(server, &schema).await);
    let lost = record("lost");
    one(&a, hold(&lost)).await;
    assert_eq!(one(&a, end(&lost)).await, OWNED);
    // Another holder's claim.
    assert_eq!(b.apply(vec![done(&lost), commit(&record("unknown"))]).await.unwrap(), [Applied::Ok, Applied::Ok]);
    assert_eq!(one(&b, commit(&lost)).await, Applied::Ok);
    // An active session.
    let active = record("active");
    one(&a, hold(&active)).await;
    assert_eq!(a.apply(vec![done(&active)]).await.unwrap(), [Applied::Ok]);
    assert_eq!(
        (chats.rows(server), &*sessions(server, &schema)),
        (vec!["active 1 0".to_owned(), "lost 1 0".to_owned()], "2")
    );
}

#[tokio::test]
async fn g19_a_hook_that_ends_the_transaction_is_recognised_and_nothing_is_lost() {
    let Some(server) = shared() else { return };
    for bad in ["commits", "rolls-back", "reopens"] {
        let schema = new_schema();
        let chats = Chats::new(server, &schema);
        let holder = chats.holder(server, &schema).await;
        let [ending, other, new] = [record(&format!("{bad}-at-end")), record("other"), record("new")];
        holder.apply(vec![hold(&ending), hold(&other)]).await.unwrap();
        holder.apply(vec![end(&ending)]).await.unwrap();
        let answers = holder.apply(vec![done(&ending), end(&other), hold(&new)]).await.unwrap();
        let Applied::Failed(error) = &answers[0] else { panic!("{bad}: {answers:?}") };
        assert!(error.contains("committed or rolled back"), "{error}");
        assert_eq!(answers[1..], [OWNED, Applied::Created], "{bad}");
        let left = server.ask(&format!("SELECT id, coalesce(reason, '') FROM \"{schema}\".sessions ORDER BY id"));
        let mut expected = [format!("{bad}-at-end|deleted"), "new|".to_owned(), "other|deleted".to_owned()];
        expected.sort();
        assert_eq!(left, expected.join("\n"));
        // The connection is as before.
        assert_eq!(one(&holder, done(&other)).await, Applied::Ok);

        // The same in a start.
        let start = record(bad);
        assert_eq!(one(&holder, hold(&start)).await, Applied::Created, "{bad}");
        assert_eq!(one(&holder, release(&start, 0)).await, OWNED, "{bad}");
    }
}

#[tokio::test]
async fn g19_a_hook_may_use_nested_transactions() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let chats = Chats::new(server, &schema);
    let holder = chats.holder(server, &schema).await;
    assert_eq!(one(&holder, hold(&record("nested"))).await, Applied::Created);
    assert_eq!(chats.rows(server), ["nested 1 0", "nested-inner 0 0"]);
}

/// The calls of a drain are shorter than others.
#[tokio::test]
async fn g19_a_call_that_has_little_time_calls_the_hook_and_counts_no_failure_without_a_call() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let chats = Chats::new(server, &schema);
    let holder = chats.holder(server, &schema).await;
    for ms in [600, 500, 200, 50, 10] {
        let record = record(&format!("in-{ms}-ms"));
        one(&holder, hold(&record)).await;
        assert_eq!(one(&holder, end(&record)).await, OWNED);
        let (calls, start) = (chats.calls.load(Ordering::SeqCst), Instant::now());
        loop {
            // Twice the time at each repeat: a busy machine takes longer.
            let limit = Duration::from_millis(ms) + start.elapsed();
            match holder.apply_before(vec![done(&record)], Instant::now() + limit).await {
                Ok(answers) => {
                    let is_called = chats.calls.load(Ordering::SeqCst) > calls;
                    assert!(is_called, "{ms} ms: {answers:?} without a call of the hook");
                    if answers == [Applied::Ok] {
                        break;
                    }
                }
                Err(RegistryError::Unavailable(_) | RegistryError::Conflict) => {}
                Err(error) => panic!("{ms} ms: {error:?}"),
            }
            assert!(start.elapsed() < PATIENCE, "{ms} ms: the end is never delivered");
        }
    }
    let wrong = format!("SELECT count(*) FROM {} WHERE starts <> 1 OR ends <> 1", chats.table);
    assert_eq!((&*server.ask(&wrong), &*sessions(server, &schema)), ("0", "0"));
}

#[tokio::test]
async fn g19_a_drain_with_the_default_timeout_calls_the_hook() {
    let Some(server) = shared() else { return };
    let schema = new_schema();
    let chats = Chats::new(server, &schema);
    let sessions = ActiveSessions::builder().registry(chats.holder(server, &schema).await).build().unwrap();
    for n in 0..20 {
        assert!(sessions.note(format!("session-{n}")).recorded().await);
    }
    let before = chats.calls.load(Ordering::SeqCst);
    let report = sessions.drain(EndReason::Shutdown).await;
    // On a busy machine a call may take too long. Then some ends are left to the next process.
    assert!(chats.calls.load(Ordering::SeqCst) > before, "{report}: {:?}", report.failures);
    let counted = format!("SELECT count(*) FROM {} WHERE starts = 1 AND ends = 1", chats.table);
    assert_eq!(server.ask(&counted), report.ended.to_string());
}
