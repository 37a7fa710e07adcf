//! Every change and every batch can be repeated: a failed or timed-out call may have been applied.

use super::{Applied, Kit, Store, done, end, forget, hold, keep, release, same_all};

pub(super) async fn starts_and_ends<S: Store>(kit: &Kit<'_, S>) {
    let (a, b) = (kit.holder().await, kit.holder().await);
    let record = kit.record();
    let joining = kit.next(&record);
    for what in ["a hold", "the same hold again"] {
        a.expect(what, hold(&record), Applied::Created).await;
    }
    for what in ["a second holder", "the same second holder again"] {
        b.expect(what, hold(&joining), Applied::Joined(record.clone())).await;
    }
    a.expect("a release by one of two", release(&record, 2), Applied::HeldElsewhere).await;
    let again = a.apply(vec![release(&record, 2)]).await;
    assert!(matches!(again[..], [Applied::HeldElsewhere | Applied::Gone]), "the same release again: {again:?}");
    for what in ["a release by the last, with nothing counted twice", "the same release by the last again"] {
        b.expect(what, release(&record, 3), Applied::Owned { requests: 5 }).await;
    }
    for what in ["a delivered end", "the same delivered end again"] {
        b.expect(what, done(&record), Applied::Ok).await;
    }

    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    b.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    for what in ["an end", "the same end again"] {
        a.expect(what, end(&record, 4), Applied::Owned { requests: 4 }).await;
    }
    b.expect("an end by another holder", end(&record, 4), Applied::Gone).await;
    a.expect("a delivered end", done(&record), Applied::Ok).await;

    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    b.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    for what in ["`Keep` by one of two", "the same `Keep` again"] {
        a.expect(what, keep(&record), Applied::Ok).await;
    }
    b.expect("a release by the remaining holder", release(&record, 1), Applied::Owned { requests: 1 }).await;
    b.expect("a delivered end", done(&record), Applied::Ok).await;
    kit.nothing_is_pending([a, b]).await;
}

/// Batches that contain several changes of one session, each applied twice.
pub(super) async fn batches<S: Store>(kit: &Kit<'_, S>) {
    let a = kit.holder().await;
    let (first, next) = (kit.record(), kit.record());
    let second = kit.next(&first);
    let third = kit.next(&first);
    let (owned, created) = (Applied::Owned { requests: 3 }, Applied::Created);
    let batches = [
        ("created and ended", vec![hold(&first), end(&first, 3)], vec![created.clone(), owned.clone()]),
        ("created once more", vec![end(&first, 3), hold(&second)], vec![owned.clone(), created.clone()]),
        (
            "ended and created, twice",
            vec![hold(&second), end(&second, 3), hold(&third), end(&third, 3), hold(&next)],
            vec![created.clone(), owned.clone(), created.clone(), owned.clone(), created.clone()],
        ),
        ("all ends delivered", vec![done(&first), done(&second), done(&third)], vec![Applied::Ok; 3]),
        ("kept and held again", vec![keep(&next), hold(&first)], vec![Applied::Ok, created.clone()]),
        ("forgotten", vec![forget(&first), hold(&next), forget(&next)], vec![Applied::Ok, created, Applied::Ok]),
    ];
    for (what, changes, expected) in batches {
        for time in ["", ", the same batch again"] {
            let answers = a.apply(changes.clone()).await;
            same_all(&format!("{what}{time}"), &answers, &expected);
        }
    }
    kit.nothing_is_pending([a]).await;
}
