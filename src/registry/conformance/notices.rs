//! Notices: each other living holder learns that the session has ended.

use std::time::Duration;

use super::{
    Applied, Heartbeat, Kit, Registry, Store, acknowledge, concurrency::give_up, done, end, forget, hold, keep,
    release, same,
};

pub(super) async fn of_ends_and_forgets<S: Store>(kit: &Kit<'_, S>) {
    let (a, b, c) = (kit.holder().await, kit.holder().await, kit.holder().await);
    let (released, kept, dead) = (kit.holder().await, kit.holder().await, kit.holder().await);
    let [ended, forgotten] = [kit.record(), kit.record()];
    for record in [&ended, &forgotten] {
        a.expect("a hold", hold(record), Applied::Created).await;
        for other in [&b, &c, &released, &kept, &dead] {
            other.expect("another holder", hold(&kit.next(record)), Applied::Joined(record.clone())).await;
        }
        released.expect("a release", release(record, 1), Applied::HeldElsewhere).await;
        kept.expect("`Keep` by one of several", keep(record), Applied::Ok).await;
    }
    kit.kill(dead).await;
    a.expect("`Acknowledge` without a notice", acknowledge(&ended), Applied::Ok).await;
    a.expect("an end for all", end(&ended, 1), Applied::Owned { requests: 2 }).await;
    a.expect("`Forget`", forget(&forgotten), Applied::Ok).await;
    let both = [&ended, &forgotten];
    for (holder, what) in [
        (&a, "notices of the holder that has ended them"),
        (&released, "notices of a holder that has released them"),
        (&kept, "notices of a holder that has kept them"),
    ] {
        holder.expect_notices(what, &[]).await;
    }
    for holder in [&b, &c] {
        for what in ["notices of another holder", "the same notices again"] {
            holder.expect_notices(what, &both).await;
        }
    }
    for polls in 0..6 {
        let _ = give_up(b.registry().heartbeat(), polls).await;
    }
    b.expect_notices("notices after dropped heartbeats", &both).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    for notice in b.heartbeat().await.notices {
        assert!(notice.age >= Duration::from_millis(50), "the age after 100 ms: {notice:?}");
    }
    // Each holder has notices of its own.
    b.expect("`Acknowledge` of one of two", acknowledge(&ended), Applied::Ok).await;
    b.expect("the same again", acknowledge(&ended), Applied::Ok).await;
    b.expect_notices("the other notice", &[&forgotten]).await;
    c.expect_notices("another holder's notices", &both).await;
    // A repeat creates none.
    a.expect("the end again", end(&ended, 1), Applied::Owned { requests: 2 }).await;
    a.expect("`Forget` again", forget(&forgotten), Applied::Ok).await;
    a.expect("a delivered end", done(&ended), Applied::Ok).await;
    b.acknowledge("the other notice, after repeats and a delivery", &[&forgotten]).await;
    c.acknowledge("another holder's notices, after a delivery", &both).await;

    // Two notices of one id.
    let first = kit.record();
    let second = kit.next(&first);
    for record in [&first, &second] {
        a.expect("a hold", hold(record), Applied::Created).await;
        b.expect("a second holder", hold(record), Applied::Created).await;
        a.expect("an end", end(record, 1), Applied::Owned { requests: 1 }).await;
        a.expect("a delivered end", done(record), Applied::Ok).await;
    }
    b.expect_notices("two notices of one id", &[&first, &second]).await;
    b.expect("`Acknowledge` of the first", acknowledge(&first), Applied::Ok).await;
    b.acknowledge("the second", &[&second]).await;

    // A release by the last holder creates no notice, and a new holder has none.
    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    b.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    a.expect("a release by one of two", release(&record, 1), Applied::HeldElsewhere).await;
    b.expect("a release by the last", release(&record, 1), Applied::Owned { requests: 2 }).await;
    b.expect("a delivered end", done(&record), Applied::Ok).await;
    let new = kit.holder().await;
    kit.nothing_is_pending([a, b, c, released, kept, new]).await;
}

/// More notices than one heartbeat returns: the oldest come first.
pub(super) async fn in_pages<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let records = kit.records(1201);
    let (old, new) = records.split_at(601);
    for some in [new, old] {
        a.expect_all("holds", some.iter().map(hold).collect(), vec![Applied::Created; some.len()]).await;
        b.expect_all("joins", some.iter().map(hold).collect(), vec![Applied::Created; some.len()]).await;
    }
    for some in [old, new] {
        let changes = some.iter().map(|record| end(record, 0)).collect();
        a.expect_all("ends", changes, vec![Applied::Owned { requests: 0 }; some.len()]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let Heartbeat { notices, has_more, .. } = b.heartbeat().await;
    same("the number of notices, of 1,201", &notices.len(), &1000);
    assert!(has_more, "`has_more` with 1,201 notices");
    let are_oldest = old.iter().all(|record| notices.iter().any(|notice| notice.generation == record.generation));
    assert!(are_oldest, "the oldest 601 of 1,201 notices are not among the first 1,000");
    let (first, rest): (Vec<_>, Vec<_>) =
        records.iter().partition(|record| notices.iter().any(|notice| notice.generation == record.generation));
    let changes = first.iter().map(|record| acknowledge(record)).collect();
    b.expect_all("1,000 acknowledgements", changes, vec![Applied::Ok; 1000]).await;
    b.acknowledge("the remaining notices", &rest).await;
    for some in [old, new] {
        a.expect_all("delivered ends", some.iter().map(done).collect(), vec![Applied::Ok; some.len()]).await;
    }
    kit.nothing_is_pending([a, b]).await;
}
