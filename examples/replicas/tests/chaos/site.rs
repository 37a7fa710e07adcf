//! The gateways, and what happened to them.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use crash::{Client, Entry, Error, EventLog, Server, Settings, TempDir, now};
use replicas::REPLICAS;
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, sleep},
};

use crate::store::Store;

/// How long gateways that do not start are tried again.
const STARTING: Duration = Duration::from_secs(60);

/// One line of the schedule.
#[derive(Clone, Debug)]
pub(crate) struct Deed {
    pub(crate) what: What,
    /// The name of the process; empty for the registry.
    pub(crate) process: String,
    /// From and until, in microseconds since 1970.
    pub(crate) from: u64,
    pub(crate) until: u64,
    pub(crate) note: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Started,
    /// It did not start, and is tried again.
    DidNotStart,
    Paused,
    Killed,
    /// SIGTERM, until its exit.
    Stopped,
    /// The registry did not answer.
    Blocked,
}

/// Three gateways on one registry.
pub(crate) struct Site {
    pub(crate) store: Store,
    dir: TempDir,
    seed: u64,
    replicas: Vec<AsyncMutex<Option<Server>>>,
    /// Name and client of those that run.
    clients: Mutex<Vec<Option<(String, Client)>>>,
    names: Mutex<Vec<String>>,
    deeds: Mutex<Vec<Deed>>,
}

/// How the processes exited that got a SIGTERM.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Exits {
    pub(crate) clean: usize,
    pub(crate) unclean: usize,
}

impl Site {
    pub(crate) async fn start(store: Store, seed: u64) -> Result<Self, Error> {
        let site = Self {
            store,
            dir: TempDir::new()?,
            seed,
            replicas: (0..REPLICAS).map(|_| AsyncMutex::default()).collect(),
            clients: Mutex::new(vec![None; REPLICAS]),
            names: Mutex::default(),
            deeds: Mutex::default(),
        };
        for index in 0..REPLICAS {
            site.start_one(index).await?;
        }
        Ok(site)
    }

    /// Starts the gateway with this index. While the registry is blocked, it may take several attempts.
    pub(crate) async fn start_one(&self, index: usize) -> Result<(), Error> {
        let mut place = self.replicas[index].lock().await;
        let server = self.process(char::from(b'a' + index as u8)).await?;
        let name = self.names.lock().unwrap().last().cloned().unwrap();
        self.clients.lock().unwrap()[index] = Some((name, server.client()));
        *place = Some(server);
        Ok(())
    }

    async fn process(&self, kind: char) -> Result<Server, Error> {
        let deadline = Instant::now() + STARTING;
        loop {
            let name = {
                let mut names = self.names.lock().unwrap();
                let name = format!("{kind}{}", names.len());
                names.push(name.clone());
                name
            };
            let settings = Settings {
                event_log: self.event_log(),
                registry: self.store.url(),
                name: name.clone(),
                fault: "small".to_owned(),
            };
            let from = now();
            let log = self.dir.file(&format!("{name}.log"));
            let program = Path::new(env!("CARGO_BIN_EXE_replicas"));
            match Server::start_with_log(program, &settings.to_args(), &log).await {
                Ok(server) => {
                    self.did(What::Started, &name, from, server.recovery.clone());
                    return Ok(server);
                }
                Err(error) => {
                    self.did(What::DidNotStart, &name, from, error.to_string());
                    if Instant::now() > deadline {
                        return Err(format!("{name} does not start: {error}").into());
                    }
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    fn event_log(&self) -> PathBuf {
        self.dir.file("events")
    }

    pub(crate) fn entries(&self) -> Result<Vec<Entry>, Error> {
        Ok(EventLog::open(&self.event_log(), "-")?.read()?)
    }

    /// When the registry was degraded, in the eyes of each process: from and until. Without an end if the process was killed.
    pub(crate) fn degraded(&self) -> Result<HashMap<String, Vec<(u64, u64)>>, Error> {
        let mut degraded = HashMap::<String, Vec<(u64, u64)>>::new();
        for line in fs::read_to_string(crash::health_log(&self.event_log()))?.lines() {
            let words: Vec<_> = line.split(' ').collect();
            let [process, state, at] = words[..] else {
                return Err(format!("not a line of a health log: {line}").into());
            };
            let (times, at) = (degraded.entry(process.to_owned()).or_default(), at.parse()?);
            match (state, times.last_mut()) {
                ("up", Some((_, until))) => *until = at,
                _ => times.push((at, u64::MAX)),
            }
        }
        Ok(degraded)
    }

    pub(crate) fn deeds(&self) -> Vec<Deed> {
        self.deeds.lock().unwrap().clone()
    }

    /// Writes down what happened from then until now.
    pub(crate) fn did(&self, what: What, process: &str, from: u64, note: String) {
        self.add(Deed { what, process: process.to_owned(), from, until: now(), note });
    }

    pub(crate) fn add(&self, deed: Deed) {
        self.deeds.lock().unwrap().push(deed);
    }

    /// The clients of the gateways that should answer.
    pub(crate) fn clients(&self) -> Vec<(String, Client)> {
        self.clients.lock().unwrap().iter().flatten().cloned().collect()
    }

    fn take_out(&self, index: usize) -> String {
        self.clients.lock().unwrap()[index].take().map(|(name, _)| name).unwrap_or_default()
    }

    /// SIGSTOP, and SIGCONT after this time.
    pub(crate) async fn pause(&self, index: usize, length: Duration) -> Result<(), Error> {
        let place = self.replicas[index].lock().await;
        let Some(server) = &*place else { return Ok(()) };
        let name = self.clients.lock().unwrap()[index].as_ref().map(|(name, _)| name.clone()).unwrap_or_default();
        let from = now();
        server.signal("STOP").await?;
        sleep(length).await;
        server.signal("CONT").await?;
        self.did(What::Paused, &name, from, format!("{length:?}"));
        Ok(())
    }

    /// SIGKILL.
    pub(crate) async fn kill(&self, index: usize) -> Result<(), Error> {
        let mut place = self.replicas[index].lock().await;
        let Some(server) = place.take() else { return Ok(()) };
        let from = now();
        server.kill().await?;
        let name = self.take_out(index);
        self.did(What::Killed, &name, from, String::new());
        Ok(())
    }

    /// SIGTERM; returns whether it exited with 0.
    pub(crate) async fn stop(&self, index: usize) -> Result<Option<bool>, Error> {
        let mut place = self.replicas[index].lock().await;
        let Some(server) = place.take() else { return Ok(None) };
        let (name, from) = (self.take_out(index), now());
        let gone = server.terminate().await?;
        self.did(What::Stopped, &name, from, format!("exit code {:?}; {}", gone.code, gone.report.trim()));
        Ok(Some(gone.code == Some(0)))
    }

    pub(crate) async fn stop_all(&self) -> Result<Exits, Error> {
        let mut exits = Exits::default();
        for index in 0..REPLICAS {
            match self.stop(index).await? {
                Some(true) => exits.clean += 1,
                Some(false) => exits.unclean += 1,
                None => {}
            }
        }
        Ok(exits)
    }

    /// Starts one process after the other until one finds nothing to recover. Returns how many it took; none if there is
    /// no end.
    pub(crate) async fn settle(&self) -> Option<usize> {
        for n in 1..=10 {
            // Longer than any lease.
            sleep(self.store.lease().unwrap_or_default() * 3 / 2).await;
            let server = self.process('z').await.unwrap();
            let found_nothing = server.recovery.contains(" 0 ends found");
            let (name, from) = (self.names.lock().unwrap().last().cloned().unwrap(), now());
            let gone = server.terminate().await.unwrap();
            self.did(What::Stopped, &name, from, format!("exit code {:?}; {}", gone.code, gone.report.trim()));
            if found_nothing {
                return Some(n);
            }
        }
        None
    }

    /// Copies everything to a directory that stays.
    pub(crate) fn keep(&self, report: &str) -> Result<PathBuf, Error> {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{:?}-{}", self.store.kind(), self.seed));
        fs::create_dir_all(&to)?;
        for file in fs::read_dir(self.dir.path())? {
            let file = file?;
            fs::copy(file.path(), to.join(file.file_name()))?;
        }
        fs::write(to.join("report"), report)?;
        Ok(to)
    }
}
