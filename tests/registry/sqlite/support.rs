//! A directory for one test, with a registry in it.

use std::{
    fs::{self, File, TryLockError},
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tower_session_end::{
    GenerationId, Session,
    registry::{Change, EndRecord, HoldMode, Orphan, Record, Registry, SqliteRegistry},
};

/// Nothing in these tests takes that long unless it is stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Removed when it is dropped.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        let name = format!("registry-{:016x}", RandomState::new().hash_one(std::process::id()));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        Self(dir.canonicalize().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The database.
    pub(crate) fn file(&self) -> PathBuf {
        self.0.join("sessions.db")
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.0.join("sessions.db-leases")
    }

    pub(crate) fn open(&self) -> SqliteRegistry {
        SqliteRegistry::open(self.file()).unwrap()
    }

    /// The files of leases, held or not.
    pub(crate) fn lease_files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.leases()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "lease")).collect()
    }

    /// A connection of an operator.
    pub(crate) fn look(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.file()).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Counts the commits in the write-ahead log, as they are on the disk.
pub(crate) struct Commits {
    /// Its snapshot keeps the log from being begun anew.
    reader: rusqlite::Connection,
    log: PathBuf,
}

impl Commits {
    pub(crate) fn of(dir: &Dir) -> Self {
        let reader = dir.look();
        reader.execute_batch("BEGIN; SELECT count(*) FROM sessions;").unwrap();
        Self { reader, log: dir.path().join("sessions.db-wal") }
    }

    /// A frame that ends a transaction says how many pages the database has then.
    pub(crate) fn count(&self) -> usize {
        assert!(!self.reader.is_autocommit());
        let log = fs::read(&self.log).unwrap();
        let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
        let (page, salt) = (number(8) as usize, &log[16..24]);
        let frames = (32..log.len()).step_by(24 + page).filter(|at| log.len() >= at + 24 + page);
        frames.filter(|&at| log[at + 8..at + 16] == *salt && number(at + 4) != 0).count()
    }
}

/// Waits until it is so, but not for ever.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < PATIENCE, "stuck: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn is_locked(path: &Path) -> bool {
    match File::open(path).map(|file| file.try_lock_shared()) {
        Ok(Err(TryLockError::WouldBlock)) => true,
        Ok(Err(TryLockError::Error(error))) => panic!("{error}"),
        // One that is not there is not locked.
        Ok(Ok(())) | Err(_) => false,
    }
}

/// A generation that was not used before.
pub(crate) fn record(id: &str) -> Record {
    static GENERATION: AtomicU64 = AtomicU64::new(1);
    let number = GENERATION.fetch_add(1, Ordering::Relaxed);
    let generation: GenerationId = format!("{:032x}-{number}", std::process::id()).parse().unwrap();
    let now = std::time::UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + number);
    Record::new(Session::try_from(id).unwrap().with_key(format!("key of {id}")), generation, now)
}

pub(crate) fn records(prefix: &str, count: usize) -> Vec<Record> {
    (0..count).map(|i| record(&format!("{prefix}{i}"))).collect()
}

/// A start. It continues an active session of another holder.
pub(crate) fn hold(record: &Record) -> Change {
    Change::Hold { record: record.clone(), mode: HoldMode::JoinOrCreate }
}

pub(crate) fn holds(records: &[Record]) -> Vec<Change> {
    records.iter().map(hold).collect()
}

pub(crate) fn end(record: &Record, end: EndRecord) -> Change {
    Change::End { id: record.session.id.clone(), generation: record.generation, end }
}

pub(crate) fn forget(record: &Record) -> Change {
    Change::Forget { id: record.session.id.clone(), generation: record.generation }
}

pub(crate) fn acknowledge(record: &Record) -> Change {
    Change::Acknowledge { id: record.session.id.clone(), generation: record.generation }
}

pub(crate) fn delivered(record: &Record) -> Change {
    Change::Delivered { generation: record.generation }
}

pub(crate) fn release(record: &Record, requests: u64) -> Change {
    let end = EndRecord::new(tower_session_end::EndReason::Shutdown, None, std::time::SystemTime::now(), requests);
    Change::Release { id: record.session.id.clone(), generation: record.generation, end }
}

/// As SIGKILL would: the lock on the lease is gone, and nothing else is done.
pub(crate) fn die(dir: &Dir, registry: SqliteRegistry) {
    let locked = || dir.lease_files().iter().filter(|lease| is_locked(lease)).count();
    let before = locked();
    drop(registry);
    until("the lease of a dead holder is free", || locked() < before);
}

pub(crate) fn ids(orphans: &[Orphan]) -> Vec<&str> {
    orphans.iter().map(|orphan| orphan.record.session.id.as_str()).collect()
}

pub(crate) async fn take_over_all(registry: &SqliteRegistry) -> Vec<Orphan> {
    let mut all = Vec::new();
    loop {
        let some = registry.claim_orphans(64).await.unwrap();
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

/// The answer to a query for one number.
pub(crate) fn count(dir: &Dir, sql: &str) -> i64 {
    dir.look().query_row(sql, (), |row| row.get(0)).unwrap()
}

/// A registry with so many sessions, whose holder has released its lease.
pub(crate) async fn filled(dir: &Dir, count: usize) {
    let registry = dir.open();
    registry.apply(holds(&records("filled-", count))).await.unwrap();
    registry.release_lease().await.unwrap();
}
