//! A directory for one test, with a registry in it.

use std::{
    fs::{self, File, TryLockError},
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tower_session_end::registry::{SqliteRegistry, conformance::Store};

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

    /// How many leases are held at present.
    pub(crate) fn living(&self) -> usize {
        let leases = fs::read_dir(self.leases()).unwrap().map(|entry| entry.unwrap().path());
        let leases = leases.filter(|path| path.extension().is_some_and(|extension| extension == "lease"));
        // One may go while it is looked at.
        leases.filter(|path| File::open(path).is_ok_and(|file| is_locked(&file))).count()
    }

    /// Waits until there are so many.
    pub(crate) fn wait_for_living(&self, count: usize) {
        let begun = Instant::now();
        while self.living() != count {
            assert!(begun.elapsed() < Duration::from_secs(20), "{} leases are held, not {count}", self.living());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn is_locked(file: &File) -> bool {
    match file.try_lock_shared() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(error)) => panic!("{error}"),
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Store for Dir {
    type Holder = SqliteRegistry;

    async fn holder(&self) -> SqliteRegistry {
        self.open()
    }

    /// As SIGKILL would: the lock goes, and nothing else is done.
    async fn kill(&self, holder: SqliteRegistry) {
        let before = self.living();
        drop(holder);
        self.wait_for_living(before - 1);
    }
}
