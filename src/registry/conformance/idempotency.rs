//! Every change and every sequence can be repeated: a failed or timed-out call may have been applied.

use super::{Applied, Kit, Store, done, end, forget, hold, hold_beside, keep, release, same_all};

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
    for what in ["a release by one of two", "the same release again"] {
        a.expect(what, release(&record, 2), Applied::HeldElsewhere).await;
    }
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
    b.acknowledge("the notice of another holder's end", &[&record]).await;

    let record = kit.record();
    a.expect("a hold", hold(&record), Applied::Created).await;
    b.expect("a second holder", hold(&kit.next(&record)), Applied::Joined(record.clone())).await;
    for what in ["`Keep` by one of two", "the same `Keep` again"] {
        a.expect(what, keep(&record), Applied::Ok).await;
    }
    b.expect("a release by the remaining holder", release(&record, 1), Applied::Owned { requests: 1 }).await;
    b.expect("a delivered end", done(&record), Applied::Ok).await;

    // The answers of these were lost, and the record has ended since.
    let record = kit.record();
    let joining = kit.next(&record);
    a.expect("a hold", hold(&record), Applied::Created).await;
    b.expect("a second holder", hold(&joining), Applied::Joined(record.clone())).await;
    a.expect("an end", end(&record, 4), Applied::Owned { requests: 4 }).await;
    a.expect("a delivered end", done(&record), Applied::Ok).await;
    b.expect("the same second holder again", hold(&joining), Applied::Created).await;
    b.acknowledge("the notice of the first generation", &[&record]).await;
    b.expect("an end of its own generation", end(&joining, 1), Applied::Owned { requests: 1 }).await;
    b.expect("a delivered end", done(&joining), Applied::Ok).await;
    kit.nothing_is_pending([a, b]).await;
}

/// Calls that follow each other, each made twice.
pub(super) async fn sequences<S: Store>(kit: &Kit<'_, S>) {
    let a = kit.holder().await;
    let (first, next, last) = (kit.record(), kit.record(), kit.record());
    let [second, third, fourth] = [kit.next(&first), kit.next(&first), kit.next(&first)];
    let (owned, created) = (Applied::Owned { requests: 3 }, Applied::Created);
    let calls = [
        ("created", vec![hold(&first), hold(&next)], vec![created.clone(), created.clone()]),
        ("ended beside a hold", vec![end(&first, 3), hold_beside(&last)], vec![owned.clone(), created.clone()]),
        ("created once more", vec![hold(&second), keep(&next)], vec![created.clone(), Applied::Ok]),
        (
            "delivered while the next generation ends",
            vec![done(&first), release(&second, 3), hold(&next)],
            vec![Applied::Ok, owned.clone(), created.clone()],
        ),
        (
            "created once more, while the last one waits",
            vec![hold(&third), forget(&next)],
            vec![created.clone(), Applied::Ok],
        ),
        ("a second active record", vec![hold_beside(&fourth), done(&second)], vec![created, Applied::Ok]),
        ("the first of two ended", vec![release(&third, 3), end(&last, 3)], vec![owned.clone(), owned.clone()]),
        ("the second of two ended", vec![end(&fourth, 3), done(&last)], vec![owned, Applied::Ok]),
        ("all delivered", vec![done(&third), done(&fourth)], vec![Applied::Ok; 2]),
    ];
    for (what, changes, expected) in calls {
        for time in ["", ", the same call again"] {
            let answers = a.apply(changes.clone()).await;
            same_all(&format!("{what}{time}"), &answers, &expected);
        }
    }
    kit.nothing_is_pending([a]).await;
}
