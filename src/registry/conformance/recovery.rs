//! Recovery of dead holders' sessions and ends, without effect on the living.

use std::time::{Duration, SystemTime};

use super::{
    Applied, Change, EndRecord, Kit, Orphan, Record, Store, done, end, end_as, ended, forget, hold, keep, now, release,
    same, same_all,
};
use crate::session::EndReason;

/// Checks orphans with the reason `Lost`. Their end time must be within five minutes from now.
#[track_caller]
fn lost(what: &str, orphans: &[Orphan], expected: &[(&Record, u64)]) {
    for orphan in orphans {
        let off = orphan.end.ended_at.duration_since(SystemTime::now()).unwrap_or_else(|behind| behind.duration());
        assert!(off < Duration::from_secs(300), "{what}: ended {off:?} from now");
    }
    let found: Vec<_> = orphans
        .iter()
        .map(|orphan| (&orphan.record, orphan.end.requests, orphan.attempts, orphan.end.reason, &orphan.end.next))
        .collect();
    let expected: Vec<_> =
        expected.iter().map(|&(record, requests)| (record, requests, 0, EndReason::Lost, &None)).collect();
    same_all(what, &found, &expected);
}

pub(super) async fn after_a_death<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let records = kit.records(3);
    a.expect_all("three holds", records.iter().map(hold).collect(), vec![Applied::Created; 3]).await;
    a.expect("an end of one of three", end(&records[2], 0), Applied::Owned { requests: 0 }).await;
    a.expect("a delivered end", done(&records[2]), Applied::Ok).await;
    let living = kit.record();
    b.expect("a hold by another holder", hold(&living), Applied::Created).await;
    same_all("orphans while the other holder is alive", &b.claim_all().await, &[]);
    same_all("a holder's own sessions as orphans", &a.claim_all().await, &[]);

    kit.kill(a).await;
    let orphans = b.claim_all().await;
    lost("the sessions of a dead holder", &orphans, &[(&records[0], 0), (&records[1], 0)]);
    same_all("a second recovery", &b.claim_all().await, &[]);
    let next = kit.next(&records[0]);
    b.expect("a hold of a recovered session", hold(&next), Applied::Created).await;
    let other = kit.holder().await;
    other.expect("an end of a recovered session", end(&records[0], 1), Applied::Gone).await;
    other.release_lease().await;
    b.expect("a release of the next generation", release(&next, 1), Applied::Owned { requests: 1 }).await;
    b.expect("a delivered end", done(&next), Applied::Ok).await;
    b.deliver(&orphans[..1]).await;

    // The recoverer dies too, and so does the next one.
    kit.kill(b).await;
    let c = kit.holder().await;
    let again = c.claim_all().await;
    let (new, claimed): (Vec<_>, Vec<_>) = again.into_iter().partition(|orphan| orphan.record == living);
    lost("a claim of a dead recoverer", &claimed, &[(&records[1], 0)]);
    lost("the dead recoverer's own session", &new, &[(&living, 0)]);
    c.deliver(&new).await;
    kit.kill(c).await;
    let d = kit.holder().await;
    let again = d.claim_all().await;
    lost("a claim after the third death", &again, &[(&records[1], 0)]);
    d.deliver(&again).await;
    kit.nothing_is_pending([d]).await;
}

pub(super) async fn of_shared_sessions<S: Store>(kit: &Kit<'_, S>) {
    let (a, b, c) = (kit.holder().await, kit.holder().await, kit.holder().await);
    let shared = kit.records(8);
    a.expect_all("eight holds", shared.iter().map(hold).collect(), vec![Applied::Created; 8]).await;
    let joining = shared.iter().map(|record| hold(&kit.next(record))).collect();
    let joined = shared.iter().map(|record| Applied::Joined(record.clone())).collect();
    b.expect_all("eight joins", joining, joined).await;
    kit.kill(a).await;
    let early = b.apply(vec![release(&shared[0], 6)]).await;
    same_all("a release by the last living holder, before the recovery", &early, &[Applied::HeldElsewhere]);
    b.expect("`Keep` by the last living holder, before the recovery", keep(&shared[5]), Applied::Ok).await;
    b.expect("a forgotten session, before the recovery", forget(&shared[6]), Applied::Ok).await;
    b.expect("an end before the recovery", end(&shared[7], 1), Applied::Owned { requests: 1 }).await;
    let orphans = b.claim_all().await;
    lost("shared sessions without a living holder", &orphans, &[(&shared[0], 6), (&shared[5], 0)]);
    b.deliver(&orphans).await;
    b.expect("an end from before the recovery, delivered", done(&shared[7]), Applied::Ok).await;
    b.expect("a release after the recovery", release(&shared[1], 2), Applied::Owned { requests: 2 }).await;
    b.expect("an end after the recovery", end(&shared[2], 3), Applied::Owned { requests: 3 }).await;
    b.expect_all("both ends delivered", vec![done(&shared[1]), done(&shared[2])], vec![Applied::Ok; 2]).await;
    b.expect("`Keep` after the recovery", keep(&shared[3]), Applied::Ok).await;
    c.expect("a hold of a kept session", hold(&kit.next(&shared[3])), Applied::Created).await;
    c.expect("a hold of a shared session", hold(&kit.next(&shared[4])), Applied::Joined(shared[4].clone())).await;
    c.expect("a forgotten session", forget(&shared[4]), Applied::Ok).await;
    b.acknowledge("the notice of another holder's `Forget`", &[&shared[4]]).await;

    // The remaining holders die, one after the other.
    let record = kit.record();
    b.expect("a hold", hold(&record), Applied::Created).await;
    c.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    kit.kill(b).await;
    same_all("orphans after the death of one of two holders", &c.claim_all().await, &[]);
    kit.kill(c).await;
    let d = kit.holder().await;
    let orphans = d.claim_all().await;
    same("orphans after the death of both holders", &orphans.len(), &2);
    lost("orphans after the death of both holders", &orphans[1..], &[(&record, 0)]);
    d.deliver(&orphans).await;
    kit.nothing_is_pending([d]).await;
}

/// Ends that were claimed, with every reason, and not delivered.
pub(super) async fn of_claimed_ends<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let mut expected = Vec::new();
    for &reason in EndReason::ALL {
        let (record, next) = (kit.record(), kit.record().session);
        let next = (reason == EndReason::Compaction).then_some(next);
        let end = EndRecord::new(reason, next, now() - Duration::from_secs(3600), 7);
        a.expect("a hold", hold(&record), Applied::Created).await;
        a.expect("an end", end_as(&record, end.clone()), Applied::Owned { requests: 7 }).await;
        expected.push(Orphan::new(record, end, 0));
    }
    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    b.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    b.expect("a release by one of two", release(&record, 3), Applied::HeldElsewhere).await;
    let last = EndRecord::new(EndReason::Restart, None, now(), 4);
    let change = Change::Release { id: record.session.id.clone(), generation: record.generation, end: last.clone() };
    a.expect("a release by the last", change, Applied::Owned { requests: 7 }).await;
    expected.push(Orphan::new(record.clone(), EndRecord::new(EndReason::Restart, None, last.ended_at, 7), 0));
    same_all("another living holder's claims as orphans", &b.claim_all().await, &[]);
    same_all("a holder's own claims as orphans", &a.claim_all().await, &[]);
    // The next generation is independent.
    let next = kit.next(&record);
    b.expect("a hold of an id whose end is claimed", hold(&next), Applied::Created).await;

    kit.kill(a).await;
    same_all("claims of a dead holder", &b.claim_all().await, &expected);
    same_all("a second recovery", &b.claim_all().await, &[]);
    b.expect("a release of the next generation", release(&next, 1), Applied::Owned { requests: 1 }).await;
    b.expect("a delivered end", done(&next), Applied::Ok).await;
    kit.kill(b).await;
    let c = kit.holder().await;
    let orphans = c.claim_all().await;
    same_all("claims of a dead recoverer, with their recorded reasons", &orphans, &expected);
    c.deliver(&orphans).await;
    kit.nothing_is_pending([c]).await;
}

/// `max` is less than the number of orphans.
pub(super) async fn in_batches<S: Store>(kit: &Kit<'_, S>) {
    let a = kit.holder().await;
    let records = kit.records(20);
    a.expect_all("twenty holds", records.iter().map(hold).collect(), vec![Applied::Created; 20]).await;
    let ends = records[10..].iter().map(|record| end(record, 0)).collect();
    a.expect_all("ten ends", ends, vec![Applied::Owned { requests: 0 }; 10]).await;
    kit.kill(a).await;
    let b = kit.holder().await;
    same_all("`claim_orphans(0)`", &b.claim_orphans(0).await, &[]);
    let mut all = Vec::new();
    for _ in 0..2 {
        let some = b.claim_orphans(3).await;
        assert!(!some.is_empty(), "`claim_orphans(3)` returned nothing although there are orphans");
        all.extend(some);
    }
    // The next holder finds the claimed ones and the rest.
    kit.kill(b).await;
    let c = kit.holder().await;
    let mut orphans = c.claim_orphans(usize::MAX).await;
    assert!(!orphans.is_empty(), "`claim_orphans(usize::MAX)` returned nothing although there are orphans");
    orphans.extend(c.claim_all().await);
    orphans.sort_by_key(|orphan| orphan.record.generation);
    let found: Vec<_> = orphans.iter().map(|orphan| &orphan.record).collect();
    same_all("all orphans, found by the next holder", &found, &records.iter().collect::<Vec<_>>());
    assert!(all.iter().all(|orphan| records.contains(&orphan.record)), "orphans that are none: {all:?}");
    c.deliver(&orphans).await;
    kit.nothing_is_pending([c]).await;
}

/// After `release_lease` the sessions and claims are orphans at once.
pub(super) async fn after_a_release<S: Store>(kit: &Kit<'_, S>) {
    let (a, b, c) = (kit.holder().await, kit.holder().await, kit.holder().await);
    let records = kit.records(3);
    a.expect_all("three holds", records.iter().map(hold).collect(), vec![Applied::Created; 3]).await;
    b.expect("a join", hold(&kit.next(&records[2])), Applied::Joined(records[2].clone())).await;
    let claimed = ended(EndReason::Restart, 3);
    a.expect("an end", end_as(&records[1], claimed.clone()), Applied::Owned { requests: 3 }).await;
    a.release_lease().await;
    let orphans = c.claim_all().await;
    same("the number of orphans of a released lease", &orphans.len(), &2);
    lost("the session of a released lease", &orphans[..1], &[(&records[0], 0)]);
    same("the claim of a released lease", &orphans[1], &Orphan::new(records[1].clone(), claimed, 0));
    c.deliver(&orphans).await;
    b.expect("a release of the shared session", release(&records[2], 1), Applied::Owned { requests: 1 }).await;
    b.expect("a delivered end", done(&records[2]), Applied::Ok).await;
    kit.nothing_is_pending([b, c]).await;
}
