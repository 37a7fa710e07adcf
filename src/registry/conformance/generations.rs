//! Several generations of one id.

use super::{Applied, Kit, Store, acknowledge, done, end, find, hold, hold_beside, release, same, same_all, update};
use crate::session::EndReason;

/// A hold that may join finds the oldest active record.
pub(super) async fn joined<S: Store>(kit: &Kit<'_, S>) {
    let (a, b, c) = (kit.holder().await, kit.holder().await, kit.holder().await);
    let first = kit.record();
    let [second, third] = [kit.next(&first), kit.next(&first)];
    a.expect("a hold", hold(&first), Applied::Created).await;
    a.expect("a hold of an id that it holds already", hold(&second), Applied::Joined(first.clone())).await;
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    b.expect("a second active record of the id", hold_beside(&second), Applied::Created).await;
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    a.expect("a third one", hold_beside(&third), Applied::Created).await;
    c.expect("a hold beside three active records", hold(&kit.next(&first)), Applied::Joined(first.clone())).await;
    a.expect("an end of the first", end(&first, 0), Applied::Owned { requests: 0 }).await;
    c.acknowledge("the notice of the first", &[&first]).await;
    let joining = kit.next(&first);
    c.expect("a hold beside two active records", hold(&joining), Applied::Joined(second.clone())).await;
    // The answer of this hold was lost, and the record has ended since: a repeat finds the next one.
    b.expect("an end of the second", end(&second, 1), Applied::Owned { requests: 1 }).await;
    c.expect("the same hold again", hold(&joining), Applied::Joined(third.clone())).await;
    c.expect("an end of the third", end(&third, 2), Applied::Owned { requests: 2 }).await;
    c.acknowledge("the notice of the second", &[&second]).await;
    a.acknowledge("the notice of the third", &[&third]).await;
    let last = kit.next(&first);
    c.expect("a hold beside ended records", hold(&last), Applied::Created).await;
    c.expect("a release", release(&last, 0), Applied::Owned { requests: 0 }).await;
    for (holder, record) in [(&a, &first), (&b, &second), (&c, &third), (&c, &last)] {
        holder.expect("a delivered end", done(record), Applied::Ok).await;
    }
    kit.nothing_is_pending([a, b, c]).await;
}

/// A hold that may only join creates no record, and ends none.
pub(super) async fn found<S: Store>(kit: &Kit<'_, S>) {
    let (a, b, c) = (kit.holder().await, kit.holder().await, kit.holder().await);
    let first = kit.record();
    let joining = kit.next(&first);
    for what in ["a hold that may only join, of an unknown id", "the same again"] {
        b.expect(what, find(&joining), Applied::NotFound).await;
    }
    b.expect("an update of what it does not hold", update(&joining), Applied::Gone).await;
    a.expect("a hold of an id that another has asked for", hold(&first), Applied::Created).await;
    a.expect("its own record, only to join", find(&first), Applied::Created).await;
    for what in ["the id has a record now", "the same again"] {
        b.expect(what, find(&joining), Applied::Joined(first.clone())).await;
    }
    a.expect("a release by one of two", release(&first, 1), Applied::HeldElsewhere).await;
    a.expect("its own record, which it has released, only to join", find(&first), Applied::Created).await;
    b.expect("an end by one of two", end(&first, 1), Applied::Owned { requests: 2 }).await;
    b.expect("an end that it has claimed, only to join", find(&first), Applied::Created).await;
    a.expect("a record that another holder has ended, only to join", find(&first), Applied::Gone).await;
    c.expect("the same, by a holder without a notice", find(&first), Applied::Gone).await;
    c.expect("another generation of an id that has ended", find(&kit.next(&first)), Applied::NotFound).await;
    a.acknowledge("the notice", &[&first]).await;
    b.expect("a delivered end", done(&first), Applied::Ok).await;

    let lost = kit.record();
    a.expect("a hold", hold(&lost), Applied::Created).await;
    kit.kill(a).await;
    let orphans = b.claim_all().await;
    same("the orphans of the dead holder", &orphans.len(), &1);
    c.expect("a lost session, only to join", find(&kit.next(&lost)), Applied::NotFound).await;
    b.expect("the same, by the one that has recovered it", find(&kit.next(&lost)), Applied::NotFound).await;
    b.deliver(&orphans).await;
    kit.nothing_is_pending([b, c]).await;
}

/// Two active records of one id end independently.
pub(super) async fn beside_each_other<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let old = kit.record();
    let new = kit.next(&old);
    a.expect("a hold that may not join, of an unknown id", hold_beside(&old), Applied::Created).await;
    for what in ["a second active record of the id", "the same again"] {
        b.expect(what, hold_beside(&new), Applied::Created).await;
    }
    a.expect("the first record, again", hold_beside(&old), Applied::Created).await;
    a.expect("an update of the first", update(&old), Applied::Ok).await;
    b.expect("an update of the second", update(&new), Applied::Ok).await;
    a.expect("a release of the other's record", release(&new, 1), Applied::Gone).await;
    a.expect("a release of the first", release(&old, 2), Applied::Owned { requests: 2 }).await;
    a.expect("the second still exists", hold(&kit.next(&old)), Applied::Joined(new.clone())).await;
    a.expect("an end of the first, again", release(&old, 2), Applied::Owned { requests: 2 }).await;
    a.expect("a delivered end", done(&old), Applied::Ok).await;
    b.expect("a release of the second", release(&new, 3), Applied::HeldElsewhere).await;
    a.expect("a release by its second holder", release(&new, 4), Applied::Owned { requests: 7 }).await;
    a.expect("a delivered end", done(&new), Applied::Ok).await;

    // Both of one holder: two ends.
    let old = kit.record();
    let new = kit.next(&old);
    a.expect("a hold", hold(&old), Applied::Created).await;
    a.expect("a second record of the same holder", hold_beside(&new), Applied::Created).await;
    a.release_lease().await;
    let orphans = b.claim_all().await;
    let found: Vec<_> = orphans.iter().map(|orphan| orphan.record.clone()).collect();
    same_all("both records of one id and one holder", &found, &[old, new]);
    b.deliver(&orphans).await;
    kit.nothing_is_pending([b]).await;
}

/// Changes of a generation that another holder has ended.
pub(super) async fn gone<S: Store>(kit: &Kit<'_, S>) {
    let (a, b, c) = (kit.holder().await, kit.holder().await, kit.holder().await);
    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    b.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    c.expect("a third holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    c.expect("a release by one of three", release(&record, 1), Applied::HeldElsewhere).await;
    b.expect("an end by one of two", end(&record, 1), Applied::Owned { requests: 2 }).await;
    let next = kit.next(&record);
    for delivered in [false, true] {
        let when = if delivered { "after it was delivered" } else { "before it is delivered" };
        if delivered {
            b.expect("a delivered end", done(&record), Applied::Ok).await;
            b.expect("the next generation", hold(&next), Applied::Created).await;
        } else {
            let what = format!("a hold by the holder that has released it, {when}");
            c.expect(&what, hold(&record), Applied::Gone).await;
        }
        for (what, change) in [
            ("a hold", hold(&record)),
            ("a hold that may not join", hold_beside(&record)),
            ("an update", update(&record)),
            ("a release", release(&record, 1)),
            ("an end", end(&record, 1)),
        ] {
            let what = format!("{what} of a session that another holder has ended, {when}");
            a.expect(&what, change.clone(), Applied::Gone).await;
            a.expect(&format!("{what}, again"), change, Applied::Gone).await;
        }
    }
    a.expect_notices("the notice after refused changes", &[&record]).await;
    a.expect("`Acknowledge`", acknowledge(&record), Applied::Ok).await;
    a.expect("a hold of the next generation", hold(&kit.next(&record)), Applied::Joined(next.clone())).await;
    a.expect("a release by one of two", release(&next, 0), Applied::HeldElsewhere).await;
    b.expect("a release by the last", release(&next, 0), Applied::Owned { requests: 0 }).await;
    b.expect("a delivered end", done(&next), Applied::Ok).await;
    kit.nothing_is_pending([a, b, c]).await;
}

/// A hold of a generation whose end this holder has claimed changes nothing.
pub(super) async fn claimed<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    a.expect("an end", end(&record, 1), Applied::Owned { requests: 1 }).await;
    a.expect("a hold of an end that it has claimed", hold(&record), Applied::Created).await;
    a.expect("the same, not to join", hold_beside(&record), Applied::Created).await;
    b.expect("a hold of another's claim", hold(&record), Applied::Gone).await;
    let next = kit.next(&record);
    b.expect("the next generation", hold(&next), Applied::Created).await;
    a.expect("a hold of its claim beside the next generation", hold(&record), Applied::Created).await;
    a.expect("the end again", end(&record, 1), Applied::Owned { requests: 1 }).await;
    kit.kill(a).await;
    let orphans = b.claim_all().await;
    same("the claims of the dead holder", &orphans.len(), &1);
    same("the record", &orphans[0].record, &record);
    same("the reason", &orphans[0].end.reason, &EndReason::Deleted);
    b.expect("a hold of a claim of its own, from a recovery", hold(&record), Applied::Created).await;
    b.expect("an end of it", end(&record, 5), Applied::Owned { requests: 1 }).await;
    b.deliver(&orphans).await;
    b.expect("a release of the next generation", release(&next, 0), Applied::Owned { requests: 0 }).await;
    b.expect("a delivered end", done(&next), Applied::Ok).await;
    kit.nothing_is_pending([b]).await;
}
