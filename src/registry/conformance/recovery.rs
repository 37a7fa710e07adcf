//! What the dead leave behind, and that the living are left alone.

use std::time::{Duration, SystemTime};

use super::{
    Applied, Change, EndRecord, Kit, Orphan, Record, Store, done, end, end_as, ended, forget, hold, keep, now, release,
    same, same_all,
};
use crate::session::EndReason;

/// What was lost just now: everything but the time, which only has to be near.
#[track_caller]
fn lost(what: &str, orphans: &[Orphan], expected: &[(&Record, u64, u32)]) {
    for orphan in orphans {
        let off = orphan.end.ended_at.duration_since(SystemTime::now()).unwrap_or_else(|behind| behind.duration());
        assert!(off < Duration::from_secs(300), "{what}: found out {off:?} from now");
    }
    let found: Vec<_> = orphans
        .iter()
        .map(|orphan| (&orphan.record, orphan.end.requests, orphan.attempts, orphan.end.reason, &orphan.end.next))
        .collect();
    let expected: Vec<_> =
        expected.iter().map(|&(record, requests, tries)| (record, requests, tries, EndReason::Lost, &None)).collect();
    same_all(what, &found, &expected);
}

pub(super) async fn of_the_dead<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let records = kit.records(3);
    a.expect_all("three are born", records.iter().map(hold).collect(), vec![Applied::Created; 3]).await;
    a.expect("and one is ended", end(&records[2], 0), Applied::Owned { requests: 0 }).await;
    a.expect("and done", done(&records[2]), Applied::Ok).await;
    let living = kit.record();
    b.expect("one of the living", hold(&living), Applied::Created).await;
    same_all("what another living holder holds, taken over", &b.take_over_all().await, &[]);
    same_all("what it holds itself, taken over", &a.take_over_all().await, &[]);

    kit.kill(a).await;
    let orphans = b.take_over_all().await;
    lost("sessions of a dead holder", &orphans, &[(&records[0], 0, 1), (&records[1], 0, 1)]);
    same_all("a second take-over", &b.take_over_all().await, &[]);
    let next = kit.next(&records[0]);
    b.expect("a hold of what was taken over", hold(&next), Applied::Created).await;
    let other = kit.holder().await;
    other.expect("an end of what was taken over", end(&records[0], 1), Applied::NotFound).await;
    other.release_lease().await;
    b.expect("the next generation ends by itself", release(&next, 1), Applied::Owned { requests: 1 }).await;
    b.expect("a delivered end", done(&next), Applied::Ok).await;
    b.deliver(&orphans[..1]).await;

    // The recoverer dies too, and the next one as well.
    kit.kill(b).await;
    let c = kit.holder().await;
    let again = c.take_over_all().await;
    let first_end = orphans[1].end.clone();
    let (new, claimed): (Vec<_>, Vec<_>) = again.into_iter().partition(|orphan| orphan.record == living);
    same_all("a claim of a dead recoverer", &claimed, &[Orphan::new(records[1].clone(), first_end.clone(), 2)]);
    lost("what the dead recoverer itself held", &new, &[(&living, 0, 1)]);
    c.deliver(&new).await;
    kit.kill(c).await;
    let d = kit.holder().await;
    let again = d.take_over_all().await;
    same_all("after the third death", &again, &[Orphan::new(records[1].clone(), first_end, 3)]);
    d.deliver(&again).await;
    kit.nothing_is_owed([d]).await;
}

pub(super) async fn beside_the_living<S: Store>(kit: &Kit<'_, S>) {
    let (a, b, c) = (kit.holder().await, kit.holder().await, kit.holder().await);
    let shared = kit.records(5);
    a.expect_all("five are born", shared.iter().map(hold).collect(), vec![Applied::Created; 5]).await;
    let joining = shared.iter().map(|record| hold(&kit.next(record))).collect();
    let joined = shared.iter().map(|record| Applied::Joined(record.clone())).collect();
    b.expect_all("and shared", joining, joined).await;
    kit.kill(a).await;
    let early = b.apply(vec![release(&shared[0], 6)]).await;
    same_all("the last living one lets go, before a take-over", &early, &[Applied::HeldElsewhere]);
    let orphans = b.take_over_all().await;
    lost("of the shared sessions, the one that nobody living holds", &orphans, &[(&shared[0], 6, 1)]);
    b.deliver(&orphans).await;
    b.expect("a release after the take-over", release(&shared[1], 2), Applied::Owned { requests: 2 }).await;
    b.expect("an end after the take-over", end(&shared[2], 3), Applied::Owned { requests: 3 }).await;
    b.expect_all("both done", vec![done(&shared[1]), done(&shared[2])], vec![Applied::Ok; 2]).await;
    b.expect("kept after the take-over", keep(&shared[3]), Applied::Ok).await;
    c.expect("a hold of what was kept", hold(&kit.next(&shared[3])), Applied::Created).await;
    c.expect("still shared", hold(&kit.next(&shared[4])), Applied::Joined(shared[4].clone())).await;
    c.expect("its host has finalised it", forget(&shared[4]), Applied::Ok).await;

    // All that are left die, one after the other.
    let record = kit.record();
    b.expect("a hold", hold(&record), Applied::Created).await;
    c.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    kit.kill(b).await;
    same_all("one of two is dead", &c.take_over_all().await, &[]);
    kit.kill(c).await;
    let d = kit.holder().await;
    let orphans = d.take_over_all().await;
    same("both are dead", &orphans.len(), &2);
    lost("both are dead", &orphans[1..], &[(&record, 0, 1)]);
    d.deliver(&orphans).await;
    kit.nothing_is_owed([d]).await;
}

/// Ends that were claimed, with every reason, and not done.
pub(super) async fn of_claims<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let mut expected = Vec::new();
    for &reason in EndReason::ALL {
        let (record, next) = (kit.record(), kit.record().session);
        let next = (reason == EndReason::Compaction).then_some(next);
        let end = EndRecord::new(reason, next, now() - Duration::from_secs(3600), 7);
        a.expect("a hold", hold(&record), Applied::Created).await;
        a.expect("an end", end_as(&record, end.clone()), Applied::Owned { requests: 7 }).await;
        expected.push(Orphan::new(record, end, 1));
    }
    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    b.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    b.expect("one of two lets go", release(&record, 3), Applied::HeldElsewhere).await;
    let last = EndRecord::new(EndReason::Restart, None, now(), 4);
    let change = Change::Release { id: record.session.id.clone(), generation: record.generation, end: last.clone() };
    a.expect("the last lets go", change, Applied::Owned { requests: 7 }).await;
    expected.push(Orphan::new(record.clone(), EndRecord::new(EndReason::Restart, None, last.ended_at, 7), 1));
    same_all("claims of the living, taken over by another", &b.take_over_all().await, &[]);
    same_all("claims of the living, taken over by themselves", &a.take_over_all().await, &[]);
    // A next generation has a life of its own.
    let next = kit.next(&record);
    b.expect("a hold of an id whose end is claimed", hold(&next), Applied::Created).await;

    kit.kill(a).await;
    same_all("claims of a dead holder", &b.take_over_all().await, &expected);
    same_all("a second take-over", &b.take_over_all().await, &[]);
    b.expect("the next generation", release(&next, 1), Applied::Owned { requests: 1 }).await;
    b.expect("a delivered end", done(&next), Applied::Ok).await;
    kit.kill(b).await;
    let c = kit.holder().await;
    for orphan in &mut expected {
        orphan.attempts = 2;
    }
    let orphans = c.take_over_all().await;
    same_all("claims of a dead recoverer, with their first reasons", &orphans, &expected);
    c.deliver(&orphans).await;
    kit.nothing_is_owed([c]).await;
}

/// `max` is less than what there is.
pub(super) async fn in_portions<S: Store>(kit: &Kit<'_, S>) {
    let a = kit.holder().await;
    let records = kit.records(20);
    a.expect_all("twenty are born", records.iter().map(hold).collect(), vec![Applied::Created; 20]).await;
    let ends = records[10..].iter().map(|record| end(record, 0)).collect();
    a.expect_all("ten are ended", ends, vec![Applied::Owned { requests: 0 }; 10]).await;
    kit.kill(a).await;
    let b = kit.holder().await;
    same_all("a take-over of none at all", &b.claim_orphans(0).await, &[]);
    let mut all = Vec::new();
    for _ in 0..2 {
        let some = b.claim_orphans(3).await;
        assert!(!some.is_empty(), "there is more, and `take_over(3)` said that there was nothing");
        all.extend(some);
    }
    // The rest is not claimed: it is found if this one dies, and is not counted as tried.
    kit.kill(b).await;
    let c = kit.holder().await;
    let orphans = c.take_over_all().await;
    let found: Vec<_> = orphans.iter().map(|orphan| &orphan.record).collect();
    same_all("everything, by the next one", &found, &records.iter().collect::<Vec<_>>());
    for orphan in &orphans {
        let before = all.iter().any(|other| other.record == orphan.record);
        same("tries", &orphan.attempts, &(1 + u32::from(before)));
    }
    c.deliver(&orphans).await;
    kit.nothing_is_owed([c]).await;
}

/// `leave`: everybody's at once.
pub(super) async fn after_a_leave<S: Store>(kit: &Kit<'_, S>) {
    let (a, b, c) = (kit.holder().await, kit.holder().await, kit.holder().await);
    let records = kit.records(3);
    a.expect_all("three are born", records.iter().map(hold).collect(), vec![Applied::Created; 3]).await;
    b.expect("one is shared", hold(&kit.next(&records[2])), Applied::Joined(records[2].clone())).await;
    let claimed = ended(EndReason::Restart, 3);
    a.expect("one is ended", end_as(&records[1], claimed.clone()), Applied::Owned { requests: 3 }).await;
    a.release_lease().await;
    let orphans = c.take_over_all().await;
    same("what a holder that left had held or claimed", &orphans.len(), &2);
    lost("what it had held", &orphans[..1], &[(&records[0], 0, 1)]);
    same("what it had claimed", &orphans[1], &Orphan::new(records[1].clone(), claimed, 1));
    c.deliver(&orphans).await;
    b.expect("what it had shared", release(&records[2], 1), Applied::Owned { requests: 1 }).await;
    b.expect("a delivered end", done(&records[2]), Applied::Ok).await;
    kit.nothing_is_owed([b, c]).await;
}
