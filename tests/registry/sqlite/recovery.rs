//! Recovery in pages: its size, its claims, and what happens beside it.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use tower_session_end::{
    EndReason, GenerationId,
    registry::{Applied, Change, HoldMode, Orphan, Record, Registry, SqliteRegistry},
};

use super::support::{
    Commits, Dir, count, delivered, die, end, hold, holds, ids, record, records, release, take_over_all,
};

/// The most holds that one call may delete: four pages.
const ROWS_A_CALL: i64 = 4000;

async fn start_all(registry: &SqliteRegistry, records: &[Record]) {
    for some in records.chunks(1000) {
        let answers = registry.apply(holds(some)).await.unwrap();
        assert!(answers.iter().all(|answer| *answer == Applied::Created));
    }
}

/// Durations of calls.
#[derive(Default)]
struct Calls {
    count: u32,
    longest: Duration,
}

impl Calls {
    async fn time<T>(&mut self, call: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let answer = call.await;
        self.count += 1;
        self.longest = self.longest.max(started.elapsed());
        answer
    }
}

impl std::fmt::Display for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} calls, the longest {:.1?}", self.count, self.longest)
    }
}

async fn recover_what_one_held(sessions: usize) {
    let dir = Dir::new();
    let (survivor, dead) = (dir.open(), dir.open());
    start_all(&dead, &records("s", sessions)).await;
    die(&dir, dead);
    let commits = Commits::of(&dir);
    let (started, before) = (Instant::now(), commits.count());
    let (mut calls, mut found) = (Calls::default(), BTreeSet::new());
    loop {
        let orphans = calls.time(survivor.claim_orphans(256)).await.unwrap();
        if orphans.is_empty() {
            break;
        }
        assert!(orphans.len() <= 256);
        assert!(orphans.iter().all(|orphan| orphan.end.reason == EndReason::Lost && orphan.attempts == 0));
        found.extend(orphans.iter().map(|orphan| orphan.record.generation));
    }
    println!("{sessions} sessions of one dead holder: {:.1?}, {calls}", started.elapsed());
    assert_eq!(found.len(), sessions);
    assert_eq!(commits.count() - before, 1, "one adoption; the rows are only read");
    assert_eq!(count(&dir, "SELECT count(*) FROM ending_sessions"), sessions as i64);
    let found: Vec<_> = found.into_iter().collect();
    for some in found.chunks(1000) {
        let changes = some.iter().map(|&generation| Change::Delivered { generation }).collect();
        survivor.apply(changes).await.unwrap();
    }
    assert_eq!(count(&dir, "SELECT count(*) FROM sessions"), 0);
    survivor.heartbeat().await.unwrap();
    assert_eq!(count(&dir, "SELECT count(*) FROM holders"), 1);
}

async fn recover_what_a_living_one_shares(sessions: usize) {
    let dir = Dir::new();
    let (survivor, dead) = (dir.open(), dir.open());
    let all = records("s", sessions);
    start_all(&dead, &all).await;
    start_all(&survivor, &all).await;
    die(&dir, dead);
    let started = Instant::now();
    let (mut calls, mut left) = (Calls::default(), sessions as i64);
    loop {
        assert_eq!(calls.time(survivor.claim_orphans(256)).await.unwrap(), []);
        let now = count(&dir, "SELECT count(*) FROM holds") - sessions as i64;
        assert!(left - now <= ROWS_A_CALL, "one call deleted {}", left - now);
        left = now;
        if !survivor.heartbeat().await.unwrap().has_more {
            break;
        }
    }
    println!("{sessions} sessions shared with a living holder: {:.1?}, {calls}", started.elapsed());
    assert_eq!(left, 0);
    assert!(!survivor.heartbeat().await.unwrap().has_more, "only once");
    assert_eq!(count(&dir, "SELECT count(*) FROM holders"), 1);
    let answer = survivor.apply(vec![release(&all[sessions / 2], 7)]).await.unwrap();
    assert_eq!(answer, [Applied::Owned { requests: 7 }]);
}

#[tokio::test]
async fn g15_a_recovery_reads_each_row_once_and_writes_none() {
    recover_what_one_held(20_000).await;
}

#[tokio::test]
#[ignore = "takes a minute"]
async fn g15_a_recovery_of_200_000_sessions_reads_each_row_once_and_writes_none() {
    recover_what_one_held(200_000).await;
}

#[tokio::test]
async fn g15_no_call_of_a_recovery_touches_many_shared_sessions() {
    recover_what_a_living_one_shares(20_000).await;
}

#[tokio::test]
#[ignore = "takes two minutes"]
async fn g15_no_call_of_a_recovery_touches_many_of_200_000_shared_sessions() {
    recover_what_a_living_one_shares(200_000).await;
}

#[tokio::test]
async fn g15_orphans_behind_pages_of_shared_sessions_are_found() {
    let dir = Dir::new();
    let (survivor, dead) = (dir.open(), dir.open());
    let shared = records("shared", 3000);
    start_all(&dead, &shared).await;
    start_all(&survivor, &shared).await;
    let alone = records("alone", 5);
    start_all(&dead, &alone).await;
    die(&dir, dead);
    assert_eq!(survivor.claim_orphans(256).await.unwrap().len(), 5);
    assert_eq!(survivor.claim_orphans(256).await.unwrap(), []);
}

#[tokio::test]
async fn g17_starts_are_recorded_between_the_pages_of_a_recovery() {
    let dir = Dir::new();
    let (survivor, dead) = (dir.open(), dir.open());
    let all = records("s", 10_000);
    start_all(&dead, &all).await;
    start_all(&survivor, &all[..5_000]).await;
    die(&dir, dead);
    let (mut starts, mut found) = (Calls::default(), 0);
    for n in 0.. {
        let (started, orphans) = tokio::join!(
            starts.time(survivor.apply(holds(&[record(&format!("new-{n}"))]))),
            survivor.claim_orphans(256)
        );
        assert_eq!(started.unwrap(), [Applied::Created]);
        found += orphans.unwrap().len();
        if found == 5_000 {
            break;
        }
        survivor.heartbeat().await.unwrap();
    }
    println!("starts during a recovery: {starts}");
    assert_eq!(count(&dir, "SELECT count(*) FROM active_sessions WHERE id LIKE 'new-%'"), i64::from(starts.count));
    assert_eq!(survivor.claim_orphans(256).await.unwrap(), []);
}

/// The counts of reasons, and the attempts of all.
fn summary(orphans: &[Orphan]) -> BTreeMap<(EndReason, u32), usize> {
    let mut counts = BTreeMap::new();
    for orphan in orphans {
        *counts.entry((orphan.end.reason, orphan.attempts)).or_default() += 1;
    }
    counts
}

fn deleted(record: &Record) -> Change {
    end(record, tower_session_end::registry::EndRecord::new(EndReason::Deleted, None, std::time::SystemTime::now(), 1))
}

#[tokio::test]
async fn g15_three_deaths_in_a_row_lose_nothing() {
    let dir = Dir::new();
    let first = dir.open();
    let all = records("a", 100);
    start_all(&first, &all).await;
    first.apply(all[..40].iter().map(deleted).collect()).await.unwrap();
    // Each dies while it recovers its predecessor, with sessions of its own.
    let second = dir.open();
    start_all(&second, &records("b", 10)).await;
    die(&dir, first);
    let half = second.claim_orphans(50).await.unwrap();
    assert_eq!(half.len(), 50);
    let attempted = |orphan: &Orphan| Change::Attempted { generation: orphan.record.generation, attempts: 1 };
    second.apply(half.iter().take(20).map(attempted).collect()).await.unwrap();
    second.apply(half.iter().take(10).map(|orphan| delivered(&orphan.record)).collect()).await.unwrap();
    let third = dir.open();
    die(&dir, second);
    let some = third.claim_orphans(30).await.unwrap();
    third.apply(some.iter().take(5).map(|orphan| delivered(&orphan.record)).collect()).await.unwrap();
    let gone: BTreeSet<_> = half[..10].iter().chain(&some[..5]).map(|orphan| orphan.record.generation).collect();
    assert_eq!(gone.len(), 15);
    let last = dir.open();
    die(&dir, third);
    let rest = take_over_all(&last).await;
    assert_eq!(rest.len(), 110 - 15, "{:?}", summary(&rest));
    let generations: BTreeSet<_> = rest.iter().map(|orphan| orphan.record.generation).collect();
    assert_eq!(generations.len(), rest.len(), "each once");
    assert!(generations.is_disjoint(&gone), "what was delivered stays delivered");
    let by_attempts = |n| rest.iter().filter(|orphan| orphan.attempts == n).count();
    let delivered_after = some[..5].iter().filter(|orphan| orphan.attempts == 1).count();
    assert_eq!(by_attempts(1), 10 - delivered_after);
    assert_eq!(by_attempts(0) + by_attempts(1), rest.len());
    let reason = |orphan: &Orphan| {
        (orphan.record.session.id.as_str()[1..].parse::<u32>().unwrap() < 40)
            && orphan.record.session.id.as_str().starts_with('a')
    };
    for orphan in &rest {
        let expected = if reason(orphan) { EndReason::Deleted } else { EndReason::Lost };
        assert_eq!(orphan.end.reason, expected, "{orphan:?}");
    }
    last.apply(rest.iter().map(|orphan| delivered(&orphan.record)).collect()).await.unwrap();
    last.heartbeat().await.unwrap();
    let left = "SELECT (SELECT count(*) FROM sessions) + (SELECT count(*) FROM holds) + (SELECT count(*) FROM holders)";
    assert_eq!(count(&dir, left), 1);
}

/// Each takes what it can, on a thread of its own, until both have seen nothing three times in a row.
fn race(survivors: [SqliteRegistry; 2]) -> ([SqliteRegistry; 2], [Vec<GenerationId>; 2]) {
    let racing = survivors.map(|survivor| {
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (mut found, mut empty) = (Vec::new(), 0);
            while empty < 3 {
                let orphans = runtime.block_on(survivor.claim_orphans(7)).unwrap();
                empty = if orphans.is_empty() { empty + 1 } else { 0 };
                found.extend(orphans.iter().map(|orphan| orphan.record.generation));
            }
            (survivor, found)
        })
    });
    let [(a, of_a), (b, of_b)] = racing.map(|racing| racing.join().unwrap());
    ([a, b], [of_a, of_b])
}

#[tokio::test]
async fn g15_two_survivors_that_race_claim_each_end_once() {
    let dir = Dir::new();
    let mut survivors = [dir.open(), dir.open()];
    let mut by_first = 0;
    for round in 0..10 {
        let dead = dir.open();
        let all = records(&format!("{round}-"), 30);
        start_all(&dead, &all).await;
        dead.apply(all[..10].iter().map(deleted).collect()).await.unwrap();
        die(&dir, dead);
        let claims;
        (survivors, claims) = race(survivors);
        let [of_a, of_b] = &claims;
        by_first += usize::from(!of_a.is_empty());
        let mut both: Vec<_> = of_a.iter().chain(of_b).copied().collect();
        both.extend(take_over_all(&survivors[0]).await.iter().map(|orphan| orphan.record.generation));
        both.sort();
        let mut expected: Vec<_> = all.iter().map(|record| record.generation).collect();
        expected.sort();
        assert_eq!(both, expected);
    }
    println!("the first survivor had {by_first} of 10");
}

#[tokio::test]
async fn g16_of_a_session_of_two_dead_holders_one_survivor_claims_the_end() {
    let dir = Dir::new();
    let mut survivors = [dir.open(), dir.open()];
    for round in 0..10 {
        let dead = [dir.open(), dir.open()];
        let all = records(&format!("{round}-"), 40);
        start_all(&dead[0], &all).await;
        start_all(&dead[1], &all).await;
        dead.into_iter().for_each(|dead| die(&dir, dead));
        let claims;
        (survivors, claims) = race(survivors);
        let mut both: Vec<_> = claims.into_iter().flatten().collect();
        both.extend(take_over_all(&survivors[0]).await.iter().map(|orphan| orphan.record.generation));
        both.sort();
        let mut expected: Vec<_> = all.iter().map(|record| record.generation).collect();
        expected.sort();
        assert_eq!(both, expected);
    }
}

#[tokio::test]
async fn g16_two_recoveries_of_one_session_agree_which_of_them_claims_it() {
    let dir = Dir::new();
    let (x, y) = (dir.open(), dir.open());
    let (d1, d2) = (dir.open(), dir.open());
    let all = records("s", 6000);
    start_all(&d1, &all).await;
    start_all(&d2, &all).await;
    die(&dir, d1);
    // The first survivor is in the middle of its recovery when the second holder dies.
    assert_eq!(x.claim_orphans(1000).await.unwrap(), []);
    let read = 12_000 - count(&dir, "SELECT count(*) FROM holds");
    assert!(read > 1000 && read <= ROWS_A_CALL, "{read}");
    die(&dir, d2);
    let of_y = take_over_all(&y).await;
    let of_x = take_over_all(&x).await;
    assert_eq!((of_x.len() as i64, of_y.len() as i64), (6000 - read, read));
    let generations: BTreeSet<_> = of_x.iter().chain(&of_y).map(|orphan| orphan.record.generation).collect();
    assert_eq!(generations.len(), 6000);
    // Each delivers its own, and not that of the other.
    y.apply(of_x.iter().take(1000).map(|orphan| delivered(&orphan.record)).collect()).await.unwrap();
    assert_eq!(count(&dir, "SELECT count(*) FROM sessions"), 6000);
    x.apply(of_x.iter().take(1000).map(|orphan| delivered(&orphan.record)).collect()).await.unwrap();
    assert_eq!(count(&dir, "SELECT count(*) FROM sessions"), 5000);
}

#[tokio::test]
async fn g16_a_session_whose_holders_are_all_dead_ends_and_its_id_starts_anew() {
    let dir = Dir::new();
    let (adopter, other, dead) = (dir.open(), dir.open(), dir.open());
    let all = records("s", 4);
    start_all(&dead, &all).await;
    die(&dir, dead);
    // A dead holder counts as living until it is adopted.
    let joined = other.apply(vec![hold(&record("s3"))]).await.unwrap();
    assert_eq!(joined, [Applied::Joined(all[3].clone())]);
    let first = adopter.claim_orphans(1).await.unwrap();
    assert_eq!(ids(&first), ["s0"]);
    let (again, new) = ([record("s0"), record("s2")], vec![Applied::Created; 2]);
    assert_eq!(other.apply(holds(&again)).await.unwrap(), new, "one was returned, one was not");
    assert_eq!(other.apply(holds(&again)).await.unwrap(), new, "the same again");
    assert_eq!(other.apply(holds(&[all[1].clone()])).await.unwrap(), [Applied::Gone], "it was recovered");
    assert_eq!(other.apply(vec![release(&all[1], 1)]).await.unwrap(), [Applied::Gone]);
    assert_eq!(other.apply(vec![deleted(&all[1])]).await.unwrap(), [Applied::Gone]);
    let rest = take_over_all(&adopter).await;
    assert_eq!(ids(&rest), ["s1", "s2"], "each once");
    assert!(rest.iter().all(|orphan| orphan.end.reason == EndReason::Lost));
    // Only the adopter delivers them.
    let orphans: Vec<_> = first.iter().chain(&rest).collect();
    let done: Vec<_> = orphans.iter().map(|orphan| delivered(&orphan.record)).collect();
    other.apply(done.clone()).await.unwrap();
    assert_eq!(count(&dir, "SELECT count(*) FROM sessions"), 6);
    adopter.apply(done).await.unwrap();
    assert_eq!(count(&dir, "SELECT count(*) FROM active_sessions"), 3);
    assert_eq!(count(&dir, "SELECT count(*) FROM sessions"), 3);
    adopter.heartbeat().await.unwrap();
    assert_eq!(count(&dir, "SELECT count(*) FROM holders"), 2);
}

#[tokio::test]
async fn g16_an_adopted_holder_holds_nothing_before_its_holds_are_read_too() {
    let dir = Dir::new();
    let (adopter, other, dead) = (dir.open(), dir.open(), dir.open());
    let all = records("s", 4);
    start_all(&dead, &all).await;
    start_all(&other, &all[1..]).await;
    let requests = |answers: &[Applied]| answers.iter().all(|answer| *answer == Applied::Owned { requests: 3 });
    die(&dir, dead);
    assert_eq!(other.apply(vec![release(&all[1], 2)]).await.unwrap(), [Applied::HeldElsewhere], "not adopted yet");
    assert_eq!(ids(&adopter.claim_orphans(1).await.unwrap()), ["s0"]);
    assert_eq!(count(&dir, "SELECT count(*) FROM holds"), 7);
    let ends = other.apply(vec![release(&all[2], 3)]).await.unwrap();
    assert!(requests(&ends), "{ends:?}");
    let keep = Change::Keep { id: all[3].session.id.clone(), generation: all[3].generation };
    other.apply(vec![keep]).await.unwrap();
    assert_eq!(count(&dir, "SELECT count(*) FROM sessions WHERE id = 's3'"), 0);
    let rest = take_over_all(&adopter).await;
    assert_eq!((ids(&rest), rest[0].end.requests), (vec!["s1"], 2));
}

#[tokio::test]
async fn g16_a_start_whose_hooks_were_called_gets_a_record_of_its_own() {
    let dir = Dir::new();
    let (one, two) = (dir.open(), dir.open());
    let (older, own) = (record("s"), record("s"));
    start_all(&one, std::slice::from_ref(&older)).await;
    let beside = Change::Hold { record: own.clone(), mode: HoldMode::Create };
    assert_eq!(two.apply(vec![beside.clone()]).await.unwrap(), [Applied::Created]);
    assert_eq!(two.apply(vec![beside]).await.unwrap(), [Applied::Created], "the same again");
    // Others join the oldest one.
    let third = dir.open();
    assert_eq!(third.apply(vec![hold(&record("s"))]).await.unwrap(), [Applied::Joined(older.clone())]);
    assert_eq!(two.apply(vec![release(&own, 1)]).await.unwrap(), [Applied::Owned { requests: 1 }]);
    assert_eq!(one.apply(vec![release(&older, 1)]).await.unwrap(), [Applied::HeldElsewhere]);
}

#[tokio::test]
async fn g15_claims_are_no_attempts() {
    let dir = Dir::new();
    let first = dir.open();
    let all = records("s", 6);
    start_all(&first, &all).await;
    first.apply(all[..3].iter().map(deleted).collect()).await.unwrap();
    die(&dir, first);
    for _ in 0..5 {
        let registry = dir.open();
        let orphans = take_over_all(&registry).await;
        assert_eq!(summary(&orphans), BTreeMap::from([((EndReason::Deleted, 0), 3), ((EndReason::Lost, 0), 3)]));
        die(&dir, registry);
    }
    // Calls of hooks are, of lost sessions too; the number is that of the caller.
    let registry = dir.open();
    let orphans = take_over_all(&registry).await;
    for attempts in [1, 2, 2] {
        let attempted = |orphan: &Orphan| Change::Attempted { generation: orphan.record.generation, attempts };
        registry.apply(orphans.iter().map(attempted).collect()).await.unwrap();
    }
    die(&dir, registry);
    let registry = dir.open();
    let orphans = take_over_all(&registry).await;
    assert_eq!(summary(&orphans), BTreeMap::from([((EndReason::Deleted, 2), 3), ((EndReason::Lost, 2), 3)]));
}

#[tokio::test]
async fn g15_orphans_whose_answer_was_lost_are_returned_again() {
    let dir = Dir::new();
    let (survivor, dead) = (dir.open(), dir.open());
    start_all(&dead, &records("s", 100)).await;
    die(&dir, dead);
    let mut found = BTreeSet::new();
    for n in 0.. {
        let call = survivor.claim_orphans(7);
        let patience = Duration::from_micros(if n < 100 { 50 * (n % 10) } else { 10_000_000 });
        let Ok(orphans) = tokio::time::timeout(patience, call).await else { continue };
        let orphans = orphans.unwrap();
        if orphans.is_empty() {
            break;
        }
        for orphan in orphans {
            assert!(found.insert(orphan.record.generation), "twice");
        }
    }
    assert_eq!(found.len(), 100);
}

#[tokio::test]
async fn g15_a_holder_whose_adopter_was_removed_by_hand_is_adopted_again() {
    let dir = Dir::new();
    let (adopter, dead) = (dir.open(), dir.open());
    start_all(&dead, &records("s", 3)).await;
    die(&dir, dead);
    assert_eq!(take_over_all(&adopter).await.len(), 3);
    die(&dir, adopter);
    dir.look().execute_batch("DELETE FROM holders WHERE adopted_by IS NULL").unwrap();
    assert_eq!(take_over_all(&dir.open()).await.len(), 3);
}
