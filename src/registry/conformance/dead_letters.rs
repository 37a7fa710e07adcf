//! Dead letters: kept, counted, and delivered again on request only.

use super::{
    Applied, EndRecord, Holder, Kit, Record, Store, dead_letter, done, end, end_as, forget, hold, keep, now, release,
    same, same_all,
};
use crate::session::EndReason;

/// The number of dead letters, which is the same for all holders.
async fn counted<S: Store>(what: &str, holders: &[&Holder<S::Holder>]) -> u64 {
    let mut counts = Vec::new();
    for holder in holders {
        counts.push(holder.heartbeat().await.dead_letters);
    }
    same_all(&format!("{what}: the dead letters in each heartbeat"), &counts, &vec![counts[0]; counts.len()]);
    counts[0]
}

pub(super) async fn are_kept<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let before = counted::<S>("at first", &[&a, &b]).await;
    let records = kit.records(5);
    let [ended, released, lost, active, others] = &records[..] else { unreachable!("five records") };
    a.expect_all("holds", records[..4].iter().map(hold).collect(), vec![Applied::Created; 4]).await;
    b.expect("a hold", hold(others), Applied::Created).await;
    b.expect("a second holder", hold(active), Applied::Created).await;
    b.expect("an end of another holder", end(others, 0), Applied::Owned { requests: 0 }).await;
    a.expect("an end", end(ended, 0), Applied::Owned { requests: 0 }).await;
    a.expect("a release", release(released, 0), Applied::Owned { requests: 0 }).await;
    a.expect("`DeadLetter` of an unknown generation", dead_letter(&kit.record(), "error"), Applied::Ok).await;
    a.expect("`DeadLetter` of an active session", dead_letter(active, "error"), Applied::Ok).await;
    a.expect("`DeadLetter` by another than the claimer", dead_letter(others, "error"), Applied::Ok).await;
    same("dead letters that are none", &counted::<S>("then", &[&a, &b]).await, &before);
    for error in ["an error", "an error", "'\0\"{}\u{fffd} Grüße"] {
        a.expect("`DeadLetter`", dead_letter(ended, error), Applied::Ok).await;
    }
    a.expect("`DeadLetter`, long", dead_letter(released, &"long ".repeat(2000)), Applied::Ok).await;
    same("dead letters", &counted::<S>("after two", &[&a, &b]).await, &(before + 2));

    // No other change of it has an effect.
    b.expect("a hold of a dead letter", hold(ended), Applied::Gone).await;
    b.expect("an end of a dead letter", end(ended, 0), Applied::Gone).await;
    b.expect("a release of a dead letter", release(ended, 0), Applied::Gone).await;
    b.expect("`Delivered` by another holder", done(ended), Applied::Ok).await;
    b.expect("`Keep` of a dead letter", keep(ended), Applied::Ok).await;
    b.expect("`Forget` of a dead letter", forget(ended), Applied::Ok).await;
    let next = kit.next(ended);
    b.expect("the next generation of a dead letter", hold(&next), Applied::Created).await;
    same_all("orphans beside dead letters", &b.claim_all().await, &[]);

    // It is not claimed after the death of its holder, nor by a later process.
    kit.kill(a).await;
    let orphans = b.claim_all().await;
    let found: Vec<_> = orphans.iter().map(|orphan| &orphan.record).collect();
    same_all("orphans of a holder with dead letters", &found, &[lost]);
    b.expect("`DeadLetter` of a recovered end", dead_letter(lost, "error"), Applied::Ok).await;
    same("dead letters", &counted::<S>("after three", &[&b]).await, &(before + 3));
    let changes = vec![end(&next, 0), end(active, 0)];
    b.expect_all("ends beside dead letters", changes, vec![Applied::Owned { requests: 0 }; 2]).await;
    b.expect_all("delivered ends", [&next, active, others].map(done).to_vec(), vec![Applied::Ok; 3]).await;
    b.release_lease().await;
    let c = kit.holder().await;
    same_all("orphans of a holder with dead letters, later", &c.claim_all().await, &[]);
    same("dead letters", &counted::<S>("in a later process", &[&c]).await, &(before + 3));

    if deliver_again(kit, &c, &[ended, released, lost]).await {
        same("dead letters", &counted::<S>("in the end", &[&c]).await, &before);
    }
    kit.nothing_is_pending([c]).await;
}

/// Takes the letters of an earlier part out of the store.
async fn deliver_again<S: Store>(kit: &Kit<'_, S>, holder: &Holder<S::Holder>, letters: &[&Record]) -> bool {
    for letter in letters {
        if !kit.redeliver(holder, letter).await {
            return false;
        }
    }
    let orphans = holder.claim_all().await;
    let found: Vec<_> = orphans.iter().map(|orphan| &orphan.record).collect();
    same_all("dead letters that are delivered again", &found, letters);
    holder.deliver(&orphans).await;
    true
}

pub(super) async fn are_delivered_again<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let before = counted::<S>("at first", &[&a, &b]).await;
    let (first, second) = (kit.record(), kit.record());
    let ends = [
        EndRecord::new(EndReason::Compaction, Some(second.session.clone()), now(), 3),
        EndRecord::new(EndReason::Daily, None, now(), 4),
    ];
    for (record, end) in [&first, &second].into_iter().zip(&ends) {
        a.expect("a hold", hold(record), Applied::Created).await;
        a.expect("an end", end_as(record, end.clone()), Applied::Owned { requests: end.requests }).await;
        a.expect("`DeadLetter`", dead_letter(record, "error"), Applied::Ok).await;
    }
    if !kit.redeliver(&b, &first).await {
        return kit.nothing_is_pending([a, b]).await;
    }
    same("dead letters", &counted::<S>("after one was asked for", &[&a, &b]).await, &(before + 1));
    let orphans = b.claim_all().await;
    let found: Vec<_> = orphans.iter().map(|orphan| (&orphan.record, &orphan.end)).collect();
    same_all("the dead letter that was asked for", &found, &[(&first, &ends[0])]);
    same_all("the same, for its earlier claimer", &a.claim_all().await, &[]);
    same_all("the same, again", &b.claim_all().await, &[]);
    // It is an end as any other now: the next holder finds it.
    a.expect("`Delivered` by its earlier claimer", done(&first), Applied::Ok).await;
    kit.kill(b).await;
    let orphans = a.claim_all().await;
    let found: Vec<_> = orphans.iter().map(|orphan| (&orphan.record, &orphan.end)).collect();
    same_all("a redelivered end after another death", &found, &[(&first, &ends[0])]);
    a.expect("`DeadLetter` again", dead_letter(&first, "error"), Applied::Ok).await;
    same("dead letters", &counted::<S>("after it failed again", &[&a]).await, &(before + 2));
    same_all("orphans after it failed again", &a.claim_all().await, &[]);

    // Its own holder may claim it again.
    assert!(deliver_again(kit, &a, &[&first, &second]).await, "`redeliver` returned false later");
    same("dead letters", &counted::<S>("in the end", &[&a]).await, &before);
    kit.nothing_is_pending([a]).await;
}
