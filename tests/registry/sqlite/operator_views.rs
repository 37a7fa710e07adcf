//! What an operator sees, with `sqlite3` where there is one.

use std::{process::Command, time::Duration};

use rusqlite::types::ValueRef;
use tower_session_end::{
    EndReason, Session,
    registry::{Change, EndRecord, Record, Registry, SqliteRegistry},
};

use super::support::{Dir, end, hold, holds, record};
use crate::support::operations_page;

/// The answer to a query, a line a row.
fn ask(dir: &Dir, sql: &str) -> Vec<String> {
    let through_sqlite3 = Command::new("sqlite3").arg(dir.file()).arg(sql).output();
    let ours = through_rusqlite(dir, sql);
    if let Ok(output) = through_sqlite3 {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let theirs: Vec<_> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(theirs, ours);
    }
    ours
}

fn through_rusqlite(dir: &Dir, sql: &str) -> Vec<String> {
    let operator = dir.look();
    let mut query = operator.prepare(sql).unwrap();
    let columns = query.column_count();
    let text = |value: ValueRef<'_>| match value {
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Text(text) => String::from_utf8(text.to_owned()).unwrap(),
        other => panic!("{other:?}"),
    };
    let line = |row: &rusqlite::Row<'_>| {
        let values: Vec<_> = (0..columns).map(|i| text(row.get_ref(i).unwrap())).collect();
        Ok(values.join("|"))
    };
    query.query_map((), line).unwrap().map(Result::unwrap).collect()
}

/// This process, as it is shown.
fn me() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").map(|host| format!(" on {}", host.trim()));
    let program = std::env::current_exe().unwrap();
    let program = program.file_stem().unwrap().to_str().unwrap().to_owned();
    format!("{program} (process {}{})", std::process::id(), host.unwrap_or_default())
}

#[tokio::test]
async fn an_operator_sees_what_is_active_since_when_and_who_holds_it() {
    let dir = Dir::new();
    let (one, two) = (dir.open(), dir.open());
    let noon = std::time::UNIX_EPOCH + Duration::from_millis(1_795_521_600_250);
    let session = Session::try_from("4711")
        .unwrap()
        .with_key("telegram:42")
        .with_agent_id("main")
        .with_attribute("tenant", "acme");
    let shared = Record::new(session, record("4711").generation, noon);
    one.apply(holds(&[shared.clone(), record("alone")])).await.unwrap();
    two.apply(holds(&[record("4711")])).await.unwrap();
    let (me, generation) = (me(), shared.generation);
    let details = r#"{"sessionId":"4711","sessionKey":"telegram:42","agentId":"main","attributes":{"tenant":"acme"}}"#;
    let expected = format!("4711|2026-11-24 12:00:00.250 UTC|{me}, {me}|telegram:42|main|{generation}|{details}");
    assert_eq!(ask(&dir, "select * from active_sessions where id = '4711'"), [expected]);
    assert_eq!(ask(&dir, "select held_by from active_sessions where id = 'alone'"), [me]);
}

#[tokio::test]
async fn an_operator_sees_what_is_ending_and_why_and_how_often_it_was_tried() {
    let dir = Dir::new();
    let one = dir.open();
    let (old, new) = (record("old"), record("new"));
    one.apply(holds(std::slice::from_ref(&old))).await.unwrap();
    let at = std::time::UNIX_EPOCH + Duration::from_millis(1_795_521_600_999);
    let compaction = EndRecord::new(EndReason::Compaction, Some(new.session.clone()), at, 12);
    one.apply(vec![end(&old, compaction), hold(&new)]).await.unwrap();
    let sql = "select id, reason, ended_at, claimed_by, attempts, requests, next, generation from ending_sessions";
    let (me, generation) = (me(), old.generation);
    let expected = |attempts| format!("old|compaction|2026-11-24 12:00:00.999 UTC|{me}|{attempts}|12|new|{generation}");
    assert_eq!(ask(&dir, sql), [expected(0)]);
    one.release_lease().await.unwrap();
    let two = SqliteRegistry::open(dir.file()).unwrap();
    assert_eq!(two.claim_orphans(10).await.unwrap().len(), 2);
    let ending = ask(&dir, sql);
    assert_eq!(ending[0], expected(0), "no hook was called");
    assert!(ending[1].starts_with("new|lost|"), "{ending:?}");
    assert_eq!(ask(&dir, "select * from active_sessions"), [] as [String; 0]);
}

#[tokio::test]
async fn each_command_of_the_operations_page_shows_what_it_says() {
    let dir = Dir::new();
    let registry = dir.open();
    let (ending, dead) = (record("ending"), record("dead"));
    registry.apply(holds(&[record("active"), ending.clone(), dead.clone()])).await.unwrap();
    let ended = |record: &Record| end(record, EndRecord::new(EndReason::Idle, None, std::time::SystemTime::now(), 1));
    registry.apply(vec![ended(&ending), ended(&dead)]).await.unwrap();
    let failed = Change::DeadLetter { generation: dead.generation, error: "no".to_owned() };
    registry.apply(vec![failed]).await.unwrap();
    let answers: Vec<_> = operations_page::commands("sqlite3 sessions.db").iter().map(|sql| ask(&dir, sql)).collect();
    assert_eq!(answers.len(), 4);
    for (answer, shown) in answers.iter().zip(["active|", "idle|1|", "dead|0|no", "0|"]) {
        assert!(answer.len() == 1 && answer[0].starts_with(shown), "{answer:?}");
    }
}
