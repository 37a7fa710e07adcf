//! Holders for the unit tests.

use std::{
    hash::{BuildHasher, RandomState},
    ops::Range,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::{holder::Holder, open::Settings};
use crate::{
    registry::{Change, HoldMode, Record},
    session::{GenerationId, Session, SessionId},
};

/// A directory for one test.
pub(super) struct Dir(PathBuf);

impl Dir {
    pub(super) fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("worker-{:016x}", RandomState::new().hash_one(0)));
        std::fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    pub(super) fn holder(&self) -> Holder {
        let (path, busy_timeout) = (self.0.join("sessions.db"), Duration::from_secs(60));
        let settings = Settings { path, busy_timeout, set_aside_damaged: false, deployment: None, hook: None };
        Holder::open(settings, busy_timeout).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts of sessions with these numbers.
pub(super) fn holds(numbers: Range<u64>) -> Vec<Change> {
    let hold = |n: u64| {
        let session = Session::new(SessionId::try_from(format!("s{n}").as_str()).unwrap());
        let record = Record::new(session, GenerationId::new(1, n), SystemTime::now());
        Change::Hold { record, mode: HoldMode::JoinOrCreate }
    };
    numbers.map(hold).collect()
}
