//! The answers to each change, with one and with two holders of the session.

use super::{
    Applied, Change, Holder, Kit, Record, Store, done, end, end_as, ended, forget, hold, keep, release, same, same_all,
};
use crate::session::{EndReason, Session};

pub(super) async fn holds<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let record = kit.record();
    a.expect_all("no changes", vec![], vec![]).await;
    a.expect("a hold of an unknown id", hold(&record), Applied::Created).await;
    b.expect("a hold of another holder's session", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    let c = kit.holder().await;
    c.expect("a hold of another holder's session, with its generation", hold(&record), Applied::Created).await;
    c.expect("a release by the first of three", release(&record, 0), Applied::HeldElsewhere).await;
    a.expect("a release by the second of three", release(&record, 0), Applied::HeldElsewhere).await;
    b.expect("a release by the third of three", release(&record, 0), Applied::Owned { requests: 0 }).await;
    let next = kit.next(&record);
    a.expect("a hold of an id whose end is claimed", hold(&next), Applied::Created).await;
    b.expect("a delivered end", done(&record), Applied::Ok).await;
    b.expect("the second generation still exists", hold(&kit.next(&next)), Applied::Joined(next.clone())).await;
    b.expect("an end of the second generation", end(&next, 0), Applied::Owned { requests: 0 }).await;
    b.expect("a delivered end", done(&next), Applied::Ok).await;
    kit.nothing_is_pending([a, b, c]).await;
}

pub(super) async fn updates<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let record = kit.record();
    a.expect("an update of an unknown session", Change::Update(record.clone()), Applied::Ok).await;
    a.expect("a hold after an update of an unknown session", hold(&record), Applied::Created).await;
    let new = Session::new(record.session.id.clone()).with_agent_id("new").with_attribute("a", "b");
    let new = Record::new(new, record.generation, record.started_at);
    a.expect("an update", Change::Update(new.clone()), Applied::Ok).await;
    a.expect("an update of another generation", Change::Update(kit.next(&record)), Applied::Ok).await;
    b.expect("a hold after an update", hold(&kit.next(&record)), Applied::Joined(new)).await;
    b.expect("a forgotten session", forget(&record), Applied::Ok).await;
    a.expect("an update of a forgotten session", Change::Update(record.clone()), Applied::Ok).await;
    kit.nothing_is_pending([a, b]).await;
}

pub(super) async fn releases<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let record = kit.record();
    a.expect("a release of an unknown session", release(&record, 1), Applied::Gone).await;
    a.expect("a hold", hold(&record), Applied::Created).await;
    a.expect("a release of another generation", release(&kit.next(&record), 1), Applied::Gone).await;
    b.expect("a release of another holder's session", release(&record, 1), Applied::Gone).await;
    b.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    a.expect("a release by one of two", release(&record, 20), Applied::HeldElsewhere).await;
    b.expect("a release by the last", release(&record, 3), Applied::Owned { requests: 23 }).await;
    a.expect("a release of an ended session", release(&record, 4), Applied::Gone).await;
    b.expect("a delivered end", done(&record), Applied::Ok).await;
    b.expect("a release of a delivered session", release(&record, 5), Applied::Gone).await;

    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    b.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    a.expect("a release by one of two", release(&record, 1), Applied::HeldElsewhere).await;
    a.expect("a hold after a release", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    b.expect("a release by the other", release(&record, 2), Applied::HeldElsewhere).await;
    a.expect("a release by the last", release(&record, 4), Applied::Owned { requests: 7 }).await;
    a.expect("a delivered end", done(&record), Applied::Ok).await;
    kit.nothing_is_pending([a, b]).await;
}

pub(super) async fn ends<S: Store>(kit: &Kit<'_, S>) {
    let (a, b, c) = (kit.holder().await, kit.holder().await, kit.holder().await);
    let record = kit.record();
    a.expect("an end of an unknown session", end(&record, 1), Applied::Gone).await;
    a.expect("a hold", hold(&record), Applied::Created).await;
    b.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    c.expect("a third holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    a.expect("an end of another generation", end(&kit.next(&record), 1), Applied::Gone).await;
    c.expect("a release by one of three", release(&record, 10), Applied::HeldElsewhere).await;
    b.expect("an end by one of two holders", end(&record, 2), Applied::Owned { requests: 12 }).await;
    a.expect("a release after another holder's end", release(&record, 1), Applied::Gone).await;
    a.expect("an end after another holder's end", end(&record, 1), Applied::Gone).await;
    a.expect("`Delivered` by another holder than the claimer", done(&record), Applied::Ok).await;
    a.expect("a new generation", hold(&kit.next(&record)), Applied::Created).await;
    kit.kill(b).await;
    let orphans = a.claim_all().await;
    same("claims after another holder's `Delivered`", &orphans.len(), &1);
    same("the claimed record", &orphans[0].record, &record);
    a.deliver(&orphans).await;

    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    c.expect("an end by another than the holder", end(&record, 1), Applied::Owned { requests: 1 }).await;
    c.expect("a delivered end", done(&record), Applied::Ok).await;
    c.expect("a repeated delivered end", done(&record), Applied::Ok).await;
    c.expect("an end of a delivered session", end(&record, 1), Applied::Gone).await;
    leaves_one(kit, a).await;
    kit.nothing_is_pending([c]).await;
}

/// Releases the lease of a holder that holds one session, and delivers the orphan.
async fn leaves_one<S: Store>(kit: &Kit<'_, S>, holder: Holder<S::Holder>) {
    holder.release_lease().await;
    let last = kit.holder().await;
    let orphans = last.claim_all().await;
    let reasons: Vec<_> = orphans.iter().map(|orphan| orphan.end.reason).collect();
    same_all("the orphans of the released lease", &reasons, &[EndReason::Lost]);
    last.deliver(&orphans).await;
    last.release_lease().await;
}

/// `Keep` and `Forget`.
pub(super) async fn silent_ends<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let record = kit.record();
    a.expect("`Keep` of an unknown session", keep(&record), Applied::Ok).await;
    a.expect("a hold", hold(&record), Applied::Created).await;
    b.expect("`Keep` by another than the holder", keep(&record), Applied::Ok).await;
    a.expect("`Keep` of another generation", keep(&kit.next(&record)), Applied::Ok).await;
    b.expect("the record still exists", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    a.expect("`Keep` by one of two", keep(&record), Applied::Ok).await;
    a.expect("a release of a kept session", release(&record, 1), Applied::Gone).await;
    b.expect("a release by the other", release(&record, 2), Applied::Owned { requests: 2 }).await;
    b.expect("a delivered end", done(&record), Applied::Ok).await;

    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    a.expect("`Keep` by the last", keep(&record), Applied::Ok).await;
    let next = kit.next(&record);
    b.expect("a hold of a kept session", hold(&next), Applied::Created).await;

    a.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(next.clone())).await;
    a.expect("`Forget` of another generation", forget(&record), Applied::Ok).await;
    a.expect("the record still exists", hold(&kit.next(&record)), Applied::Joined(next.clone())).await;
    a.expect("a forgotten session", forget(&next), Applied::Ok).await;
    b.expect("a release of a forgotten session", release(&next, 1), Applied::Gone).await;
    b.expect("an end of a forgotten session", end(&next, 1), Applied::Gone).await;
    let last = kit.next(&record);
    b.expect("a hold of a forgotten session", hold(&last), Applied::Created).await;
    a.expect("`Forget` by another than the holder", forget(&last), Applied::Ok).await;
    b.expect("a release of a forgotten session", release(&last, 1), Applied::Gone).await;
    kit.nothing_is_pending([a, b]).await;
}

/// The changes of one call are applied in order.
pub(super) async fn order<S: Store>(kit: &Kit<'_, S>) {
    let a = kit.holder().await;
    let (old, new) = (kit.record(), kit.record());
    a.expect("a hold", hold(&old), Applied::Created).await;
    let mut compaction = ended(EndReason::Compaction, 5);
    compaction.next = Some(new.session.clone());
    a.expect_all(
        "a compaction",
        vec![end_as(&old, compaction), hold(&new)],
        vec![Applied::Owned { requests: 5 }, Applied::Created],
    )
    .await;
    let second = kit.next(&new);
    a.expect_all(
        "a reset that keeps the id",
        vec![end(&new, 1), hold(&second), done(&old)],
        vec![Applied::Owned { requests: 1 }, Applied::Created, Applied::Ok],
    )
    .await;
    let third = kit.next(&new);
    a.expect_all(
        "a hold before the end of its predecessor",
        vec![hold(&third), end(&second, 2), release(&third, 1)],
        vec![Applied::Joined(second.clone()), Applied::Owned { requests: 2 }, Applied::Gone],
    )
    .await;
    let short = kit.record();
    a.expect_all(
        "a whole session in one call",
        vec![hold(&short), release(&short, 1), done(&short), release(&short, 1), hold(&kit.next(&short))],
        vec![Applied::Created, Applied::Owned { requests: 1 }, Applied::Ok, Applied::Gone, Applied::Created],
    )
    .await;
    a.expect_all("all ends delivered", vec![done(&new), done(&second)], vec![Applied::Ok; 2]).await;
    leaves_one(kit, a).await;
    kit.nothing_is_pending([]).await;
}
