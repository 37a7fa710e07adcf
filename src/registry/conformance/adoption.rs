//! A dead holder is adopted with all that it held and had claimed, however much of it was read.

use super::{Applied, Kit, Orphan, Record, Store, done, end, forget, hold, hold_beside, keep, release, same, same_all};
use crate::session::EndReason;

fn records(orphans: &[Orphan]) -> Vec<&Record> {
    orphans.iter().map(|orphan| &orphan.record).collect()
}

/// The adopter dies after it has read a part, and delivered a part of that.
pub(super) async fn of_a_half_read_holder<S: Store>(kit: &Kit<'_, S>) {
    let a = kit.holder().await;
    let mut expected = kit.records(30);
    a.expect_all("30 holds", expected.iter().map(hold).collect(), vec![Applied::Created; 30]).await;
    let ends = expected[10..20].iter().map(|record| end(record, 1)).collect();
    a.expect_all("ten ends", ends, vec![Applied::Owned { requests: 1 }; 10]).await;
    kit.kill(a).await;
    for generation in 0..3 {
        let adopter = kit.holder().await;
        let own = kit.records(2);
        adopter.expect_all("two holds", own.iter().map(hold).collect(), vec![Applied::Created; 2]).await;
        adopter.expect("an end", end(&own[1], 0), Applied::Owned { requests: 0 }).await;
        expected.extend(own);
        let mut read = adopter.claim_orphans(5).await;
        read.extend(adopter.claim_orphans(2).await);
        assert!(read.len() >= 2, "`claim_orphans` returned {} of many orphans in two calls", read.len());
        let delivered = read.remove(0);
        adopter.deliver(std::slice::from_ref(&delivered)).await;
        expected.retain(|record| *record != delivered.record);
        if generation == 1 {
            adopter.release_lease().await;
        } else {
            kit.kill(adopter).await;
        }
    }
    let last = kit.holder().await;
    let orphans = last.claim_all().await;
    same_all("everything undelivered, for the last adopter", &records(&orphans), &expected.iter().collect::<Vec<_>>());
    assert!(orphans.iter().all(|orphan| orphan.attempts == 0), "attempts without a call: {orphans:?}");
    last.deliver(&orphans).await;
    kit.nothing_is_pending([last]).await;
}

/// A hold of an id whose holders are all adopted creates a record. The old one is an orphan, once.
pub(super) async fn before_a_hold<S: Store>(kit: &Kit<'_, S>) {
    let (a, b, other) = (kit.holder().await, kit.holder().await, kit.holder().await);
    let old = kit.records(6);
    a.expect_all("six holds", old.iter().map(hold).collect(), vec![Applied::Created; 6]).await;
    b.expect("a second holder", hold(&old[4]), Applied::Created).await;
    b.expect("a release by one of two", release(&old[4], 5), Applied::HeldElsewhere).await;
    kit.kill(a).await;
    // Without a lease and not adopted, it is still a holder.
    b.expect("a hold before the recovery", hold(&kit.next(&old[5])), Applied::Joined(old[5].clone())).await;
    let mut orphans = b.claim_orphans(1).await;
    let mut new = Vec::new();
    for (i, record) in old[..5].iter().enumerate() {
        let (holder, next) = (if i % 2 == 0 { &b } else { &other }, kit.next(record));
        let change = if i < 3 { hold(&next) } else { hold_beside(&next) };
        for time in ["", ", again"] {
            let what = format!("a hold of an id whose holders are all adopted{time}");
            holder.expect(&what, change.clone(), Applied::Created).await;
        }
        let third = if i % 2 == 0 { &other } else { &b };
        third.expect("a second holder of it", hold(&kit.next(record)), Applied::Joined(next.clone())).await;
        new.push(next);
    }
    same_all("the orphans, for another than the adopter", &other.claim_all().await, &[]);
    orphans.extend(b.claim_all().await);
    orphans.sort_by_key(|orphan| orphan.record.generation);
    same_all("the old records, each once", &records(&orphans), &old[..5].iter().collect::<Vec<_>>());
    let ends: Vec<_> = orphans.iter().map(|orphan| (orphan.end.reason, orphan.end.requests)).collect();
    let lost = EndReason::Lost;
    same_all("the ends of the old records", &ends, &[(lost, 0), (lost, 0), (lost, 0), (lost, 0), (lost, 5)]);
    other.expect("`Delivered` by another than the adopter", done(&old[1]), Applied::Ok).await;
    b.expect("a release of the session that continues", release(&old[5], 1), Applied::Owned { requests: 1 }).await;
    b.expect("a delivered end", done(&old[5]), Applied::Ok).await;
    b.deliver(&orphans[..1]).await;

    // The adopter dies: the next one gets the rest, and the new sessions go on.
    kit.kill(b).await;
    let orphans = other.claim_all().await;
    same_all("the rest, each once, for the next adopter", &records(&orphans), &old[1..5].iter().collect::<Vec<_>>());
    other.deliver(&orphans).await;
    let releases = new.iter().map(|record| release(record, 1)).collect();
    other.expect_all("releases of the new records", releases, vec![Applied::Owned { requests: 1 }; 5]).await;
    other.expect_all("delivered ends", new.iter().map(done).collect(), vec![Applied::Ok; 5]).await;
    kit.nothing_is_pending([other]).await;
}

/// What other holders do with sessions of a holder that is adopted, and of which nothing was read yet.
pub(super) async fn beside_other_holders<S: Store>(kit: &Kit<'_, S>) {
    let (a, b, c) = (kit.holder().await, kit.holder().await, kit.holder().await);
    let (adopter, next_adopter) = (kit.holder().await, kit.holder().await);
    let shared = kit.records(8);
    let [released, ended, kept, forgotten, joined, counted, first, lost] = &shared[..] else { unreachable!("eight") };
    a.expect_all("holds", shared.iter().map(hold).collect(), vec![Applied::Created; 8]).await;
    let by_both = [released, ended, kept, forgotten, joined, counted];
    b.expect_all("second holders", by_both.map(hold).to_vec(), vec![Applied::Created; 6]).await;
    let second = kit.next(first);
    b.expect("a second active record of an id", hold_beside(&second), Applied::Created).await;
    a.expect("a release by one of two", release(counted, 4), Applied::HeldElsewhere).await;
    kit.kill(a).await;
    let mut orphans = adopter.claim_orphans(1).await;
    let owned = |requests| Applied::Owned { requests };
    b.expect("a release by the last that is not adopted", release(released, 1), owned(1)).await;
    b.expect("an end of a session that an adopted holder held", end(ended, 2), owned(2)).await;
    b.expect("`Keep` by the last that is not adopted", keep(kept), Applied::Ok).await;
    b.expect("`Forget` of a session that an adopted holder held", forget(forgotten), Applied::Ok).await;
    c.expect("a join of the one that is not adopted", hold(&kit.next(joined)), Applied::Joined(joined.clone())).await;
    b.expect("a release by the last, summed with that of a dead holder", release(counted, 1), owned(5)).await;
    c.expect("a join of the living of two active records", hold(&kit.next(first)), Applied::Joined(second.clone()))
        .await;
    b.expect("a delivered end, before the adopter reads on", done(ended), Applied::Ok).await;

    // The adopter dies, and is not adopted itself yet: what it has adopted cannot be joined.
    kit.kill(adopter).await;
    let next = kit.next(lost);
    c.expect("a hold of an id whose holder's adopter is dead", hold(&next), Applied::Created).await;
    orphans.extend(next_adopter.claim_all().await);
    orphans.sort_by_key(|orphan| orphan.record.generation);
    orphans.dedup_by_key(|orphan| orphan.record.generation);
    same_all("the orphans beside other holders", &records(&orphans), &[first, lost]);
    next_adopter.deliver(&orphans).await;

    c.expect("a release of the new record", release(&next, 1), owned(1)).await;
    let shared = vec![release(joined, 1), release(&second, 1)];
    c.expect_all("releases by one of two", shared.clone(), vec![Applied::HeldElsewhere; 2]).await;
    b.expect_all("releases by the last", shared, vec![owned(2); 2]).await;
    b.expect_all("delivered ends", [released, joined, counted, &second].map(done).to_vec(), vec![Applied::Ok; 4]).await;
    c.expect("a delivered end", done(&next), Applied::Ok).await;
    kit.nothing_is_pending([b, c, next_adopter]).await;
}

/// Two dead holders of one session, with an adopter each: one of the adopters gets the end.
pub(super) async fn by_two_holders<S: Store>(kit: &Kit<'_, S>) {
    let (a, b, c, d) = (kit.holder().await, kit.holder().await, kit.holder().await, kit.holder().await);
    let [first, second] = [kit.record(), kit.record()];
    let shared = kit.records(6);
    a.expect("a session of one holder", hold(&first), Applied::Created).await;
    b.expect("a session of the other", hold(&second), Applied::Created).await;
    for holder in [&a, &b] {
        holder.expect_all("shared", shared.iter().map(hold).collect(), vec![Applied::Created; 6]).await;
    }
    b.expect("a release by one of two", release(&shared[5], 9), Applied::HeldElsewhere).await;
    kit.kill(a).await;
    let mut of_c = c.claim_orphans(1).await;
    kit.kill(b).await;
    let mut of_d = d.claim_orphans(1).await;
    of_c.extend(c.claim_orphans(3).await);
    of_d.extend(d.claim_all().await);
    of_c.extend(c.claim_all().await);
    of_d.extend(d.claim_all().await);
    let mut all: Vec<_> = of_c.iter().chain(&of_d).cloned().collect();
    all.sort_by_key(|orphan| orphan.record.generation);
    let expected: Vec<_> = [&first, &second].into_iter().chain(&shared).collect();
    same_all("the orphans of two adopters, each once", &records(&all), &expected);
    same("the requests of the holder that has released it", &all[7].end.requests, &9);

    // Each delivers its own only.
    let of = |orphans: &[Orphan]| orphans.iter().map(|orphan| done(&orphan.record)).collect::<Vec<_>>();
    c.expect_all("`Delivered` of the other adopter's orphans", of(&of_d), vec![Applied::Ok; of_d.len()]).await;
    d.expect_all("`Delivered` of the other adopter's orphans", of(&of_c), vec![Applied::Ok; of_c.len()]).await;
    kit.kill(c).await;
    let again = d.claim_all().await;
    of_c.sort_by_key(|orphan| orphan.record.generation);
    same_all("the orphans of the dead adopter, again", &records(&again), &records(&of_c));
    d.deliver(&again).await;
    d.release_lease().await;
    let last = kit.holder().await;
    let again = last.claim_all().await;
    of_d.sort_by_key(|orphan| orphan.record.generation);
    same_all("the orphans of the other adopter, again", &records(&again), &records(&of_d));
    last.deliver(&again).await;
    kit.nothing_is_pending([last]).await;
}
