//! The answers to each change, with one and with several holders of the session.

use super::{Applied, Kit, Record, Store, done, end, forget, hold, keep, release, same, same_all, update};
use crate::session::Session;

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
    a.acknowledge("the notice of another holder's end", &[&next]).await;
    kit.nothing_is_pending([a, b, c]).await;
}

pub(super) async fn updates<S: Store>(kit: &Kit<'_, S>) {
    let (a, b, c) = (kit.holder().await, kit.holder().await, kit.holder().await);
    let record = kit.record();
    a.expect("an update of an unknown session", update(&record), Applied::Gone).await;
    a.expect("a hold after an update of an unknown session", hold(&record), Applied::Created).await;
    let with = |agent: &str| {
        let session = Session::new(record.session.id.clone()).with_agent_id(agent).with_attribute("a", "b");
        Record::new(session, record.generation, record.started_at)
    };
    a.expect("an update", update(&with("updated")), Applied::Ok).await;
    a.expect("an update of another generation", update(&kit.next(&record)), Applied::Gone).await;
    c.expect("an update by another than the holder", update(&with("of another")), Applied::Gone).await;
    b.expect("a hold after an update", hold(&kit.next(&record)), Applied::Joined(with("updated"))).await;
    b.expect("an update by the second holder", update(&with("second")), Applied::Ok).await;
    a.expect("a hold after it", hold(&kit.next(&record)), Applied::Joined(with("second"))).await;
    a.expect("a repeated hold, with other details", hold(&with("held")), Applied::Created).await;
    b.expect("a hold after it", hold(&kit.next(&record)), Applied::Joined(with("held"))).await;
    b.expect("a forgotten session", forget(&record), Applied::Ok).await;
    a.expect("an update of a forgotten session", update(&record), Applied::Gone).await;
    a.acknowledge("the notice of another holder's `Forget`", &[&record]).await;

    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    a.expect("an end", end(&record, 0), Applied::Owned { requests: 0 }).await;
    a.expect("an update of an ended session", update(&record), Applied::Gone).await;
    a.expect("a delivered end", done(&record), Applied::Ok).await;
    a.expect("an update of a delivered session", update(&record), Applied::Gone).await;
    kit.nothing_is_pending([a, b, c]).await;
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
    a.expect("`Keep` after another holder's end", keep(&record), Applied::Ok).await;
    a.expect("`Forget` after another holder's end", forget(&record), Applied::Ok).await;
    a.expect("`Delivered` by another holder than the claimer", done(&record), Applied::Ok).await;
    b.expect("`Keep` of an end that it has claimed", keep(&record), Applied::Ok).await;
    b.expect("`Forget` of an end that it has claimed", forget(&record), Applied::Ok).await;
    let next = kit.next(&record);
    a.expect("a new generation", hold(&next), Applied::Created).await;
    a.acknowledge("the notice of another holder's end", &[&record]).await;
    kit.kill(b).await;
    let orphans = a.claim_all().await;
    same("an ended record, after `Keep`, `Forget`, and `Delivered` by another holder: claims", &orphans.len(), &1);
    same("the claimed record", &orphans[0].record, &record);
    a.deliver(&orphans).await;
    a.expect("`Delivered` of an active session", done(&next), Applied::Ok).await;
    c.expect("an active session after it", hold(&kit.next(&next)), Applied::Joined(next.clone())).await;
    a.expect("a forgotten session", forget(&next), Applied::Ok).await;
    c.acknowledge("the notice of another holder's `Forget`", &[&next]).await;

    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    c.expect("an end by another than the holder", end(&record, 1), Applied::Owned { requests: 1 }).await;
    c.expect("a delivered end", done(&record), Applied::Ok).await;
    c.expect("a repeated delivered end", done(&record), Applied::Ok).await;
    c.expect("an end of a delivered session", end(&record, 1), Applied::Gone).await;
    a.acknowledge("the notice of an end by another than the holder", &[&record]).await;
    kit.nothing_is_pending([a, c]).await;
}

/// `Keep` and `Forget`.
pub(super) async fn silent_ends<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let record = kit.record();
    a.expect("`Keep` of an unknown session", keep(&record), Applied::Ok).await;
    a.expect("`Forget` of an unknown session", forget(&record), Applied::Ok).await;
    a.expect("a hold", hold(&record), Applied::Created).await;
    b.expect("`Keep` by another than the holder", keep(&record), Applied::Ok).await;
    a.expect("`Keep` of another generation", keep(&kit.next(&record)), Applied::Ok).await;
    b.expect("the record still exists", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    a.expect("`Keep` by one of two", keep(&record), Applied::Ok).await;
    let answers = a.apply(vec![release(&record, 1)]).await;
    assert!(
        matches!(answers[..], [Applied::HeldElsewhere | Applied::Gone]),
        "a release of a kept session: {answers:?}"
    );
    b.expect("a release by the other", release(&record, 2), Applied::Owned { requests: 2 }).await;
    b.expect("a delivered end", done(&record), Applied::Ok).await;

    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    b.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    b.expect("a release by one of two", release(&record, 1), Applied::HeldElsewhere).await;
    a.expect("`Keep` by the last that has not released it", keep(&record), Applied::Ok).await;
    let next = kit.next(&record);
    b.expect("a hold of a kept session", hold(&next), Applied::Created).await;

    a.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(next.clone())).await;
    a.expect("`Forget` of another generation", forget(&record), Applied::Ok).await;
    a.expect("the record still exists", hold(&kit.next(&record)), Applied::Joined(next.clone())).await;
    a.expect("a forgotten session", forget(&next), Applied::Ok).await;
    b.expect("a release of a forgotten session", release(&next, 1), Applied::Gone).await;
    b.expect("an end of a forgotten session", end(&next, 1), Applied::Gone).await;
    b.acknowledge("the notice of another holder's `Forget`", &[&next]).await;
    let last = kit.next(&record);
    b.expect("a hold of a forgotten session", hold(&last), Applied::Created).await;
    a.expect("`Forget` by another than the holder", forget(&last), Applied::Ok).await;
    b.expect("a release of a forgotten session", release(&last, 1), Applied::Gone).await;
    b.acknowledge("the notice of the second `Forget`", &[&last]).await;
    same_all("orphans after `Keep` and `Forget`", &a.claim_all().await, &[]);
    kit.nothing_is_pending([a, b]).await;
}
