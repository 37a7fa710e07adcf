//! Large batches, concurrent recoveries and dropped calls.

use std::{
    collections::BTreeSet,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use super::{Applied, Kit, Registry, Store, done, end, hold, same, same_all};

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
        assert!(orphans.iter().all(|orphan| orphan.attempts == 1), "an orphan was claimed more than once: {orphans:?}");
        holder.deliver(orphans).await;
    }
    kit.nothing_is_pending([a, b, c]).await;
}

/// Polls the future up to `polls` times, fast or slowly, and drops it if it is still pending.
async fn give_up<F: Future>(future: F, polls: usize) -> Option<F::Output> {
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
    for (i, batch) in batches.iter().enumerate() {
        let _ = give_up(a.registry().apply(batch.iter().map(hold).collect()), i % 10).await;
    }
    let (again, rest) = batches.split_at(20);
    for batch in again {
        let changes = batch.iter().map(hold).collect();
        a.expect_all("a dropped `apply`, repeated", changes, vec![Applied::Created; 4]).await;
    }
    kit.kill(a).await;
    let b = kit.holder().await;
    let orphans = b.claim_all().await;
    let found: BTreeSet<_> = orphans.iter().map(|orphan| orphan.record.generation).collect();
    same("the number of distinct orphans", &found.len(), &orphans.len());
    for batch in again {
        assert!(batch.iter().all(|record| found.contains(&record.generation)), "a repeated call was lost");
    }
    for batch in rest {
        let there = batch.iter().filter(|record| found.contains(&record.generation)).count();
        assert!(there == 0 || there == batch.len(), "of a dropped call, {there} of 4 changes were applied");
    }
    b.deliver(&orphans).await;
    kit.nothing_is_pending([b]).await;
}

/// The next call returns the orphans that a dropped call has claimed.
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
