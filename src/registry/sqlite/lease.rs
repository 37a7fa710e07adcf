//! Leases: exclusive locks on small files in one directory beside the database.
//!
//! The system frees the lock when its process ends, however it ends. Two rules make the files safe to find and to remove:
//! each is created and locked, and tried and removed, by whoever holds the lock on the one file `LOCK`; and their names
//! are random, since in a container every process may have the number 1.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    hash::{BuildHasher, RandomState},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

const LOCK: &str = "LOCK";
const SUFFIX: &str = ".lease";

/// The directory.
#[derive(Debug)]
pub(super) struct Leases {
    dir: PathBuf,
}

/// The lock on `LOCK`.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    lock: File,
}

/// The lock of one lease: one's own, or that of a dead holder while it is recovered.
#[derive(Debug)]
pub(super) struct Lease {
    name: String,
    path: PathBuf,
    file: File,
}

/// What a look at a lease has shown.
#[derive(Debug)]
pub(super) enum LeaseProbe {
    Alive,
    /// Its holder is dead; the lock is ours now, if there was still a file.
    Expired(Option<Lease>),
}

impl Leases {
    /// Beside this database. Nothing is created yet.
    pub(super) fn for_database(database: &Path) -> Self {
        let mut dir = database.as_os_str().to_owned();
        dir.push("-leases");
        Self { dir: dir.into() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes the lock on `LOCK`, and makes what is missing.
    pub(super) fn guard(&self, patience: Duration) -> io::Result<DirectoryLock> {
        self.create_dir()?;
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.dir.join(LOCK))?;
        let begun = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(DirectoryLock { lock }),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if begun.elapsed() < patience => thread::sleep(Duration::from_millis(2)),
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "another process does not let go of `LOCK`"));
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

    /// A new lease.
    pub(super) fn create(&self, _: &DirectoryLock) -> io::Result<Lease> {
        let half = || RandomState::new().hash_one(std::process::id());
        let name = format!("{:016x}{:016x}", half(), half());
        let path = self.path_of(&name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        file.try_lock()?;
        Ok(Lease { name, path, file })
    }

    /// Whether the holder of the lease lives.
    pub(super) fn probe(&self, _: &DirectoryLock, name: &str) -> io::Result<LeaseProbe> {
        // The name comes from the database, and must not lead anywhere else.
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

    /// Removes the files of those who died before they came to be known to the database.
    pub(super) fn sweep(&self, guard: &DirectoryLock, is_known: impl Fn(&str) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)) else { continue };
            if is_known(name) {
                continue;
            }
            if let LeaseProbe::Expired(Some(lease)) = self.probe(guard, name)? {
                lease.remove(guard);
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

    /// False if somebody has removed the file: the others take its holder for dead then.
    pub(super) fn is_there(&self) -> bool {
        self.path.exists()
    }

    /// Lets go, and removes the file.
    pub(super) fn remove(self, _: &DirectoryLock) {
        // One that stays behind is removed by a later start.
        let _ = fs::remove_file(&self.path);
    }
}

// Closing would do, but for a child that is between fork and exec and has the file open too.
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
