//! Attempts: calls of hooks, which the holder of the claim reports.

use super::{Applied, Kit, Orphan, Store, attempted, done, end, hold, release, same, same_all};

/// The attempts of each orphan.
fn of(orphans: &[Orphan]) -> Vec<u32> {
    orphans.iter().map(|orphan| orphan.attempts).collect()
}

pub(super) async fn are_stored<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let records = kit.records(4);
    a.expect_all("holds", records.iter().map(hold).collect(), vec![Applied::Created; 4]).await;
    a.expect("an end", end(&records[0], 0), Applied::Owned { requests: 0 }).await;
    a.expect("a release", release(&records[1], 0), Applied::Owned { requests: 0 }).await;
    a.expect("`Attempted` of an unknown generation", attempted(&kit.record(), 1), Applied::Ok).await;
    a.expect("`Attempted` of an active session", attempted(&records[3], 1), Applied::Ok).await;
    b.expect("`Attempted` by another than the claimer", attempted(&records[0], 7), Applied::Ok).await;
    for attempts in [1, 1, 2, 2] {
        a.expect("`Attempted`", attempted(&records[1], attempts), Applied::Ok).await;
    }
    kit.kill(a).await;
    let orphans = b.claim_all().await;
    same_all("attempts: none, two, and none of lost sessions", &of(&orphans), &[0, 2, 0, 0]);
    let counts = [1, 3, u32::MAX];
    let changes = records.iter().zip(counts).map(|(record, attempts)| attempted(record, attempts)).collect();
    b.expect_all("`Attempted` of recovered ends", changes, vec![Applied::Ok; 3]).await;
    kit.kill(b).await;
    let c = kit.holder().await;
    let orphans = c.claim_all().await;
    same_all("attempts after the second recovery", &of(&orphans), &[1, 3, u32::MAX, 0]);
    c.expect("`Delivered` after attempts", done(&records[0]), Applied::Ok).await;
    c.expect("`Attempted` of a delivered end", attempted(&records[0], 9), Applied::Ok).await;
    c.deliver(&orphans[1..]).await;
    kit.nothing_is_pending([c]).await;
}

/// However often an end is recovered, it has no attempts until a hook is called.
pub(super) async fn are_no_claims<S: Store>(kit: &Kit<'_, S>) {
    let mut last = kit.holder().await;
    let records = kit.records(2);
    last.expect_all("holds", records.iter().map(hold).collect(), vec![Applied::Created; 2]).await;
    last.expect("an end", end(&records[0], 3), Applied::Owned { requests: 3 }).await;
    for recovery in 1..=6 {
        // By an expired lease and by a released one.
        if recovery % 2 == 0 {
            kit.kill(last).await;
        } else {
            last.release_lease().await;
        }
        last = kit.holder().await;
        let orphans = last.claim_all().await;
        same(&format!("orphans of recovery {recovery}"), &orphans.len(), &2);
        same_all(&format!("attempts after recovery {recovery}"), &of(&orphans), &[0, 0]);
    }
    let changes = records.iter().map(done).collect();
    last.expect_all("delivered ends", changes, vec![Applied::Ok; 2]).await;
    kit.nothing_is_pending([last]).await;
}
