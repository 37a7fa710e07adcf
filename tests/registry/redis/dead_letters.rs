//! Ends whose hooks have failed too often stay until an operator asks for them.

use tower_session_end::{
    EndReason,
    registry::{Applied, RedisRegistry, Registry},
};

use super::support::{
    RedisServer, YOURS, attempted, builder, claim_orphans, dead_letter, done, end, hold, holder, one, record, records,
};
use crate::support::operations_page;

/// As in a tool of an operator.
fn operator(server: &RedisServer) -> RedisRegistry {
    builder(&server.url()).lazy()
}

#[tokio::test]
async fn g15_a_dead_letter_outlives_its_holder_and_any_other_redelivers_it() {
    let server = RedisServer::start();
    let (a, b) = (holder(&server).await, holder(&server).await);
    let operator = operator(&server);
    let failed = record("failed");
    assert_eq!(one(&a, hold(&failed)).await, Applied::Created);
    assert_eq!(one(&a, end(&failed)).await, YOURS);
    // Only by the one that has claimed it.
    one(&b, attempted(&failed, 9)).await;
    one(&b, dead_letter(&failed, "not yours")).await;
    assert_eq!(operator.dead_letters(10).await.unwrap(), []);
    for _ in 0..2 {
        one(&a, attempted(&failed, 5)).await;
        assert_eq!(one(&a, dead_letter(&failed, "the consumer says \"no\"\n")).await, Applied::Ok);
    }
    let letters = operator.dead_letters(10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!((&letters[0].record, letters[0].end.reason, letters[0].attempts), (&failed, EndReason::Deleted, 5));
    assert_eq!(letters[0].error, "the consumer says \"no\"\n");
    // It is claimed by no holder: not recovered, and not delivered by the one that had it.
    one(&a, done(&failed)).await;
    assert_eq!(one(&a, end(&failed)).await, Applied::Gone);
    a.release_lease().await.unwrap();
    assert!(claim_orphans(&b).await.is_empty());
    assert_eq!(b.heartbeat().await.unwrap().dead_letters, 1);

    assert!(!operator.redeliver(record("other").generation).await.unwrap());
    assert!(operator.redeliver(failed.generation).await.unwrap());
    assert!(!operator.redeliver(failed.generation).await.unwrap());
    assert_eq!(b.heartbeat().await.unwrap().dead_letters, 0);
    // Whoever recovers it, and whoever recovers that one.
    for recoverer in [b, holder(&server).await] {
        let orphans = claim_orphans(&recoverer).await;
        assert_eq!(orphans.len(), 1);
        assert_eq!((&orphans[0].record, orphans[0].end.reason), (&failed, EndReason::Deleted));
        assert_eq!(orphans[0].attempts, 0);
        recoverer.release_lease().await.unwrap();
    }
    let last = holder(&server).await;
    let orphans = claim_orphans(&last).await;
    // It may fail again.
    one(&last, attempted(&orphans[0].record, 5)).await;
    one(&last, dead_letter(&failed, "again")).await;
    assert_eq!(operator.dead_letters(10).await.unwrap()[0].error, "again");
    assert_eq!(operator.redeliver_all().await.unwrap(), 1);
    assert_eq!(claim_orphans(&last).await.len(), 1);
    one(&last, done(&failed)).await;
    assert!(claim_orphans(&last).await.is_empty());
    last.release_lease().await.unwrap();
    assert_eq!(server.keys(), ["{tower-session-end}:incarnation"]);
}

/// By the clock of the server.
fn millisecond(server: &RedisServer) -> u64 {
    let time = server.ask("TIME");
    let (seconds, micros) = time.split_once('\n').unwrap();
    seconds.parse::<u64>().unwrap() * 1000 + micros.parse::<u64>().unwrap() / 1000
}

#[tokio::test]
async fn g15_every_dead_letter_is_listed_in_order_and_redelivered_once() {
    let server = RedisServer::start();
    let (dead, a, b) = (holder(&server).await, holder(&server).await, holder(&server).await);
    let records = records(700);
    dead.apply(records.iter().map(hold).collect()).await.unwrap();
    dead.apply(records[..300].iter().map(end).collect()).await.unwrap();
    dead.release_lease().await.unwrap();
    assert_eq!(claim_orphans(&a).await.len(), 700);
    // The first ones not in one millisecond, so that their order is known: it is not that of their generations.
    let mut first: Vec<_> = records[..5].iter().rev().collect();
    first.swap(1, 3);
    for record in &first {
        one(&a, dead_letter(record, "no")).await;
        let time = millisecond(&server);
        while millisecond(&server) == time {}
    }
    a.apply(records[5..].iter().map(|record| dead_letter(record, "no")).collect()).await.unwrap();
    let operator = operator(&server);
    for max in [0, 1, 256, 300, 700, usize::MAX] {
        let letters = operator.dead_letters(max).await.unwrap();
        assert_eq!(letters.len(), max.min(700));
        assert!(letters.iter().zip(&first).all(|(letter, record)| letter.record == **record), "not in order");
    }
    let reasons: Vec<_> = operator.dead_letters(700).await.unwrap().iter().map(|letter| letter.end.reason).collect();
    assert_eq!(reasons.iter().filter(|reason| **reason == EndReason::Lost).count(), 400);
    assert_eq!(reasons.iter().filter(|reason| **reason == EndReason::Deleted).count(), 300);
    assert_eq!(operator.redeliver_all().await.unwrap(), 700);
    assert_eq!(operator.redeliver_all().await.unwrap(), 0);
    let (of_a, of_b) = tokio::join!(claim_orphans(&a), claim_orphans(&b));
    let mut found: Vec<_> = of_a.iter().chain(&of_b).map(|orphan| orphan.record.generation).collect();
    found.sort();
    assert_eq!(found, records.iter().map(|record| record.generation).collect::<Vec<_>>());
    for (holder, orphans) in [(a, of_a), (b, of_b)] {
        holder.apply(orphans.iter().map(|orphan| done(&orphan.record)).collect()).await.unwrap();
        assert!(claim_orphans(&holder).await.is_empty());
        holder.release_lease().await.unwrap();
    }
    assert_eq!(server.keys(), ["{tower-session-end}:incarnation"]);
}

#[tokio::test]
async fn an_operator_is_no_holder() {
    let server = RedisServer::start();
    let operator = operator(&server);
    assert_eq!(operator.dead_letters(10).await.unwrap(), []);
    assert_eq!(operator.redeliver_all().await.unwrap(), 0);
    assert!(!operator.redeliver(record("a").generation).await.unwrap());
    assert!(server.keys().is_empty(), "{:?}", server.keys());
    // A clone of a holder that has left can still ask.
    let holder = holder(&server).await;
    let clone = holder.clone();
    assert_eq!(clone.instance(), holder.instance());
    holder.release_lease().await.unwrap();
    assert!(clone.heartbeat().await.is_err());
    assert_eq!(clone.dead_letters(10).await.unwrap(), []);
}

#[tokio::test]
async fn each_command_of_the_operations_page_shows_what_it_says() {
    let server = RedisServer::start();
    let holder = holder(&server).await;
    let failed = record("failed");
    one(&holder, hold(&failed)).await;
    one(&holder, end(&failed)).await;
    one(&holder, dead_letter(&failed, "no")).await;
    let answers: Vec<_> = operations_page::commands("redis-cli").iter().map(|command| server.ask(command)).collect();
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[..2], ["1".to_owned(), failed.generation.to_string()]);
    assert_eq!(answers[2].lines().count(), 2, "a holder and its time: {answers:?}");
    let record = server.ask(&format!("hgetall {{tower-session-end}}:session:{}", failed.generation));
    assert!(record.contains("failed") && record.lines().any(|line| line == "no"), "{record}");
}
