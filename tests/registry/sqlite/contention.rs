//! While it runs: commits, locks, the hands of an operator.

use std::{
    fs,
    future::Future,
    pin::pin,
    task::{Context, Waker},
    thread,
    time::{Duration, Instant, SystemTime},
};

use rusqlite::TransactionBehavior;
use tower_session_end::{
    EndReason,
    registry::{Applied, EndRecord, Orphan, Registry, RegistryError, SqliteRegistry},
};

use super::support::{
    Commits, Dir, count, delivered, die, end, forget, holds, ids, is_locked, record, records, take_over_all, until,
};

#[tokio::test]
async fn one_call_is_one_commit_and_a_look_for_orphans_is_none() {
    let dir = Dir::new();
    let registry = dir.open();
    let _living = dir.open();
    let commits = Commits::of(&dir);
    let before = commits.count();
    let all = records("a", 1000);
    registry.apply(holds(&all)).await.unwrap();
    assert_eq!(commits.count() - before, 1, "1,000 births");
    let deleted = |record| end(record, EndRecord::new(EndReason::Deleted, None, SystemTime::now(), 0));
    registry.apply(all.iter().map(deleted).collect()).await.unwrap();
    assert_eq!(commits.count() - before, 2, "1,000 ends");
    for _ in 0..10 {
        registry.heartbeat().await.unwrap();
        assert_eq!(registry.claim_orphans(100).await.unwrap(), []);
    }
    assert_eq!(commits.count() - before, 2, "nothing was found");
}

#[tokio::test]
async fn calls_that_wait_together_share_a_commit() {
    let dir = Dir::new();
    let registry = SqliteRegistry::builder(dir.file()).busy_timeout(Duration::from_secs(60)).open().unwrap();
    let commits = Commits::of(&dir);
    let before = commits.count();
    let mut operator = dir.look();
    let lock = operator.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let calls: Vec<_> = (0..20).map(|n| registry.apply(holds(&records(&format!("{n}-"), 5)))).collect();
    let mut calls: Vec<_> = calls.into_iter().map(Box::pin).collect();
    for call in &mut calls {
        assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    drop(lock);
    for call in calls {
        assert_eq!(call.await.unwrap(), vec![Applied::Created; 5]);
    }
    let commits = commits.count() - before;
    assert!(commits == 1 || commits == 2, "20 calls made {commits} commits");
}

#[tokio::test]
async fn g15_a_call_that_was_given_up_while_the_file_was_locked_is_not_carried_out() {
    let dir = Dir::new();
    let registry = SqliteRegistry::builder(dir.file()).busy_timeout(Duration::from_secs(60)).open().unwrap();
    registry.apply(holds(&records("a", 1))).await.unwrap();
    let mut operator = dir.look();
    for behavior in [TransactionBehavior::Immediate, TransactionBehavior::Exclusive] {
        let lock = operator.transaction_with_behavior(behavior).unwrap();
        let given_up = registry.apply(holds(&records("late", 3)));
        assert!(tokio::time::timeout(Duration::from_millis(100), given_up).await.is_err());
        drop(lock);
        // Behind it.
        registry.heartbeat().await.unwrap();
        let sessions: i32 = operator.query_row("SELECT count(*) FROM sessions", (), |row| row.get(0)).unwrap();
        assert_eq!(sessions, 1);
    }
}

#[tokio::test]
async fn a_call_that_was_given_up_stands_in_nobodys_way() {
    let dir = Dir::new();
    let registry = SqliteRegistry::builder(dir.file()).busy_timeout(Duration::from_secs(60)).open().unwrap();
    let mut operator = dir.look();
    let lock = operator.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let held = records("a", 3);
    // The first is at it, the others wait behind it; the same changes again each time, as after a timeout.
    for _ in 0..50 {
        let call = registry.apply(holds(&held));
        assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
    }
    drop(lock);
    assert_eq!(registry.apply(holds(&held)).await.unwrap(), vec![Applied::Created; 3]);
    let sessions: i32 = operator.query_row("SELECT count(*) FROM sessions", (), |row| row.get(0)).unwrap();
    assert_eq!(sessions, 3);
}

#[tokio::test]
async fn a_file_that_somebody_keeps_locked_is_unavailable_for_so_long() {
    let dir = Dir::new();
    let registry = SqliteRegistry::builder(dir.file()).busy_timeout(Duration::from_millis(50)).open().unwrap();
    let mut operator = dir.look();
    let lock = operator.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let error = registry.apply(holds(&[record("a")])).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("sessions.db: database is locked"), "{error}");
    // Reading goes on.
    registry.heartbeat().await.unwrap();
    assert_eq!(registry.claim_orphans(10).await.unwrap(), []);
    drop(lock);
    assert_eq!(registry.apply(holds(&[record("a")])).await.unwrap(), [Applied::Created]);
}

#[tokio::test]
async fn g17_a_lock_that_another_process_keeps_on_the_directory_concerns_no_running_process() {
    let dir = Dir::new();
    let registry = SqliteRegistry::builder(dir.file()).busy_timeout(Duration::from_millis(50)).open().unwrap();
    let dead = dir.open();
    dead.apply(holds(&[record("lost")])).await.unwrap();
    let files = dir.lease_files();
    drop(dead);
    until("the lease is free", || files.iter().filter(|lease| is_locked(lease)).count() == 1);
    let lock = fs::File::options().create(true).write(true).truncate(false).open(dir.leases().join("LOCK")).unwrap();
    lock.lock().unwrap();
    assert_eq!(registry.claim_orphans(10).await.unwrap().len(), 1);
    assert_eq!(registry.apply(holds(&[record("a")])).await.unwrap(), [Applied::Created]);
    registry.heartbeat().await.unwrap();
    // Its lease is replaced; and it is adopted, and becomes a new holder.
    for lease in dir.lease_files() {
        fs::remove_file(lease).unwrap();
    }
    registry.heartbeat().await.unwrap();
    dir.look().execute_batch("UPDATE holders SET adopted_by = number").unwrap();
    assert!(matches!(registry.heartbeat().await, Err(RegistryError::Fenced)));
    assert_eq!(registry.apply(holds(&[record("b")])).await.unwrap(), [Applied::Created]);
    // A start on the same file needs it as little.
    assert_eq!(dir.open().apply(holds(&[record("c")])).await.unwrap(), [Applied::Created]);
}

#[tokio::test]
async fn a_lease_that_was_removed_is_replaced() {
    let dir = Dir::new();
    let (registry, other) = (dir.open(), dir.open());
    registry.apply(holds(&[record("a")])).await.unwrap();
    fs::remove_dir_all(dir.leases()).unwrap();
    registry.heartbeat().await.unwrap();
    other.heartbeat().await.unwrap();
    assert_eq!(other.claim_orphans(10).await.unwrap(), []);
    assert_eq!(dir.lease_files().iter().filter(|lease| is_locked(lease)).count(), 2);
}

#[test]
fn leases_of_those_who_died_too_early_are_removed_at_the_next_start() {
    let dir = Dir::new();
    let living = dir.open();
    let [of_the_living] = &dir.lease_files()[..] else { panic!("there is one lease") };
    // One whose process died before it was known to the database, and one that is about to be.
    let (stale, young) = (dir.leases().join("00ff.lease"), dir.leases().join("00fe.lease"));
    fs::write(&stale, "").unwrap();
    let lock = fs::File::create(&young).unwrap();
    lock.lock().unwrap();
    let _starter = dir.open();
    assert!(!stale.exists() && young.exists() && of_the_living.exists());
    drop(living);
}

#[tokio::test]
async fn of_many_that_died_at_once_nothing_is_left_behind() {
    let dir = Dir::new();
    for n in 0..50 {
        let registry = dir.open();
        registry.apply(holds(&records(&format!("{n}-"), n % 3))).await.unwrap();
        let lease = dir.lease_files();
        drop(registry);
        until("the lease is free", || lease.iter().all(|lease| !is_locked(lease)));
    }
    assert_eq!(dir.lease_files().len(), 50);
    let registry = dir.open();
    let orphans = take_over_all(&registry).await;
    assert_eq!(orphans.len(), 49);
    assert_eq!(dir.lease_files().len(), 1);
    registry.heartbeat().await.unwrap();
    assert_eq!(count(&dir, "SELECT count(*) FROM holders"), 34, "those that held nothing are gone");
    registry.apply(orphans.iter().map(|orphan| delivered(&orphan.record)).collect()).await.unwrap();
    registry.heartbeat().await.unwrap();
    assert_eq!(count(&dir, "SELECT count(*) FROM holders"), 1);
}

#[tokio::test]
async fn an_empty_answer_means_that_no_holder_is_left_to_recover() {
    let dir = Dir::new();
    let registry = dir.open();
    let shared = records("shared", 3);
    registry.apply(holds(&shared)).await.unwrap();
    let mut dead = Vec::new();
    for n in 0..30 {
        let holder = dir.open();
        holder.apply(holds(&shared)).await.unwrap();
        if n == 29 {
            holder.apply(holds(&[record("alone")])).await.unwrap();
        }
        dead.push(holder);
    }
    // The first ones are adopted, with orphans; the others die during that.
    let late = dead.split_off(15);
    dead[0].apply(holds(&[record("first")])).await.unwrap();
    dead.into_iter().for_each(|dead| die(&dir, dead));
    assert_eq!(ids(&registry.claim_orphans(1).await.unwrap()), ["first"]);
    late.into_iter().for_each(|dead| die(&dir, dead));
    assert_eq!(ids(&registry.claim_orphans(10).await.unwrap()), ["alone"]);
    assert_eq!(registry.claim_orphans(10).await.unwrap(), []);
    assert_eq!(count(&dir, "SELECT count(*) FROM holds"), 5);
}

#[tokio::test]
async fn who_was_taken_for_dead_is_told_so_and_goes_on_as_somebody_new() {
    let dir = Dir::new();
    let (registry, other) = (dir.open(), dir.open());
    let held = record("a");
    registry.apply(holds(std::slice::from_ref(&held))).await.unwrap();
    // Both leases: the other one is at it first.
    fs::remove_dir_all(dir.leases()).unwrap();
    assert_eq!(other.claim_orphans(10).await.unwrap().len(), 1);
    assert!(matches!(registry.apply(holds(&[record("b")])).await, Err(RegistryError::Fenced)));
    assert_eq!(registry.apply(holds(&[record("b")])).await.unwrap(), [Applied::Created]);
    registry.heartbeat().await.unwrap();
    fs::remove_dir_all(dir.leases()).unwrap();
    assert_eq!(other.claim_orphans(10).await.unwrap().len(), 1);
    assert!(matches!(registry.heartbeat().await, Err(RegistryError::Fenced)));
    registry.heartbeat().await.unwrap();
}

#[tokio::test]
async fn g16_a_holder_learns_that_it_was_adopted_though_the_first_answer_was_lost() {
    let dir = Dir::new();
    let registry = SqliteRegistry::builder(dir.file()).busy_timeout(Duration::from_secs(60)).open().unwrap();
    for round in 0..3 {
        let mut operator = dir.look();
        let lock = operator.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        let call = registry.apply(holds(&[record("lost")]));
        // The thread is at it when its caller goes away.
        assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
        lock.execute_batch("UPDATE holders SET adopted_by = number").unwrap();
        lock.commit().unwrap();
        assert!(matches!(registry.apply(holds(&[record("a")])).await, Err(RegistryError::Fenced)), "{round}");
        assert_eq!(registry.apply(holds(&[record("a")])).await.unwrap().len(), 1);
        registry.heartbeat().await.unwrap();
    }
}

#[cfg(unix)]
#[tokio::test]
async fn who_has_lost_the_file_records_everything_anew() {
    let dir = Dir::new();
    let registry = dir.open();
    let held = records("a", 3);
    registry.apply(holds(&held)).await.unwrap();
    for of_it in ["", "-wal", "-shm"] {
        fs::remove_file(dir.path().join(format!("sessions.db{of_it}"))).unwrap();
    }
    assert!(matches!(registry.heartbeat().await, Err(RegistryError::DataLost)));
    assert_eq!(registry.apply(holds(&held)).await.unwrap(), vec![Applied::Created; 3]);
    registry.heartbeat().await.unwrap();
    registry.release_lease().await.unwrap();
    assert_eq!(take_over_all(&dir.open()).await.len(), 3);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_blocks_no_other() {
    let dir = Dir::new();
    let registry = dir.open();
    let held = records("a", 6);
    registry.apply(holds(&held)).await.unwrap();
    let ends = held[3..].iter().map(|record| end(record, EndRecord::new(EndReason::Idle, None, SystemTime::now(), 7)));
    registry.apply(ends.collect()).await.unwrap();
    registry.release_lease().await.unwrap();
    dir.look()
        .execute_batch(
            "UPDATE sessions SET details = '{\"sessionId\":' WHERE id = 'a0';
             UPDATE sessions SET generation = 'nonsense' WHERE id = 'a1';
             UPDATE sessions SET details = x'ff', next = x'fe', reason = 'nonsense' WHERE id = 'a3';
             UPDATE sessions SET id = 'two words', attempts = -3 WHERE id = 'a4';
             UPDATE sessions SET attempts = 99999999999 WHERE id = 'a5';",
        )
        .unwrap();
    let registry = dir.open();
    let mut orphans = take_over_all(&registry).await;
    orphans.sort_by_key(|orphan| orphan.record.generation);
    let found: Vec<_> = orphans.iter().map(|orphan| (orphan.record.session.id.as_str(), orphan.end.reason)).collect();
    let expected =
        [("a0", EndReason::Lost), ("a2", EndReason::Lost), ("a3", EndReason::Unknown), ("a5", EndReason::Idle)];
    assert_eq!(found, expected);
    assert_eq!(orphans[0].record.session.key, None, "its details are lost");
    assert_eq!(orphans[3].attempts, u32::MAX);
    assert_eq!(count(&dir, "SELECT count(*) FROM dead_letters WHERE error = 'this record cannot be read'"), 2);
    assert_eq!(registry.heartbeat().await.unwrap().dead_letters, 2);
    assert_eq!(registry.dead_letters(10).await.unwrap(), []);
    assert_eq!(take_over_all(&registry).await, [] as [Orphan; 0]);
    // To try again changes nothing.
    assert_eq!(registry.redeliver_all().await.unwrap(), 2);
    assert_eq!(take_over_all(&registry).await, [] as [Orphan; 0]);
    assert_eq!(registry.heartbeat().await.unwrap().dead_letters, 2);
    // One that is active when its id starts again.
    registry.apply(holds(&[record("b")])).await.unwrap();
    dir.look().execute_batch("UPDATE sessions SET generation = 'nonsense as well' WHERE id = 'b'").unwrap();
    assert_eq!(registry.apply(holds(&[record("b")])).await.unwrap(), [Applied::Created]);
    assert_eq!(registry.heartbeat().await.unwrap().dead_letters, 3);
    // One with another id than its generation's.
    let renamed = record("c");
    registry.apply(holds(std::slice::from_ref(&renamed))).await.unwrap();
    dir.look().execute_batch("UPDATE sessions SET id = 'two words' WHERE id = 'c'").unwrap();
    registry.apply(holds(&[renamed, record("d")])).await.unwrap();
}

#[tokio::test]
async fn after_the_lease_is_released_every_handle_is_closed() {
    let dir = Dir::new();
    let registry = dir.open();
    let ended = record("a");
    registry.apply(holds(std::slice::from_ref(&ended))).await.unwrap();
    registry.apply(vec![forget(&ended)]).await.unwrap();
    let clone = registry.clone();
    registry.release_lease().await.unwrap();
    assert_eq!(dir.lease_files(), [] as [std::path::PathBuf; 0]);
    let holders: i32 = dir.look().query_row("SELECT count(*) FROM holders", (), |row| row.get(0)).unwrap();
    assert_eq!(holders, 0, "it owed nothing, and nothing of it is left");
    let closed = [
        registry.heartbeat().await.unwrap_err(),
        clone.dead_letters(1).await.unwrap_err(),
        clone.redeliver(ended.generation).await.unwrap_err(),
        clone.redeliver_all().await.unwrap_err(),
    ];
    for error in closed {
        assert!(matches!(error, RegistryError::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains("the lease was released, and this handle is closed"), "{error}");
    }
}

#[tokio::test]
async fn the_thread_ends_when_the_registry_is_dropped() {
    let dir = Dir::new();
    let registry = dir.open();
    {
        let call = pin!(registry.apply(holds(&records("a", 100))));
        let mut call = call;
        assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let clone = registry.clone();
    drop(registry);
    clone.dead_letters(1).await.unwrap();
    drop(clone);
    until("the lease of the dropped one is free", || dir.lease_files().iter().all(|lease| !is_locked(lease)));
    // All of the call or nothing, and no trace of a lock.
    let found = take_over_all(&dir.open()).await.len();
    assert!(found == 0 || found == 100, "{found}");
}

#[test]
fn several_threads_may_use_it_at_once() {
    let dir = Dir::new();
    let registry = dir.open();
    let begun = Instant::now();
    thread::scope(|scope| {
        for n in 0..8 {
            let registry = &registry;
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                let born = runtime.block_on(registry.apply(holds(&records(&format!("{n}-"), 50)))).unwrap();
                assert_eq!(born, vec![Applied::Created; 50]);
            });
        }
    });
    assert!(begun.elapsed() < super::support::PATIENCE);
}
