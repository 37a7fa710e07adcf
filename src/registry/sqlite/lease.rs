//! Leases: exclusive locks on small files in one directory beside the database.
//!
//! The system releases the lock when the process exits or is killed. A lease enters the database once its file is locked, so
//! whoever finds the name there and the file free or missing knows that the holder is dead. The file names are random: they are
//! never used again, and in a container every process may have the process id 1.
//!
//! The file `LOCK` is for processes that create or replace the database. Nothing else waits for it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    hash::{BuildHasher, RandomState},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How often a new lease may meet a sweep.
const CREATE_ATTEMPTS: usize = 100;

const LOCK: &str = "LOCK";
const SUFFIX: &str = ".lease";

/// The directory of the leases.
#[derive(Debug)]
pub(super) struct Leases {
    dir: PathBuf,
}

/// The lock on `LOCK`: no other process creates or replaces the database.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    lock: File,
}

/// A locked lease: that of this holder, or that of a dead one until it is adopted.
#[derive(Debug)]
pub(super) struct Lease {
    name: String,
    path: PathBuf,
    file: File,
}

/// The state of a lease.
#[derive(Debug)]
pub(super) enum LeaseProbe {
    Alive,
    /// Its holder is dead. This process now holds the lock, if the file still existed.
    Expired(Option<Lease>),
}

impl Leases {
    /// The directory beside this database. Nothing is created yet.
    pub(super) fn for_database(database: &Path) -> Self {
        let mut dir = database.as_os_str().to_owned();
        dir.push("-leases");
        Self { dir: dir.into() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Locks `LOCK`. Creates it and the directory if they are missing.
    pub(super) fn lock_directory(&self, timeout: Duration) -> io::Result<DirectoryLock> {
        self.create_dir()?;
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.dir.join(LOCK))?;
        let started = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(DirectoryLock { lock }),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if started.elapsed() < timeout => thread::sleep(Duration::from_millis(2)),
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "another process does not release `LOCK`"));
                }
            }
        }
    }

    fn create_dir(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Creates a lease with a random name.
    pub(super) fn create(&self) -> io::Result<Lease> {
        self.create_dir()?;
        for _ in 0..CREATE_ATTEMPTS {
            let half = || RandomState::new().hash_one(std::process::id());
            let name = format!("{:016x}{:016x}", half(), half());
            let path = self.path_of(&name);
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                // A sweep has taken it for that of a dead process, and removes it.
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let lease = Lease { name, path, file };
            if lease.exists() {
                return Ok(lease);
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "other processes remove each new lease"))
    }

    /// Checks whether the holder of the lease is alive.
    pub(super) fn probe(&self, name: &str) -> io::Result<LeaseProbe> {
        // The name comes from the database and must not leave the directory.
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(LeaseProbe::Expired(None));
        }
        let path = self.path_of(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LeaseProbe::Expired(None)),
            Err(error) => return Err(error),
        };
        match file.try_lock() {
            Ok(()) => Ok(LeaseProbe::Expired(Some(Lease { name: name.to_owned(), path, file }))),
            Err(TryLockError::WouldBlock) => Ok(LeaseProbe::Alive),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Removes the files of processes that died before they entered the database, or that have been adopted.
    pub(super) fn sweep(&self, is_known: impl Fn(&str) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)) else { continue };
            if is_known(name) {
                continue;
            }
            if let LeaseProbe::Expired(Some(lease)) = self.probe(name)? {
                lease.remove();
            }
        }
        Ok(())
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{SUFFIX}"))
    }
}

impl Lease {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// False if the file was removed. The other holders then consider this one dead.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Releases the lock and removes the file.
    pub(super) fn remove(self) {
        // After an error a later start removes it.
        let _ = fs::remove_file(&self.path);
    }
}

// Closing the file is not enough: a child between fork and exec also has it open.
impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}
