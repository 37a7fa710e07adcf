//! A handle with this registry: drains, locks, restarts.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use rusqlite::TransactionBehavior;
use tower_session_end::{ActiveSessions, EndReason, registry::SqliteRegistry};

use super::{
    process::Process,
    support::{Commits, Dir, until},
};
use crate::support::recorder::Recorder;

fn replica(dir: &Dir) -> (Recorder, ActiveSessions) {
    let recorder = Recorder::default();
    let builder = recorder.builder().drain_timeout(Duration::from_secs(10));
    (recorder, builder.registry(dir.open()).build().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g15_10_000_births_and_a_drain_are_a_few_commits() {
    const SESSIONS: usize = 10_000;
    let dir = Dir::new();
    let (recorder, sessions) = replica(&dir);
    let commits = Commits::of(&dir);
    let before = commits.count();
    for n in 1..SESSIONS {
        sessions.note(format!("s{n}"));
    }
    assert!(sessions.note("last").recorded().await);
    let born = commits.count();
    let report = sessions.drain(EndReason::Shutdown).await;
    println!("{report}");
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.ended, recorder.ends().len()), (SESSIONS as u64, SESSIONS));
    let (births, ends) = (born - before, commits.count() - born);
    assert!(births < 100 && ends < 200, "{births} commits for the births, {ends} for the drain");
    let left: i64 = dir.look().query_row("SELECT count(*) FROM sessions", (), |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn g17_a_file_that_is_locked_across_the_drain_hands_over_to_the_next_start() {
    let dir = Dir::new();
    let (recorder, sessions) = replica(&dir);
    assert!(sessions.note("a").recorded().await && sessions.note("b").recorded().await);
    let mut operator = dir.look();
    let lock = operator.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.handed_over, report.ended), (2, 0), "{report}");
    assert!(recorder.ends().is_empty());
    lock.commit().unwrap();
    drop(sessions);
    let (recorder, sessions) = replica(&dir);
    // The thread of the first one may still be about to end.
    while recorder.ends().len() < 2 {
        println!("{}", sessions.recover().await);
    }
    let mut ends: Vec<_> = recorder.ends().iter().map(|end| (end.session.id.to_string(), end.reason)).collect();
    ends.sort();
    assert_eq!(ends, [("a".to_owned(), EndReason::Lost), ("b".to_owned(), EndReason::Lost)]);
}

#[tokio::test]
async fn g16_an_overlapping_restart_ends_nothing_that_goes_on() {
    let dir = Dir::new();
    let (of_old, old) = replica(&dir);
    assert!(old.note("a").recorded().await && old.note("b").recorded().await);
    let (of_new, new) = replica(&dir);
    println!("{}", new.recover().await);
    assert!(new.note("a").recorded().await);
    let report = old.drain(EndReason::Restart).await;
    assert_eq!((report.ended, report.held_elsewhere), (1, 1), "{report}");
    assert_eq!(of_old.ends().len(), 1);
    println!("{}", new.recover().await);
    let report = new.drain(EndReason::Shutdown).await;
    assert_eq!(report.ended, 1, "{report}");
    let ends: Vec<_> = of_new.ends().iter().map(|end| (end.session.id.to_string(), end.reason)).collect();
    assert_eq!(ends, [("a".to_owned(), EndReason::Shutdown)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g17_150_starts_are_recorded_while_another_process_keeps_the_directory_locked_for_6_s() {
    let dir = Dir::new();
    let often = Duration::from_millis(50);
    let registry = SqliteRegistry::builder(dir.file()).heartbeat_interval(often).open().unwrap();
    let recorder = Recorder::default();
    let sessions = recorder.builder().drain_timeout(Duration::from_secs(10)).registry(registry).build().unwrap();
    let driver = tokio::spawn(sessions.shutdown_on(pending::<()>()));
    // The heartbeats look at the lease of a living holder, and recover what a dead one held.
    let mut living = Process::start("hold", &dir.file());
    living.expect("holds");
    let mut locking = Process::start("lock the directory", &dir.file());
    locking.expect("locked");
    let started = Instant::now();
    for n in 0..150 {
        assert!(sessions.note(format!("s{n}")).recorded().await, "start {n}, after {:?}", started.elapsed());
        assert!(!sessions.is_degraded());
        if n == 75 {
            living.kill();
        }
        tokio::time::sleep_until((started + Duration::from_millis(40) * (n + 1)).into()).await;
    }
    locking.kill();
    until("the dead holder's sessions have ended", || recorder.ends().len() >= 15);
    driver.abort();
    let report = sessions.drain(EndReason::Shutdown).await;
    assert_eq!((report.ended, recorder.ends().len()), (150, 165), "{report}");
}
