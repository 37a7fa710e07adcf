//! Large batches, concurrent recoveries and dropped calls.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use super::{Applied, Kit, Record, Registry, Store, done, end, forget, hold, release, same, same_all};
use crate::session::EndReason;

pub(super) async fn big_batches<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let records = kit.records(1000);
    a.expect_all("1,000 holds", records.iter().map(hold).collect(), vec![Applied::Created; 1000]).await;
    let again = records.iter().map(|record| hold(&kit.next(record))).collect();
    let joined = records.iter().map(|record| Applied::Joined(record.clone())).collect();
    b.expect_all("1,000 joins", again, joined).await;
    let ends = records.iter().zip(0..).map(|(record, requests)| end(record, requests)).collect();
    let owned = (0..1000).map(|requests| Applied::Owned { requests }).collect();
    a.expect_all("1,000 ends", ends, owned).await;
    let gone = records.iter().map(|record| end(record, 0)).collect();
    b.expect_all("1,000 ends by another holder", gone, vec![Applied::Gone; 1000]).await;
    a.expect_all("1,000 delivered ends", records.iter().map(done).collect(), vec![Applied::Ok; 1000]).await;
    b.acknowledge("1,000 notices", &records.iter().collect::<Vec<_>>()).await;
    kit.nothing_is_pending([a, b]).await;
}

/// Three holders recover one dead holder at the same time: each orphan is claimed once.
pub(super) async fn concurrent_recoverers<S: Store>(kit: &Kit<'_, S>) {
    let dead = kit.holder().await;
    let records = kit.records(300);
    dead.expect_all("300 holds", records.iter().map(hold).collect(), vec![Applied::Created; 300]).await;
    let ends = records[..150].iter().map(|record| end(record, 0)).collect();
    dead.expect_all("150 ends", ends, vec![Applied::Owned { requests: 0 }; 150]).await;
    let (a, b, c) = (kit.holder().await, kit.holder().await, kit.holder().await);
    kit.kill(dead).await;
    let (of_a, of_b, of_c) = tokio::join!(a.claim_all(), b.claim_all(), c.claim_all());
    let mut found: Vec<_> =
        [&of_a, &of_b, &of_c].into_iter().flatten().map(|orphan| orphan.record.generation).collect();
    // A holder may have got an empty answer while another one was recovering. Afterwards there is nothing left.
    let rest = a.claim_all().await;
    found.extend(rest.iter().map(|orphan| orphan.record.generation));
    found.sort();
    let expected: Vec<_> = records.iter().map(|record| record.generation).collect();
    same_all("the claims of all recoverers together", &found, &expected);
    for (holder, orphans) in [(&a, &of_a), (&b, &of_b), (&c, &of_c), (&a, &rest)] {
        holder.deliver(orphans).await;
    }
    kit.nothing_is_pending([a, b, c]).await;
}

/// Two holders die, which hold the same sessions, and two recover them at the same time.
pub(super) async fn two_dead_and_two_recoverers<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let records = kit.records(200);
    for holder in [&a, &b] {
        holder.expect_all("200 holds", records.iter().map(hold).collect(), vec![Applied::Created; 200]).await;
    }
    let (c, d) = (kit.holder().await, kit.holder().await);
    tokio::join!(kit.kill(a), kit.kill(b));
    let (mut of_c, mut of_d) = tokio::join!(c.claim_all(), d.claim_all());
    for _ in 0..2 {
        of_c.extend(c.claim_all().await);
        of_d.extend(d.claim_all().await);
    }
    let mut found: Vec<_> = of_c.iter().chain(&of_d).map(|orphan| orphan.record.generation).collect();
    found.sort();
    let expected: Vec<_> = records.iter().map(|record| record.generation).collect();
    same_all("the sessions of two dead holders, each once", &found, &expected);
    c.deliver(&of_c).await;
    d.deliver(&of_d).await;
    kit.nothing_is_pending([c, d]).await;
}

/// Polls the future up to `polls` times, fast or slowly, and drops it if it is still pending.
pub(super) async fn give_up<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        if polls.is_multiple_of(2) {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    None
}

/// A dropped `apply` is applied completely or not at all, and the next call works.
pub(super) async fn dropped_applies<S: Store>(kit: &Kit<'_, S>) {
    let a = kit.holder().await;
    let batches: Vec<_> = (0..40).map(|_| kit.records(4)).collect();
    let held: Vec<_> = batches.iter().flat_map(|batch| batch[1..].iter().map(hold)).collect();
    let created = vec![Applied::Created; held.len()];
    a.expect_all("holds", held, created).await;
    let changes = |batch: &[Record]| vec![hold(&batch[0]), end(&batch[1], 1), release(&batch[2], 1), forget(&batch[3])];
    for (i, batch) in batches.iter().enumerate() {
        let _ = give_up(a.registry().apply(changes(batch)), i % 10).await;
    }
    let (again, rest) = batches.split_at(20);
    for batch in again {
        let owned = Applied::Owned { requests: 1 };
        let expected = vec![Applied::Created, owned.clone(), owned, Applied::Ok];
        a.expect_all("a dropped `apply`, repeated", changes(batch), expected).await;
    }
    kit.kill(a).await;
    let b = kit.holder().await;
    let orphans = b.claim_all().await;
    let found: BTreeMap<_, _> = orphans.iter().map(|orphan| (orphan.record.generation, orphan.end.reason)).collect();
    same("the number of distinct orphans", &found.len(), &orphans.len());
    let applied = [Some(EndReason::Lost), Some(EndReason::Deleted), Some(EndReason::Shutdown), None];
    let unapplied = [None, Some(EndReason::Lost), Some(EndReason::Lost), Some(EndReason::Lost)];
    let of = |batch: &[Record]| [0, 1, 2, 3].map(|i| found.get(&batch[i].generation).copied());
    for batch in again {
        same("a repeated call", &of(batch), &applied);
    }
    for batch in rest {
        let of = of(batch);
        assert!(of == applied || of == unapplied, "a part of a dropped call was applied: the reasons are {of:?}");
    }
    b.deliver(&orphans).await;
    kit.nothing_is_pending([b]).await;
}

/// A later call returns the orphans that a dropped call has claimed.
pub(super) async fn dropped_recoveries<S: Store>(kit: &Kit<'_, S>) {
    let a = kit.holder().await;
    let records = kit.records(60);
    a.expect_all("60 holds", records.iter().map(hold).collect(), vec![Applied::Created; 60]).await;
    kit.kill(a).await;
    let b = kit.holder().await;
    let mut found = Vec::new();
    for polls in (0..10).chain(0..10) {
        if let Some(Ok(in_time)) = give_up(b.registry().claim_orphans(3), polls).await {
            found.extend(in_time);
        }
        found.extend(b.claim_orphans(1).await);
    }
    found.extend(b.claim_all().await);
    found.sort_by_key(|orphan| orphan.record.generation);
    let returned: Vec<_> = found.iter().map(|orphan| &orphan.record).collect();
    same_all("each orphan once, after dropped `claim_orphans` calls", &returned, &records.iter().collect::<Vec<_>>());
    b.deliver(&found).await;
    kit.nothing_is_pending([b]).await;
}
