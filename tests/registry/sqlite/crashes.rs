//! Real processes on one file, and SIGKILL.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::Duration,
};

use tower_session_end::{
    EndReason, GenerationId,
    registry::{Orphan, Registry},
};

use super::{
    process::Process,
    support::{Dir, take_over_all},
};
use crate::support::random::{Random, storm_seeds};

fn by_reason(orphans: &[Orphan]) -> BTreeMap<EndReason, usize> {
    let mut counts = BTreeMap::new();
    for orphan in orphans {
        *counts.entry(orphan.end.reason).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn g15_a_survivor_finds_what_a_killed_process_owed() {
    let dir = Dir::new();
    let survivor = dir.open();
    let mut process = Process::start("hold", &dir.file());
    process.expect("holds");
    assert_eq!(survivor.claim_orphans(100).await.unwrap(), [], "its process lives");
    process.kill();
    let orphans = take_over_all(&survivor).await;
    assert_eq!(by_reason(&orphans), BTreeMap::from([(EndReason::Lost, 10), (EndReason::Restart, 5)]));
    assert_eq!(dir.lease_files().len(), 1, "the dead one's lease is removed");
}

#[tokio::test]
async fn g15_the_next_start_finds_what_a_killed_process_owed() {
    let dir = Dir::new();
    let mut process = Process::start("hold", &dir.file());
    process.expect("holds");
    process.kill();
    let orphans = take_over_all(&dir.open()).await;
    assert_eq!(by_reason(&orphans), BTreeMap::from([(EndReason::Lost, 10), (EndReason::Restart, 5)]));
}

/// What the process had said before it was killed.
#[derive(Default)]
struct Said {
    by_word: BTreeMap<String, BTreeSet<GenerationId>>,
}

impl Said {
    fn new(lines: &[String]) -> Self {
        let mut said = Self::default();
        for line in lines {
            let (word, generation) = line.split_once(' ').unwrap();
            said.by_word.entry(word.to_owned()).or_default().insert(generation.parse().unwrap());
        }
        said
    }

    fn contains(&self, word: &str, generation: GenerationId) -> bool {
        self.by_word.get(word).is_some_and(|ids| ids.contains(&generation))
    }

    /// What a survivor may find of the event; none if it may be that there is nothing to find.
    fn check(&self, generation: GenerationId, found: Option<EndReason>) {
        let is = |word| self.contains(word, generation);
        let allowed: &[Option<EndReason>] = if is("delivered") {
            &[None]
        } else if is("delivering") {
            &[None, Some(EndReason::Deleted)]
        } else if is("ended") {
            &[Some(EndReason::Deleted)]
        } else if is("ending") {
            &[Some(EndReason::Deleted), Some(EndReason::Lost)]
        } else if is("held") {
            &[Some(EndReason::Lost)]
        } else {
            &[None, Some(EndReason::Lost)]
        };
        assert!(allowed.contains(&found), "{generation}: {found:?}, and allowed were {allowed:?}");
    }
}

#[tokio::test]
async fn g15_sigkill_under_load_loses_nothing_that_was_answered() {
    for seed in storm_seeds() {
        println!("STORM_SEED={seed}");
        let mut random = Random::new(seed);
        let dir = Dir::new();
        let survivor = dir.open();
        // Others write at the same time, and live on.
        let living = [Process::start("churn", &dir.file()), Process::start("churn", &dir.file())];
        let mut process = Process::start("churn", &dir.file());
        let mut lines = vec![process.hear().unwrap()];
        thread::sleep(Duration::from_micros(random.below(300_000)));
        process.kill();
        lines.extend(process.hear_all());
        let orphans = take_over_all(&survivor).await;
        let said = Said::new(&lines);
        let mut found = BTreeMap::new();
        for orphan in &orphans {
            assert_eq!(orphan.attempts, 0, "no hook was called");
            let generation = orphan.record.generation;
            assert!(said.contains("holding", generation), "it was somebody else's: {orphan:?}");
            assert!(found.insert(generation, orphan.end.reason).is_none(), "twice: {orphan:?}");
        }
        for &generation in &said.by_word["holding"] {
            said.check(generation, found.get(&generation).copied());
        }
        drop(living);
    }
}

/// Tells it to go on until there is nothing, or so often.
fn claims(process: &mut Process, at_most: usize) -> Vec<String> {
    let mut claims = Vec::new();
    for _ in 0..at_most {
        process.go();
        let line = process.hear().unwrap();
        if line == "nothing" {
            break;
        }
        claims.extend(line.split(' ').map(str::to_owned));
    }
    claims
}

#[test]
fn g15_of_starters_that_race_to_recover_each_end_is_claimed_by_one() {
    let dir = Dir::new();
    let mut dead = Process::start("hold", &dir.file());
    dead.expect("holds");
    dead.kill();
    let starters = [(); 3].map(|()| Process::start("recover", &dir.file()));
    let claims = starters.map(|mut starter| {
        thread::spawn(move || {
            starter.expect("ready");
            let claims = claims(&mut starter, 100);
            (starter, claims)
        })
    });
    // None of them ends before the others are through: what it has claimed would be found again.
    let (starters, claims): (Vec<_>, Vec<_>) = claims.into_iter().map(|claims| claims.join().unwrap()).unzip();
    let mut claims: Vec<_> = claims.into_iter().flatten().collect();
    let mut starters = starters;
    for starter in &mut starters {
        // One may have been told "nothing" while another was at it.
        claims.extend(self::claims(starter, 100));
    }
    assert_eq!(claims.len(), 15, "{claims:?}");
    assert!(claims.iter().all(|claim| claim.ends_with("=0")), "{claims:?}");
    claims.sort();
    claims.dedup();
    assert_eq!(claims.len(), 15);
}

#[tokio::test]
async fn g15_what_a_killed_recoverer_had_claimed_is_found_again() {
    let dir = Dir::new();
    let mut dead = Process::start("hold", &dir.file());
    dead.expect("holds");
    dead.kill();
    let mut recoverer = Process::start("recover", &dir.file());
    recoverer.expect("ready");
    let claimed = claims(&mut recoverer, 3);
    assert_eq!(claimed.len(), 9);
    let survivor = dir.open();
    assert_eq!(survivor.claim_orphans(100).await.unwrap(), [], "it is being recovered");
    recoverer.kill();
    let orphans = take_over_all(&survivor).await;
    assert_eq!(by_reason(&orphans), BTreeMap::from([(EndReason::Lost, 10), (EndReason::Restart, 5)]));
    for orphan in orphans {
        assert_eq!(orphan.attempts, 0, "a claim is no attempt: {orphan:?}");
    }
}

#[test]
fn g16_of_processes_that_share_sessions_the_last_that_lets_go_is_told_so() {
    let dir = Dir::new();
    let mut sharing = [(); 4].map(|()| Process::start("share", &dir.file()));
    for process in &mut sharing {
        process.expect("ready");
    }
    for process in &mut sharing {
        process.go();
    }
    let mut answers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for process in &mut sharing {
        for line in process.hear_all() {
            let (id, answer) = line.split_once(' ').unwrap();
            answers.entry(id.to_owned()).or_default().push(answer.to_owned());
        }
    }
    assert_eq!(answers.len(), 200);
    for (id, mut answers) in answers {
        answers.sort();
        assert_eq!(answers, ["HeldElsewhere", "HeldElsewhere", "HeldElsewhere", "Owned { requests: 4 }"], "{id}");
    }
}

#[cfg(unix)]
mod unix {
    use std::process::Command;

    use super::*;

    fn signal(name: &str, id: &str) {
        assert!(Command::new("kill").args([name, id]).status().unwrap().success());
    }

    #[tokio::test]
    async fn g16_a_process_that_is_paused_keeps_its_lease() {
        let dir = Dir::new();
        let survivor = dir.open();
        let mut process = Process::start("hold", &dir.file());
        process.expect("holds");
        signal("-STOP", &process.id().to_string());
        assert_eq!(survivor.claim_orphans(100).await.unwrap(), []);
        process.kill();
        assert_eq!(take_over_all(&survivor).await.len(), 15);
    }

    #[tokio::test]
    async fn g15_a_child_of_the_killed_process_does_not_keep_its_lease() {
        let dir = Dir::new();
        let mut process = Process::start("hold, with a child", &dir.file());
        let child = process.hear().unwrap();
        process.expect("holds");
        process.kill();
        let orphans = take_over_all(&dir.open()).await;
        signal("-KILL", &child);
        assert_eq!(orphans.len(), 15);
    }
}
