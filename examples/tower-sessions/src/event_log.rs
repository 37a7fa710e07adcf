//! The consumer of the events: prints them, stores them, and checks the guarantee.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tower_session_end::{BoxError, GenerationId, SessionEnd, SessionHook, SessionStart};

/// Every event, in the order in which the hooks were called. All clones share one log.
#[derive(Clone, Debug, Default)]
pub struct EventLog {
    kept: Arc<Mutex<Kept>>,
    aloud: bool,
}

#[derive(Debug, Default)]
struct Kept {
    starts: Vec<SessionStart>,
    ends: Vec<SessionEnd>,
}

impl EventLog {
    /// A log that also prints each event.
    #[must_use]
    pub fn aloud() -> Self {
        Self { aloud: true, ..Self::default() }
    }

    /// The starts, in order.
    #[must_use]
    pub fn starts(&self) -> Vec<SessionStart> {
        self.with(|kept| kept.starts.clone())
    }

    /// The ends, in order.
    #[must_use]
    pub fn ends(&self) -> Vec<SessionEnd> {
        self.with(|kept| kept.ends.clone())
    }

    /// The reasons of the ends of a session, in order.
    #[must_use]
    pub fn reasons(&self, id: &str) -> Vec<String> {
        self.ends().iter().filter(|end| end.session.id == id).map(|end| end.reason.to_string()).collect()
    }

    /// The number of ends per reason, for example `compaction 1, shutdown 2`.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut reasons: Vec<_> = self.ends().iter().map(|end| end.reason.to_string()).collect();
        reasons.sort();
        let counts = reasons.chunk_by(|a, b| a == b).map(|equal| format!("{} {}", equal[0], equal.len()));
        counts.collect::<Vec<_>>().join(", ")
    }

    /// Checks the guarantee of the crate: one start and one end for each generation.
    ///
    /// # Errors
    ///
    /// Names the first generation for which it does not hold.
    pub fn check(&self) -> Result<(), BoxError> {
        let mut seen: HashMap<GenerationId, (u32, u32)> = HashMap::new();
        self.starts().iter().for_each(|start| seen.entry(start.generation).or_default().0 += 1);
        self.ends().iter().for_each(|end| seen.entry(end.generation).or_default().1 += 1);
        match seen.iter().find(|(_, counts)| **counts != (1, 1)) {
            Some((event, (starts, ends))) => {
                Err(format!("generation {event} had {starts} session_start and {ends} session_end").into())
            }
            None => Ok(()),
        }
    }

    fn with<T>(&self, read: impl FnOnce(&mut Kept) -> T) -> T {
        read(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl SessionHook for EventLog {
    async fn session_start(&self, start: SessionStart) -> Result<(), BoxError> {
        if self.aloud {
            // A reader of the output could log in with the whole id.
            let id = start.session.id.redacted();
            match &start.resumed_from {
                Some(old) => println!("session_start  {id}  resumed from {}", old.redacted()),
                None => println!("session_start  {id}"),
            }
        }
        self.with(|kept| kept.starts.push(start));
        Ok(())
    }

    async fn session_end(&self, end: SessionEnd) -> Result<(), BoxError> {
        if self.aloud {
            let (id, reason) = (end.session.id.redacted(), end.reason);
            match &end.next {
                Some(next) => println!("session_end    {id}  {reason} into {}", next.id.redacted()),
                None => println!("session_end    {id}  {reason}, after {} requests", end.requests),
            }
        }
        self.with(|kept| kept.ends.push(end));
        Ok(())
    }
}
