//! The schedule: what happens to processes and registry, drawn from a seed.

use std::{sync::Arc, time::Duration};

use crash::LEASE;
use replicas::REPLICAS;
use tokio::time::{Instant, sleep};

use crate::{
    Random,
    site::{Deed, Site, What},
};

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `pause`: SIGSTOP for less than a lease.
    Pause,
    /// `long`: SIGSTOP for more than a lease.
    Long,
    /// `kill`: SIGKILL, and a new process.
    Kill,
    /// `term`: SIGTERM, and a new process.
    Term,
    /// `store`: the registry does not answer.
    Store,
}

const FAULTS: [(&str, Fault); 5] = [
    ("pause", Fault::Pause),
    ("long", Fault::Long),
    ("kill", Fault::Kill),
    ("term", Fault::Term),
    ("store", Fault::Store),
];

/// The faults of a run.
pub(crate) struct Faults(Vec<Fault>);

impl Faults {
    /// Those with these names, or all.
    pub(crate) fn new(chosen: &str) -> Self {
        let is_chosen = |name| chosen.is_empty() || chosen.split(',').any(|one| one == name);
        Self(FAULTS.iter().filter(|(name, _)| is_chosen(*name)).map(|(_, fault)| *fault).collect())
    }

    /// Until the time is over and every fault has ended.
    pub(crate) async fn run(&self, site: &Arc<Site>, mut random: Random, length: Duration) {
        let deadline = Instant::now() + length;
        let processes: Vec<_> = self.0.iter().copied().filter(|fault| *fault != Fault::Store).collect();
        let store = self.0.contains(&Fault::Store).then(|| random.fork());
        tokio::join!(attack_processes(site, processes, random.fork(), deadline), attack_store(site, store, deadline));
    }
}

async fn attack_processes(site: &Site, faults: Vec<Fault>, mut random: Random, deadline: Instant) {
    while wait(random.millis(200, 2500), deadline).await {
        if faults.is_empty() {
            continue;
        }
        let index = random.below(REPLICAS as u64) as usize;
        let lease = LEASE.as_millis() as u64;
        match faults[random.below(faults.len() as u64) as usize] {
            Fault::Pause => site.pause(index, random.millis(lease / 5, lease * 4 / 5)).await.unwrap(),
            Fault::Long => site.pause(index, random.millis(lease * 5 / 4, lease * 5 / 2)).await.unwrap(),
            Fault::Kill => {
                site.kill(index).await.unwrap();
                sleep(random.millis(0, 1500)).await;
                site.start_one(index).await.unwrap();
            }
            Fault::Term => {
                site.stop(index).await.unwrap();
                site.start_one(index).await.unwrap();
            }
            Fault::Store => unreachable!("has its own lane"),
        }
    }
}

async fn attack_store(site: &Site, random: Option<Random>, deadline: Instant) {
    let Some(mut random) = random else { return };
    while wait(random.millis(500, 4000), deadline).await {
        let (way, length) = (random.below(6), random.millis(500, 4000));
        let (how, [from, until]) = site.store.block(way, length).await.unwrap();
        let note = format!("{how} for {length:?}");
        site.add(Deed { what: What::Blocked, process: String::new(), from, until, note });
    }
}

/// False if the time is over before.
async fn wait(length: Duration, deadline: Instant) -> bool {
    let until = Instant::now() + length;
    tokio::time::sleep_until(until.min(deadline)).await;
    until < deadline
}
