//! A store that outlives its processes, and the assertions on the event log.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    time::Duration,
};

use crash::{Entry, EventLog, Kind, PATIENCE, RedisServer, Server, Settings, TempDir};
use tokio::time::{Instant, sleep};

pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_crash"))
}

/// The registry of a test.
#[derive(Clone, Copy, Debug)]
pub(crate) enum On {
    Sqlite,
    Redis,
}

/// A directory, and a Redis server if the test needs one.
pub(crate) struct Site {
    dir: TempDir,
    redis: Option<RedisServer>,
}

impl Site {
    pub(crate) async fn new(on: On) -> Self {
        let redis = match on {
            On::Sqlite => None,
            On::Redis => Some(RedisServer::start().await.unwrap()),
        };
        Self { dir: TempDir::new().unwrap(), redis }
    }

    pub(crate) fn settings(&self, name: &str, fault: &str) -> Settings {
        let registry = match &self.redis {
            Some(redis) => redis.url(),
            None => format!("sqlite:{}", self.dir.file("sessions.db").display()),
        };
        Settings { event_log: self.dir.file("event_log"), registry, name: name.to_owned(), fault: fault.to_owned() }
    }

    pub(crate) async fn start(&self, name: &str, fault: &str) -> Server {
        Server::start(program(), &self.settings(name, fault).to_args()).await.unwrap()
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        EventLog::open(&self.dir.file("event_log"), "-").unwrap().read().unwrap()
    }

    pub(crate) fn ends(&self) -> Vec<Entry> {
        self.entries().into_iter().filter(|entry| entry.kind == Kind::End).collect()
    }

    /// Starts a process that delivers the pending ends; on Redis after the leases of the killed processes expire.
    pub(crate) async fn settle(&self, ids: &[String]) {
        let server = self.start("settler", "-").await;
        self.until_each_has_an_end(ids).await;
        let gone = server.terminate().await.unwrap();
        assert_eq!(gone.code, Some(0), "{}", gone.report);
        // A second recovery finds nothing.
        let ends = self.ends().len();
        let server = self.start("late", "-").await;
        assert!(server.recovery.contains(" 0 ends found"), "{}", server.recovery);
        assert_eq!(server.terminate().await.unwrap().code, Some(0));
        assert_eq!(self.ends().len(), ends);
    }

    /// Waits until every session has its end.
    pub(crate) async fn until_each_has_an_end(&self, ids: &[String]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended: HashSet<_> = self.ends().into_iter().map(|end| end.id).collect();
            match ids.iter().find(|id| !ended.contains(*id)) {
                None => return,
                Some(id) => assert!(Instant::now() < deadline, "{id} has no end"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asserts that every id has an end, and that all its ends have one generation. Returns the number of repeated
    /// ends.
    pub(crate) fn assert_each_has_its_end(&self, ids: &[String]) -> usize {
        let mut ends = HashMap::<_, Vec<_>>::new();
        for end in self.ends() {
            ends.entry(end.id.clone()).or_default().push(end);
        }
        let mut repeated = 0;
        for id in ids {
            let ends = ends.get(id).unwrap_or_else(|| panic!("{id} has no end"));
            let events: HashSet<_> = ends.iter().map(|end| &end.event).collect();
            assert_eq!(events.len(), 1, "{ends:?}");
            // One process never delivers an end twice. Only a crash between the hook and the record repeats it.
            let writers: HashSet<_> = ends.iter().map(|end| &end.writer).collect();
            assert_eq!(writers.len(), ends.len(), "{ends:?}");
            repeated += usize::from(ends.len() > 1);
        }
        repeated
    }
}
