//! One call with 1,000 changes of every kind, in any order, and again in another order.

use super::{
    Applied, Change, Kit, Record, Store, acknowledge, attempted, dead_letter, done, end, forget, hold, hold_beside,
    keep, release, same, same_all, update,
};
use crate::session::EndReason;

/// How many changes of each of the 13 kinds.
const EACH: usize = 76;

/// Reorders, by a generator of numbers that look random.
fn shuffle<T>(all: &mut [T], mut seed: u64) {
    for i in (1..all.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        all.swap(i, (seed >> 33) as usize % (i + 1));
    }
}

/// Of each kind as many records as changes: the first has changed, and the later kinds are held by `a` at first.
const NEW: usize = 0;
const JOINED: usize = 1;
const BESIDE: usize = 2;
const UPDATED: usize = 3;
const RELEASED: usize = 4;
const SHARED: usize = 5;
const ENDED: usize = 6;
const KEPT: usize = 7;
const FORGOTTEN: usize = 8;
const ATTEMPTED: usize = 9;
const DELIVERED: usize = 10;
const DEAD: usize = 11;
const NOTICED: usize = 12;
const KINDS: usize = 13;

pub(super) async fn in_any_order<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let of: Vec<Vec<Record>> = (0..KINDS).map(|_| kit.records(EACH)).collect();
    let all = |kinds: &[usize], change: fn(&Record) -> Change| -> Vec<Change> {
        kinds.iter().flat_map(|&kind| of[kind].iter().map(change)).collect()
    };
    let ended = |kinds: &[usize]| -> Vec<Change> {
        kinds.iter().flat_map(|&kind| of[kind].iter().map(|record| end(record, 1))).collect()
    };
    let held = [UPDATED, RELEASED, SHARED, ENDED, KEPT, FORGOTTEN, ATTEMPTED, DELIVERED, DEAD, NOTICED];
    a.expect_all("holds", all(&held, hold), vec![Applied::Created; held.len() * EACH]).await;
    let joined = [JOINED, BESIDE, SHARED, NOTICED];
    b.expect_all("holds of another holder", all(&joined, hold), vec![Applied::Created; joined.len() * EACH]).await;
    let claimed = [ATTEMPTED, DELIVERED, DEAD];
    a.expect_all("ends", ended(&claimed), vec![Applied::Owned { requests: 1 }; claimed.len() * EACH]).await;
    b.expect_all("ends of another holder", ended(&[NOTICED]), vec![Applied::Owned { requests: 1 }; EACH]).await;

    let mut group = Vec::new();
    let next: Vec<_> = of[BESIDE].iter().map(|record| kit.next(record)).collect();
    for i in 0..EACH {
        let mut details = of[UPDATED][i].clone();
        details.session = details.session.with_agent_id("updated");
        let joined = of[JOINED][i].clone();
        group.extend([
            (hold(&of[NEW][i]), Applied::Created),
            (hold(&kit.next(&joined)), Applied::Joined(joined)),
            (hold_beside(&next[i]), Applied::Created),
            (update(&details), Applied::Ok),
            (release(&of[RELEASED][i], 2), Applied::Owned { requests: 2 }),
            (release(&of[SHARED][i], 2), Applied::HeldElsewhere),
            (end(&of[ENDED][i], i as u64), Applied::Owned { requests: i as u64 }),
            (keep(&of[KEPT][i]), Applied::Ok),
            (forget(&of[FORGOTTEN][i]), Applied::Ok),
            (attempted(&of[ATTEMPTED][i], 1 + i as u32), Applied::Ok),
            (done(&of[DELIVERED][i]), Applied::Ok),
            (acknowledge(&of[NOTICED][i]), Applied::Ok),
        ]);
    }
    group.extend(of[DEAD].iter().take(4).map(|record| (dead_letter(record, "error"), Applied::Ok)));
    let more = kit.records(1000 - group.len());
    group.extend(more.iter().map(|record| (hold(record), Applied::Created)));
    for time in ["", ", each again"] {
        shuffle(&mut group, time.len() as u64);
        let (changes, expected) = group.iter().cloned().unzip();
        a.expect_all(&format!("1,000 changes in one call{time}"), changes, expected).await;
    }

    a.expect_notices("notices after 1,000 changes", &[]).await;
    kit.kill(a).await;
    let orphans = b.claim_all().await;
    let found: Vec<_> = orphans
        .iter()
        .map(|orphan| (orphan.record.generation, orphan.end.reason, orphan.end.requests, orphan.attempts))
        .collect();
    let mut expected = Vec::new();
    for i in 0..EACH {
        expected.extend([
            (of[NEW][i].generation, EndReason::Lost, 0, 0),
            (next[i].generation, EndReason::Lost, 0, 0),
            (of[UPDATED][i].generation, EndReason::Lost, 0, 0),
            (of[RELEASED][i].generation, EndReason::Shutdown, 2, 0),
            (of[ENDED][i].generation, EndReason::Deleted, i as u64, 0),
            (of[ATTEMPTED][i].generation, EndReason::Deleted, 1, 1 + i as u32),
        ]);
    }
    expected.extend(of[DEAD][4..].iter().map(|record| (record.generation, EndReason::Deleted, 1, 0)));
    expected.extend(more.iter().map(|record| (record.generation, EndReason::Lost, 0, 0)));
    expected.sort();
    same_all("what is left after 1,000 changes", &found, &expected);
    let is_updated = |record: &Record| record.session.agent_id.as_deref() == Some("updated");
    same("updated details", &orphans.iter().filter(|orphan| is_updated(&orphan.record)).count(), &EACH);
    b.deliver(&orphans).await;
    for letter in &of[DEAD][..4] {
        if !kit.redeliver(&b, letter).await {
            break;
        }
    }
    b.deliver(&b.claim_all().await).await;

    // The other holder's part is as before.
    let changes = all(&[JOINED, BESIDE], |record| release(record, 1));
    b.expect_all("releases by the other holder", changes, vec![Applied::Owned { requests: 1 }; 2 * EACH]).await;
    let changes = all(&[SHARED], |record| release(record, 1));
    b.expect_all("releases by the last holder", changes, vec![Applied::Owned { requests: 3 }; EACH]).await;
    let delivered = [JOINED, BESIDE, SHARED, NOTICED];
    b.expect_all("delivered ends", all(&delivered, done), vec![Applied::Ok; delivered.len() * EACH]).await;
    kit.nothing_is_pending([b]).await;
}
