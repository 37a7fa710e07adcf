//! Files that are no good: clear errors at the start, and never a panic.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rusqlite::Connection;
use tower_session_end::registry::{Applied, Change, Registry, RegistryError, SqliteRegistry};

use super::support::{Dir, filled, holds, record, records};
use crate::support::random::Random;

/// Opens what is no good.
#[track_caller]
fn unusable(path: &Path, why: &str) {
    match SqliteRegistry::open(path) {
        Err(error @ RegistryError::Invalid(_)) => says(&error, path, why),
        other => panic!("{other:?}, and not `{why}`"),
    }
}

#[track_caller]
fn unavailable(path: &Path, why: &str) {
    match SqliteRegistry::open(path) {
        Err(error @ RegistryError::Unavailable(_)) => says(&error, path, why),
        other => panic!("{other:?}, and not `{why}`"),
    }
}

#[track_caller]
fn says(error: &RegistryError, path: &Path, why: &str) {
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains(why), "{text}");
}

#[test]
fn a_text_file_is_refused_and_left_as_it_is() {
    let dir = Dir::new();
    for text in ["hello", &"a longer text, of some pages\n".repeat(1000)] {
        fs::write(dir.file(), text).unwrap();
        unusable(&dir.file(), "is not a SQLite database");
        assert_eq!(fs::read_to_string(dir.file()).unwrap(), *text);
    }
}

#[test]
fn a_database_of_another_application_is_refused_and_left_as_it_is() {
    let dir = Dir::new();
    for sql in ["CREATE TABLE t (a)", "PRAGMA application_id = 77", "PRAGMA user_version = 1"] {
        let file = dir.path().join("other.db");
        Connection::open(&file).unwrap().execute_batch(sql).unwrap();
        let before = fs::read(&file).unwrap();
        unusable(&file, "another application");
        SqliteRegistry::builder(&file).set_aside_damaged(true).open().unwrap_err();
        assert!(before == fs::read(&file).unwrap(), "{sql}");
        fs::remove_file(&file).unwrap();
    }
}

/// The tables of schema 2, with a session and an end.
const SCHEMA_2: &str = "
PRAGMA journal_mode = DELETE;
CREATE TABLE holders (number INTEGER PRIMARY KEY AUTOINCREMENT, lease TEXT NOT NULL UNIQUE, process TEXT NOT NULL,
    since INTEGER NOT NULL);
CREATE TABLE sessions (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, generation TEXT NOT NULL,
    details TEXT NOT NULL, started_at INTEGER NOT NULL, requests INTEGER NOT NULL);
CREATE TABLE holds (session INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE, holder INTEGER NOT NULL,
    released INTEGER NOT NULL, PRIMARY KEY (session, holder)) WITHOUT ROWID;
CREATE TABLE ends (generation TEXT NOT NULL PRIMARY KEY, id TEXT NOT NULL, details TEXT NOT NULL,
    started_at INTEGER NOT NULL, requests INTEGER NOT NULL, reason TEXT NOT NULL, next TEXT, ended_at INTEGER NOT NULL,
    holder INTEGER NOT NULL, attempts INTEGER NOT NULL);
INSERT INTO sessions VALUES (1, 'a', '00000000000000000000000000000001-1', '{}', 1, 0);
INSERT INTO holds VALUES (1, 1, 0);
INSERT INTO ends VALUES ('00000000000000000000000000000001-2', 'b', '{}', 1, 0, 'idle', NULL, 2, 1, 0);
PRAGMA application_id = 0x74536573;
";

#[test]
fn an_older_schema_is_refused_and_left_as_it_is() {
    for version in [1, 2, 3] {
        let dir = Dir::new();
        dir.look().execute_batch(&format!("{SCHEMA_2} PRAGMA user_version = {version};")).unwrap();
        let before = fs::read(dir.file()).unwrap();
        unusable(
            &dir.file(),
            &format!("older version of this crate: it has schema {version}, and this version needs 4; start the older"),
        );
        unusable(&dir.file(), "`ending_sessions` show, and remove the file");
        let error = SqliteRegistry::builder(dir.file()).set_aside_damaged(true).open().unwrap_err();
        assert!(error.to_string().contains("older version"), "{error}");
        assert!(before == fs::read(dir.file()).unwrap());
    }
}

#[tokio::test]
async fn a_newer_version_is_refused_and_left_as_it_is() {
    let dir = Dir::new();
    filled(&dir, 1).await;
    dir.look().execute_batch("PRAGMA user_version = 5").unwrap();
    unusable(&dir.file(), "newer version of this crate: it has schema 5, and this version knows up to 4");
    let error = SqliteRegistry::builder(dir.file()).set_aside_damaged(true).open().unwrap_err();
    assert!(error.to_string().contains("newer version"), "{error}");
    dir.look().execute_batch("PRAGMA user_version = 4").unwrap();
    assert_eq!(dir.open().claim_orphans(10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_missing_table_is_damage() {
    let dir = Dir::new();
    filled(&dir, 1).await;
    dir.look()
        .execute_batch(
            "DROP VIEW ending_sessions; DROP VIEW active_sessions; DROP VIEW dead_letters; DROP TABLE notices",
        )
        .unwrap();
    unusable(&dir.file(), "is damaged: `notices` is missing");
}

#[test]
fn what_is_not_a_file_is_refused() {
    let dir = Dir::new();
    unusable(dir.path(), "is a directory");
    unavailable(&dir.path().join("no such directory/sessions.db"), "its directory cannot be found");
    unusable(Path::new("/"), "is a directory");
    assert!(matches!(SqliteRegistry::open(""), Err(RegistryError::Invalid(_))));
    #[cfg(unix)]
    {
        unusable(Path::new("/dev/null"), "is not a regular file");
        std::os::unix::fs::symlink(dir.path().join("nothing"), dir.file()).unwrap();
        unusable(&dir.file(), "is a dangling symbolic link");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_leads_to_the_same_leases() {
    let dir = Dir::new();
    let registry = dir.open();
    registry.apply(holds(&[record("a")])).await.unwrap();
    let link = dir.path().join("link.db");
    std::os::unix::fs::symlink(dir.file(), &link).unwrap();
    let other = SqliteRegistry::open(&link).unwrap();
    assert_eq!(other.path(), dir.file());
    assert_eq!(other.claim_orphans(10).await.unwrap(), [], "its holder lives");
}

#[tokio::test]
async fn an_empty_file_is_new_only_where_there_has_been_nothing() {
    let dir = Dir::new();
    fs::write(dir.file(), "").unwrap();
    filled(&dir, 1).await;
    fs::write(dir.file(), "").unwrap();
    unusable(&dir.file(), "is damaged: it is empty");
    // Somebody who removes it means it.
    fs::remove_file(dir.file()).unwrap();
    filled(&dir, 1).await;
}

#[tokio::test]
async fn a_damaged_page_in_the_middle_is_found_at_the_start() {
    let dir = Dir::new();
    filled(&dir, 1500).await;
    let mut bad = fs::read(dir.file()).unwrap();
    let page = bad.len() / 2 / 4096 * 4096;
    bad[page..page + 4096].fill(0xff);
    fs::write(dir.file(), bad).unwrap();
    unusable(&dir.file(), "is damaged: ");
}

#[tokio::test]
async fn a_truncated_or_damaged_file_is_refused_or_does_no_harm() {
    let dir = Dir::new();
    filled(&dir, 1500).await;
    let good = fs::read(dir.file()).unwrap();
    assert!(good.len() > 30 * 4096);
    let mut random = Random::new(7);
    let (mut refused, mut opened) = (0, 0);
    for round in 0..150 {
        let mut bad = good.clone();
        if round % 3 == 0 {
            bad.truncate(1 + random.below(good.len() as u64 - 1) as usize);
        } else {
            for _ in 0..1 + random.below(64) {
                // Half of the time in the first pages: the header and the schema.
                let range = if random.one_in(2) { 2 * 4096 } else { bad.len() as u64 };
                bad[random.below(range) as usize] = random.below(256) as u8;
            }
        }
        let file = dir.path().join(format!("bad-{round}.db"));
        fs::write(&file, bad).unwrap();
        match SqliteRegistry::open(&file) {
            Err(error) => {
                says(&error, &file, "");
                assert!(matches!(error, RegistryError::Invalid(_)), "{round}: {error:?}");
                refused += 1;
            }
            Ok(registry) => {
                use_it(round, &registry).await;
                opened += 1;
            }
        }
    }
    // Most damage is seen at the start; the rest is in what SQLite does not check.
    assert!(refused > 75 && opened > 0, "{refused} were refused, {opened} were opened");
}

/// What comes of it may be an error, and is an answer in any case.
async fn use_it(round: u64, registry: &SqliteRegistry) {
    let sane = |error: RegistryError| {
        assert!(!error.to_string().contains("handle is closed"), "{round}: the thread is gone: {error:?}");
    };
    let new = record("new");
    let _ = registry.apply(holds(std::slice::from_ref(&new))).await.map_err(sane);
    for _ in 0..500 {
        match registry.claim_orphans(64).await.map_err(sane) {
            Ok(orphans) if !orphans.is_empty() => {
                let done = orphans.iter().map(|orphan| Change::Delivered { generation: orphan.record.generation });
                let _ = registry.apply(done.collect()).await.map_err(sane);
            }
            _ => break,
        }
    }
    let _ = registry.heartbeat().await.map_err(sane);
}

fn aside(dir: &Dir) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_str().unwrap().contains(".damaged-")).collect()
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_on_request_and_a_new_one_is_begun() {
    let dir = Dir::new();
    filled(&dir, 100).await;
    let mut bad = fs::read(dir.file()).unwrap();
    bad[..100].fill(0xff);
    fs::write(dir.file(), &bad).unwrap();
    unusable(&dir.file(), "");
    assert_eq!(aside(&dir), [] as [PathBuf; 0]);

    let registry = SqliteRegistry::builder(dir.file()).set_aside_damaged(true).open().unwrap();
    assert_eq!(registry.claim_orphans(10).await.unwrap(), []);
    assert_eq!(registry.apply(holds(&[record("a")])).await.unwrap(), [Applied::Created]);
    let aside = aside(&dir);
    assert_eq!(aside.len(), 1);
    assert!(fs::read(&aside[0]).unwrap() == bad, "the damaged file is kept");
    // The next start finds a good one.
    drop(registry);
    SqliteRegistry::builder(dir.file()).set_aside_damaged(true).open().unwrap();
    assert_eq!(self::aside(&dir).len(), aside.len());
}

#[tokio::test]
async fn who_has_the_damaged_file_open_goes_on_in_the_new_one() {
    let dir = Dir::new();
    let living = dir.open();
    let held = records("a", 3);
    living.apply(holds(&held)).await.unwrap();
    dir.look().execute_batch("DROP VIEW ending_sessions").unwrap();
    let starter = SqliteRegistry::builder(dir.file()).set_aside_damaged(true).open().unwrap();
    let suffixes = ["-1", "-1-shm", "-1-wal"];
    let mut aside = aside(&dir);
    aside.sort();
    for (path, suffix) in aside.iter().zip(suffixes) {
        assert!(path.to_str().unwrap().ends_with(suffix), "{aside:?}");
    }
    assert_eq!(aside.len(), suffixes.len());

    assert!(matches!(living.heartbeat().await, Err(RegistryError::DataLost)));
    assert_eq!(living.apply(holds(&held)).await.unwrap(), vec![Applied::Created; 3]);
    living.heartbeat().await.unwrap();
    assert_eq!(starter.claim_orphans(10).await.unwrap(), [], "it lives");
    living.release_lease().await.unwrap();
    assert_eq!(starter.claim_orphans(10).await.unwrap().len(), 3);
}

#[test]
fn starters_that_find_a_damaged_file_together_set_it_aside_once() {
    let dir = Dir::new();
    fs::write(dir.file(), "no database").unwrap();
    let open = || SqliteRegistry::builder(dir.file()).set_aside_damaged(true).open().unwrap();
    let registries: Vec<_> = std::thread::scope(|scope| {
        let starters: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        starters.into_iter().map(|starter| starter.join().unwrap()).collect()
    });
    assert_eq!(aside(&dir).len(), 1);
    let holders: i32 = dir.look().query_row("SELECT count(*) FROM holders", (), |row| row.get(0)).unwrap();
    assert_eq!(holders, registries.len() as i32, "all are in the new one");
}

#[test]
fn starters_that_find_nothing_together_begin_one() {
    let dir = Dir::new();
    let registries: Vec<_> = std::thread::scope(|scope| {
        let starters: Vec<_> = (0..8).map(|_| scope.spawn(|| dir.open())).collect();
        starters.into_iter().map(|starter| starter.join().unwrap()).collect()
    });
    let holders: i32 = dir.look().query_row("SELECT count(*) FROM holders", (), |row| row.get(0)).unwrap();
    assert_eq!(holders, registries.len() as i32);
}
