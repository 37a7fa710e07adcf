//! Clients: they create sessions, move them between the gateways, delete, compact and abandon them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crash::{Client, Error, now};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{Random, site::Site};

const CLIENTS: usize = 24;
/// How long a client waits for an answer. A gateway may be paused.
const PATIENCE: Duration = Duration::from_secs(2);

/// A request, and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) what: &'static str,
    /// The id of the request, or that of the response to a creation; empty if there was none.
    pub(crate) id: String,
    /// The id that the response made.
    pub(crate) made: Option<String>,
    pub(crate) process: String,
    pub(crate) from: u64,
    pub(crate) until: u64,
    /// `ok`, or why not.
    pub(crate) outcome: String,
}

/// What the clients share.
#[derive(Default)]
pub(crate) struct Load {
    requests: Mutex<Vec<Request>>,
    turn: AtomicUsize,
    over: AtomicBool,
}

impl Load {
    pub(crate) fn start(self: &Arc<Self>, site: &Arc<Site>, random: &mut Random) -> Vec<JoinHandle<()>> {
        let start = |_| {
            let (load, site, random) = (Arc::clone(self), Arc::clone(site), random.fork());
            tokio::spawn(async move { load.client(&site, random).await })
        };
        (0..CLIENTS).map(start).collect()
    }

    pub(crate) fn stop(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    async fn client(&self, site: &Site, mut random: Random) {
        while !self.over.load(Ordering::SeqCst) {
            if self.session(site, &mut random).await.is_none() {
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// The life of one session, as its client sees it. `None` if it was not made.
    async fn session(&self, site: &Site, random: &mut Random) -> Option<()> {
        let mut id = self.ask(site, "open", None).await?;
        for _ in 0..1 + random.below(10) {
            sleep(random.millis(0, 150)).await;
            match random.below(16) {
                // Abandoned: idle, or evicted.
                0 => return Some(()),
                // Deleted. Another client may use the id once more.
                1 | 2 => {
                    self.ask(site, "end", Some(&id)).await;
                    if random.one_in(3) {
                        sleep(random.millis(0, 300)).await;
                        self.ask(site, "say", Some(&id)).await;
                    }
                    return Some(());
                }
                // Compacted; perhaps used at the same time.
                3 => {
                    let late = async { if random.one_in(3) { self.ask(site, "say", Some(&id)).await } else { None } };
                    let (next, _) = tokio::join!(self.ask(site, "compact", Some(&id)), late);
                    id = next.unwrap_or(id);
                }
                // About as long as it takes to become idle.
                4 => sleep(random.millis(2400, 3400)).await,
                // Deleted and used at the same time.
                5 if random.one_in(3) => {
                    tokio::join!(self.ask(site, "end", Some(&id)), self.ask(site, "say", Some(&id)));
                    return Some(());
                }
                // Two gateways at once.
                6..=8 => {
                    tokio::join!(self.ask(site, "say", Some(&id)), self.ask(site, "say", Some(&id)));
                }
                _ => {
                    self.ask(site, "say", Some(&id)).await;
                }
            }
        }
        Some(())
    }

    /// Sends one request to the next gateway. Returns the id that the response made.
    async fn ask(&self, site: &Site, what: &'static str, id: Option<&str>) -> Option<String> {
        let clients = site.clients();
        if clients.is_empty() {
            return None;
        }
        let (process, client) = &clients[self.turn.fetch_add(1, Ordering::Relaxed) % clients.len()];
        let from = now();
        let answer = timeout(PATIENCE, send(client, what, id)).await.unwrap_or_else(|_| Err("no answer".into()));
        let (made, outcome) = match answer {
            Ok(made) => (made, "ok".to_owned()),
            Err(error) => (None, error.to_string()),
        };
        let id = id.or(made.as_deref()).unwrap_or_default().to_owned();
        let request = Request { what, id, made: made.clone(), process: process.clone(), from, until: now(), outcome };
        self.requests.lock().unwrap().push(request);
        made
    }
}

async fn send(client: &Client, what: &str, id: Option<&str>) -> Result<Option<String>, Error> {
    Ok(match (what, id) {
        ("say", Some(id)) => client.say(id).await.map(|()| None)?,
        ("end", Some(id)) => client.end(id).await.map(|()| None)?,
        ("compact", Some(id)) => Some(client.compact(id).await?),
        _ => Some(client.open().await?),
    })
}
