//! A store that outlives its processes, and what must hold of the diary.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use crash::{Diary, Entry, Kind, RedisServer, Server, Settings, TempDir};

pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_crash"))
}

/// Which registry a test is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum On {
    Sqlite,
    Redis,
}

/// A directory, and a Redis where one is needed.
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

    pub(crate) fn settings(&self, name: &str, mood: &str) -> Settings {
        let registry = match &self.redis {
            Some(redis) => redis.url(),
            None => format!("sqlite:{}", self.dir.file("sessions.db").display()),
        };
        Settings { diary: self.dir.file("diary"), registry, name: name.to_owned(), mood: mood.to_owned() }
    }

    pub(crate) async fn start(&self, name: &str, mood: &str) -> Server {
        Server::start(program(), &self.settings(name, mood)).await.unwrap()
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        Diary::open(&self.dir.file("diary"), "-").unwrap().read().unwrap()
    }

    pub(crate) fn ends(&self) -> Vec<Entry> {
        self.entries().into_iter().filter(|entry| entry.kind == Kind::End).collect()
    }

    /// A process that starts, finds what is owed, and stops; until there is nothing more. A lease may have to run out
    /// first.
    pub(crate) async fn settle(&self) {
        for n in 0..20 {
            let server = self.start(&format!("settler-{n}"), "-").await;
            let found_none = server.recovery.contains(" 0 ends found");
            let gone = server.terminate().await.unwrap();
            assert_eq!(gone.code, Some(0), "{}", gone.report);
            if found_none && n > 0 {
                return;
            }
            if self.redis.is_some() {
                // The lease of the killed one: two seconds.
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            }
        }
        panic!("there is always something left");
    }

    /// Every id has an end, and all its ends are one generation's. Says how many were delivered more than once.
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
            // Never twice by one process: only a crash between the hook and the record repeats it.
            let writers: HashSet<_> = ends.iter().map(|end| &end.writer).collect();
            assert_eq!(writers.len(), ends.len(), "{ends:?}");
            repeated += usize::from(ends.len() > 1);
        }
        repeated
    }
}
